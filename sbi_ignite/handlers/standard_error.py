"""Estimate the standard error of the validation loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from ignite.engine import Engine, Events

from sbi_ignite.world import ONE, World

if TYPE_CHECKING:
    from torch import Tensor

    from sbi_ignite.handlers.epoch_mean import StepOutput

NORMAL_QUARTILES = 1.349
"""The interquartile range of a normal distribution, in standard deviations."""


class ValidationSpread:
    """Standard error of the validation loss, from the quartiles of the rows' losses.

    A single row that the network considers impossible may have a loss of thousands. It would make
    a standard deviation, but not the quartiles, useless as a measure of the other rows.

    Attributes:
        error: The standard error after the last epoch; NaN where the losses of rows are unknown,
            or fewer than four.

    Args:
        world: The processes that share the rows.
    """

    def __init__(self, world: World = ONE) -> None:
        self.error, self._world = math.nan, world
        self._losses: list[Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Collect the losses that the engine's steps return, anew in every epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._losses.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)

    def _add(self, engine: Engine) -> None:
        output: StepOutput = engine.state.output  # type: ignore[assignment] # our steps return it
        if output.losses is not None:
            self._losses.append(output.losses)

    def conclude(self) -> None:
        """Compute the error from what was collected, in all processes at once."""
        self.error = math.nan
        losses = torch.cat(self._losses) if self._losses else torch.empty(0)
        losses = self._world.gather_rows(losses)
        self._losses.clear()
        number = len(losses)
        if number < 4:
            return
        low, high = (losses.kthvalue(1 + round(q * (number - 1))).values for q in (0.25, 0.75))
        self.error = (high - low).item() / NORMAL_QUARTILES / math.sqrt(number)
