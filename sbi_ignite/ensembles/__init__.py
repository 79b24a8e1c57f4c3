"""Train many networks on one set of simulations."""
