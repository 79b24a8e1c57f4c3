"""Whether what is documented is so."""
