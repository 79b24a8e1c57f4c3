"""Batches come in; the losses of each SBI method go out."""
