"""What was asked for comes in (`make_loggers`); an object that logs and never disturbs goes out.

`base.py` holds the words; every backend is a file of its own. Slow libraries (wandb, mlflow) live
in a process of their own behind `courier.py`, objects of other make behind a thread
(`helper_thread.py`), so that neither can stop, slow or change a training.
"""

from __future__ import annotations

from sbi_ignite.loggers.base import EPOCH_METRICS, Backend, EpochRow, RunInfo
from sbi_ignite.loggers.group import Loggers
from sbi_ignite.loggers.make import make_loggers
from sbi_ignite.loggers.memory import Memory

__all__ = [
    "EPOCH_METRICS",
    "Backend",
    "EpochRow",
    "Loggers",
    "Memory",
    "RunInfo",
    "make_loggers",
]
