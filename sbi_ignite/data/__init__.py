"""Simulations as batches: the contract, its implementations, and the split."""
