"""Parity with sbi: the same seed and the same keywords give the same numbers, bit for bit."""
