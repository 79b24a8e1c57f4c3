"""Statuses of runs, as run.json names them; imports nothing, so that scripts can ask quickly."""

from __future__ import annotations

FINISHED = frozenset({"complete", "pruned"})
"""Those of runs that have nothing left to train."""
