"""Memory of parameters and what optimizers read of it."""
