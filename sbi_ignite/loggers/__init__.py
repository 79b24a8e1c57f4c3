"""Logging backends, and the object that passes numbers to them without disturbing a training.

`make_loggers` makes what was asked for. `base.py` defines the interface; every backend has a file
of its own. Slow libraries (wandb, mlflow) run in a process of their own (`subprocess_backend.py`),
users' logger objects on a thread (`helper_thread.py`), so that neither can stop, slow or change a
training.
"""

from __future__ import annotations

from sbi_ignite.loggers.base import EPOCH_METRICS, Backend, EpochFigure, EpochRow, RunInfo
from sbi_ignite.loggers.group import Loggers
from sbi_ignite.loggers.make import make_loggers
from sbi_ignite.loggers.memory import Memory

__all__ = [
    "EPOCH_METRICS",
    "Backend",
    "EpochFigure",
    "EpochRow",
    "Loggers",
    "Memory",
    "RunInfo",
    "make_loggers",
]
