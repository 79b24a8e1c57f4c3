"""The numbers of the recommended recipe, for a number of training rows and a kind of loss.

They were chosen by measurement; `benchmarks/time_to_quality.py` compares them with sbi's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sbi_ignite.settings.averaging import WeightAveraging
from sbi_ignite.settings.schedule import LRSchedule
from sbi_ignite.settings.stage import Stage

__all__ = ["RECIPES", "fast"]


def fast(num_rows: int, contrastive: bool = False) -> dict[str, Any]:
    """Return the fields of `TrainConfig` that `TrainConfig.fast()` fills in.

    A high rate with averaged weights finds a good optimum quickly. A long warm-up leads up to it:
    where x says little about theta, the best network is a smooth one, close to the initial one;
    training passes it before the rate is high, and does not come back to it. Whether more weight
    decay helps depends on the task (it helps where the network overfits and hurts sharp
    posteriors), so it comes in the second stage, from the best weights, and is kept only where it
    helped. Two more stages with lower rates remove what the noise has left.

    The numbers were chosen on the tuning tasks of `benchmarks/tasks.py`, with seeds that are not
    used to judge results (11 to 36 cells of a task and a method with 1,000 simulations, 8 to 12
    with 10,000); all but the rate and the length of the warm-up were chosen at a rate of 5e-3:

    * Batches of 100 (N / 1000)^(1/3) rows, at least 50 and at most 1,000, made equal. With 1,000
      simulations, batches of 130 and 200 reached sbi's loss a quarter later, and with 60 or 80 flow
      matching took longer or never reached it. With 10,000, batches of 100 were slower than 200,
      and with 300 a sharp posterior ended at a higher loss.
    * A rate of 3e-5 per row of such a batch, at most 5e-3; setting batch_size does not change it.
      With 1,000 simulations, 5e-3 missed sbi's loss in 3 of 24 cells, 7e-3 in 3 of 10, and 3e-3 in
      1 of the 24, while reaching it 1.4 times as soon on average; 2.5e-3 was a little slower in 17
      cells, 4e-3 as good in 11. The bound applies from 9,000 rows on, where the other numbers were
      chosen with it.
    * A warm-up of 200 (N / 1000)^(1/3) steps, starting at a third of the rate. With 1,000
      simulations, 100 steps missed sbi's loss in 1 of 11 cells in which 200 reached it; starting
      from zero, it was reached a seventh later, with 10,000 a third later. With 10,000, 200 to
      1,000 steps were equally good.
    * A little weight decay from the beginning, 3 % of the second stage's. Without it, 1 of 20 cells
      never reached sbi's loss; with it, all did; with 10 %, sharp posteriors ended up to 0.3
      higher.
    * Averages over about the last tenth of the steps. The last fifth took longer.
    * The first stage waits 15 epochs (10 with 9,000 rows and more), the others 10, and all at
      least 60 steps, for the loss to fall by a twentieth of its standard error. With 10 throughout,
      flow matching mistook a plateau for the end in 1 of 6 cells. Without a minimum improvement,
      one cell took 1.2 times as long as sbi, and with 10,000 simulations and a lower rate some
      never ended; requiring a tenth ended some too soon.
    * The second stage is at most half as long as the first, the others a fifth of all before them:
      twice these lengths gained nothing, and trainings took half as long again. Without the second
      stage, 3 of 22 cells ended above sbi's loss; the fourth lowered the loss in 5 of 5 cells of
      flow matching. With more than 9,000 rows the last two may be longer, with 90,000 as long as
      all before: where a posterior is sharp, the loss was still falling when they ended, and a maf
      on three clusters ended at 1.81 to 1.82 instead of 1.85. They then wait up to 20 epochs, since
      such a loss falls in jumps. A first stage with a patience of 20 epochs took just as much
      longer, to reach 1.83.
    * With fewer than 9,000 rows, the mean of the ten best epochs replaces the best one: with 1,000
      simulations ratio estimation ended lower in 18 of 18 cells, by 0.007 on average, and a maf in
      10 of 17. With five epochs, in 16 of 18 and 1 of 6; with twenty, in 16 of 18. With the mean,
      the later stages need not wait longer than 8 epochs; waiting 6 lost half of its gain.
    * Ratio estimation has a rate of 1e-4 per row of a batch, at most 1.5e-2, three times the weight
      decay in the second stage, and the mean of the best epochs with any number of rows. It ended
      lower on tuning tasks in 18 of 18 cells with 1,000 simulations, by 0.065 on average, in 14 of
      18 with 200, and in 8 of 9 with 10,000 (with 1.2e-2 as well as 1.6e-2), and took four fifths
      of the time with 200 and 10,000. With 7e-3 and 1,000 simulations, it was lower in 21 of 27,
      with 1.4e-2 as low as with 1e-2, and with 2e-2 some missed sbi's loss. With the higher rate
      alone, 17 of 18 were lower, by 0.047. Another kind of network (mlp) was lower in 9 of 9,
      losses over two pairs (NRE_A) in 5 of 6, and those with an independent class (NRE_C) in 4 of
      6. Balanced ratio estimation ended higher with 7e-3 in 5 of 6, once by 0.3, and flow matching
      with 5e-3 in 3 of 3: they keep the numbers for flows.
    * Its first stage has a tenth of the second's weight decay, and a warm-up of
      60 (N / 1000)^(1/3) steps. Where x is observed with noise of two widths, its classifier
      overfits before validation shows it: with these numbers, 1 of 24 cells on two instruments
      missed sbi's loss instead of 4, and the others reached it sooner. Over all tuning tasks, it
      ended lower in 30 of 48 cells with 1,000 simulations, in 32 of 48 with 200, with NRE_A in 27
      of 32, NRE_C 30 of 32, mlp 19 of 32; with 10,000 and 100,000 simulations as low, in nine
      tenths of the time. With a third of the second stage's weight decay, two instruments ended
      lower still, and a ring 0.04 higher.

    Args:
        num_rows: Rows that are trained on, at least 1.
        contrastive: Whether the loss is one of ratio estimation, which sets every row against
            others of its batch.

    Returns:
        Values by field.

    Example:
        >>> recipe = fast(9_000)
        >>> recipe["batch_size"], recipe["learning_rate"], recipe["lr_schedule"].warmup_steps
        (205, 0.005, 416)
    """
    size = (num_rows / 1000) ** (1 / 3)
    rows_per_batch = max(50, min(round(100 * size), 1000))
    rate, most = (1e-4, 1.5e-2) if contrastive else (3e-5, 5e-3)
    warmup, share = (60, 0.1) if contrastive else (200, 0.03)
    decay = min(1.0, round(1000 / num_rows, 4))
    more = round(3 * decay, 4) if contrastive else decay
    little = round(share * more, 5)
    many = max(1.0, num_rows / 9_000)
    length = round(min(0.2 * many**0.7, 1.0), 2)
    averaged = contrastive or num_rows < 9_000
    counted: dict[str, Any] = {"patience_steps": 60, "min_improvement": 0.05}
    if averaged:
        counted["average_best"] = 10
    later: dict[str, Any] = {
        "patience": round((8 if averaged else 10) * min(many**0.3, 2)),
        "reset_optimizer": True,
        "reset_average": True,
        **counted,
    }
    return {
        "optimizer": "adamw",
        "batch_size": _equal(num_rows, rows_per_batch),
        "learning_rate": min(round(rate * rows_per_batch, 5), most),
        "lr_schedule": LRSchedule(
            "constant", warmup_steps=max(30, round(warmup * size)), warmup_start=0.33
        ),
        "averaging": WeightAveraging("power", factor=10.0),
        "clip_max_norm": 5.0,
        "weight_decay": little,
        "stages": (
            Stage(weight_decay=little, patience=_patience(size), **counted),
            Stage(weight_decay=more, max_relative_length=0.5, **later),
            Stage(weight_decay="best", lr_factor=0.3, max_relative_length=length, **later),
            Stage(weight_decay="best", lr_factor=0.1, max_relative_length=length, **later),
        ),
    }


def _patience(size: float) -> int:
    """Return the epochs to wait: fewer where each has more steps and a less noisy loss."""
    return max(10, min(round(15 / math.sqrt(size)), 15))


def _equal(num_rows: int, most: int) -> int:
    """Return the batch size, at most `most`, that makes batches as equal as possible."""
    return math.ceil(num_rows / math.ceil(num_rows / most))


RECIPES: Mapping[str, Callable[[int, bool], dict[str, Any]]] = {"fast": fast}
"""Recipes by the name that `TrainConfig.recipe` takes."""
