"""Passes over a recorded graph that make it smaller or faster without changing its results."""
