"""Ways to run a recorded graph."""
