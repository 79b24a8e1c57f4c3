"""Settings of a training: checked values, each with its origin.

Precedence, decided in `resolve` alone: call > environment > file > default, field by field.
"""

from sbi_ignite.settings.averaging import WeightAveraging
from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.checkpoint import CheckpointConfig
from sbi_ignite.settings.early_stopping import EarlyStopping
from sbi_ignite.settings.logging_config import LoggingConfig
from sbi_ignite.settings.origin import Origin
from sbi_ignite.settings.resolve import resolve
from sbi_ignite.settings.resolved import Resolved
from sbi_ignite.settings.schedule import LRSchedule
from sbi_ignite.settings.sources import valid_variables
from sbi_ignite.settings.stage import Stage
from sbi_ignite.settings.train import TrainConfig

__all__ = [
    "CheckpointConfig",
    "EarlyStopping",
    "LRSchedule",
    "LoggingConfig",
    "Origin",
    "Resolved",
    "Settings",
    "Stage",
    "TrainConfig",
    "WeightAveraging",
    "resolve",
    "valid_variables",
]
