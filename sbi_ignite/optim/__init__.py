"""The memory of parameters, and how optimizers use it."""
