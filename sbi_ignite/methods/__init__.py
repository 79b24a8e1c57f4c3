"""The losses of each SBI method."""
