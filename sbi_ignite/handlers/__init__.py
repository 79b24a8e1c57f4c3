"""A training engine comes in; rules about clipping, stopping and keeping are attached to it."""
