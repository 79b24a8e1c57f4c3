"""Save a training in a directory that is intact at every instant, and read it back."""
