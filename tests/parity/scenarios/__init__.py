"""Small programs that only use sbi's public interface, each run with sbi and with sbi_ignite.

A scenario gets the module whose trainers it is to use (`sbi.inference` or
`sbi_ignite.inference`) and a dictionary for whatever else it wants compared, and returns the
trainers it trained. Nothing here may import sbi_ignite: plain sbi runs it too.
"""

from __future__ import annotations

import importlib

from .registry import CONTROLS, SCENARIOS

__all__ = ["CONTROLS", "SCENARIOS"]

PARTS = (
    "methods",
    "stopping",
    "keywords",
    "loaders",
    "networks",
    "trainers",
    "trackers",
    "controls",
)
"""Modules that register scenarios, in the order in which every side runs them."""

for _part in PARTS:
    importlib.import_module(f"{__name__}.{_part}")
