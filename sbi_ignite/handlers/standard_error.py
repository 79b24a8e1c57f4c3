"""Estimate the standard error of the validation loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from ignite.engine import Engine, Events

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
    """

    def __init__(self) -> None:
        self.error = math.nan
        self._losses: list[Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Collect the losses that the engine's steps return, anew in every epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._losses.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._conclude)

    def _add(self, engine: Engine) -> None:
        output: StepOutput = engine.state.output  # type: ignore[assignment] # our steps return it
        if output.losses is not None:
            self._losses.append(output.losses)

    def _conclude(self) -> None:
        self.error, number = math.nan, sum(map(len, self._losses))
        if number < 4:
            return
        losses = torch.cat(self._losses)
        self._losses.clear()
        low, high = (losses.kthvalue(1 + round(q * (number - 1))).values for q in (0.25, 0.75))
        self.error = (high - low).item() / NORMAL_QUARTILES / math.sqrt(number)
