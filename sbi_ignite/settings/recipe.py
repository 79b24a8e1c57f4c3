"""The number of training rows in, the fields of the recommended recipe out: its numbers alone.

They were chosen by measurement; `benchmarks/time_to_quality.py` compares them with sbi's defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sbi_ignite.settings.averaging import WeightAveraging
from sbi_ignite.settings.schedule import LRSchedule
from sbi_ignite.settings.stage import Stage

__all__ = ["RECIPES", "fast"]


def fast(num_rows: int) -> dict[str, Any]:
    """Return the fields of `TrainConfig` that `TrainConfig.fast()` fills in.

    A high rate with averaged weights finds a good optimum soon; what weight decay is worth depends
    on the task (it helps where the network overfits and hurts sharp posteriors), so that it comes
    second, from the best weights, and is kept only where it helped.

    Args:
        num_rows: Rows that are trained on, at least 1.

    Returns:
        Values by field.

    Example:
        >>> fast(100_000)["batch_size"]
        1000
    """
    decay = min(1.0, round(1000 / num_rows, 4))
    return {
        "optimizer": "adamw",
        "batch_size": min(num_rows, max(200, min(num_rows // 100, 1000))),
        "learning_rate": min(8e-3, max(4e-3, round(8e-3 * (num_rows / 1000) ** -0.3, 5))),
        "lr_schedule": LRSchedule("constant", warmup_steps=50),
        "averaging": WeightAveraging("power", factor=10.0),
        "clip_max_norm": 5.0,
        "weight_decay": 0.0,
        "stages": (
            Stage(weight_decay=0.0, patience=5, patience_steps=60),
            Stage(weight_decay=decay, patience=5, patience_steps=60),
            Stage(weight_decay="best", lr_factor=0.3, patience=5, patience_steps=60),
        ),
    }


RECIPES: Mapping[str, Callable[[int], dict[str, Any]]] = {"fast": fast}
"""Recipes by the name that `TrainConfig.recipe` takes."""
