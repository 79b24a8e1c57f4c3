"""Rows come in; batches go out."""
