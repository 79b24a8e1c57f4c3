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
    second, from the best weights, and is kept only where it helped. A third stage with a lower rate
    takes what noise has left.

    The numbers were chosen on the tuning tasks of `benchmarks/tasks.py` (28 cells with 1,000
    simulations, 4 with 10,000, one seed):

    * Rate 5e-3 at every size, after a warm-up of 30 steps. 8e-3 was sooner, but ended above sbi's
      loss in 3 of 28 cells; so did a warm-up of 10 steps in 4. With 10,000 simulations, 2e-3
      reached sbi's loss in a linear task where 5e-3 stayed 0.008 above it, but went on improving
      slowly elsewhere, for twice as long as sbi.
    * Batches of 200 as in sbi, of N / 100 rows in larger data. Batches of 50 have cheaper
      steps, but flow matching then ended above sbi's loss in 3 of 3 cells.
    * Averages over about the last tenth of the steps; the last quarter was as good.
    * A stage waits 10 epochs, and at least 60 steps. With 1,000 simulations 5 epochs and 30 steps
      ended no cell above sbi's loss either, and a little higher; with 10,000 they took noise for
      the end.
    * The second stage is at most half as long as the first, the third a quarter of both: the whole
      then took 0.43 of sbi's time instead of 0.60 with twice the lengths, which gained nothing.
      Without the second stage, 3 of 22 cells ended above sbi's loss.

    Args:
        num_rows: Rows that are trained on, at least 1.

    Returns:
        Values by field.

    Example:
        >>> fast(100_000)["batch_size"]
        1000
    """
    decay = min(1.0, round(1000 / num_rows, 4))
    patient: dict[str, Any] = {"patience": 10, "patience_steps": 60}
    fresh: dict[str, Any] = {"reset_optimizer": True, "reset_average": True}
    return {
        "optimizer": "adamw",
        "batch_size": min(num_rows, max(200, min(num_rows // 100, 1000))),
        "learning_rate": 5e-3,
        "lr_schedule": LRSchedule("constant", warmup_steps=30),
        "averaging": WeightAveraging("power", factor=10.0),
        "clip_max_norm": 5.0,
        "weight_decay": 0.0,
        "stages": (
            Stage(weight_decay=0.0, **patient),
            Stage(weight_decay=decay, max_relative_length=0.5, **patient, **fresh),
            Stage(weight_decay="best", lr_factor=0.3, max_relative_length=0.25, **patient, **fresh),
        ),
    }


RECIPES: Mapping[str, Callable[[int], dict[str, Any]]] = {"fast": fast}
"""Recipes by the name that `TrainConfig.recipe` takes."""
