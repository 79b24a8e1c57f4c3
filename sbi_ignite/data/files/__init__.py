"""Files of simulations: one page per layout that the field has."""
