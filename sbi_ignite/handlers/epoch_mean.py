"""Compute the mean loss of an epoch from the losses of its batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from sbi_ignite.world import ONE, World

MOST_UNREAD = 128
"""Losses that may wait on a device, at most. Reading one waits for all work queued there, so
they are read together; a loss that is not finite is noticed after at most this many steps."""


@dataclass(frozen=True)
class StepOutput:
    """What one batch contributes to the epoch's mean.

    Attributes:
        loss: Sum of the losses, or their mean; a tensor of shape () where it is still on a device.
        rows: How many losses were summed.
        times: Factor for `loss`: `rows` where it is a mean.
        losses: The losses of the rows, shape (rows,), of a step that keeps them.
        refused: Makes the error to raise where the loss, once it is read, is not finite.
    """

    loss: float | Tensor
    rows: int
    times: int = 1
    losses: Tensor | None = None
    refused: Callable[[], Exception] | None = None

    @property
    def loss_sum(self) -> float:
        """Sum of the losses; waits for the device if that is still busy."""
        return float(self.loss) * self.times


class EpochMean:
    """Mean loss of the epoch, summed in double precision over what the step function returned.

    Losses on a device are read `MOST_UNREAD` at a time, and added up in the order of their steps.

    Args:
        rows: Number of rows to divide by; None divides by the rows that were seen.
        world: The processes that share the rows.
    """

    def __init__(self, rows: int | None = None, world: World = ONE) -> None:
        self._rows, self._world = rows, world
        self._reset()

    def attach(self, engine: Engine) -> None:
        """Reset at the start of an epoch and add after every iteration."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)

    @property
    def value(self) -> float:
        """The mean so far, over the rows of all processes; NaN where no row was seen.

        Raises:
            NonFiniteLossError: If one of the losses that are read now is not finite, and its step
                refuses that.
        """
        self.read()
        loss_sum, rows = self._world.sums(self.loss_sum, self.rows)
        return loss_sum / (self._rows or rows) if rows else math.nan

    def _reset(self) -> None:
        self.loss_sum, self.rows = 0.0, 0
        self._unread: list[StepOutput] = []

    def _add(self, engine: Engine) -> None:
        output: StepOutput = engine.state.output  # type: ignore[assignment] # our steps return it
        self.rows += output.rows
        if isinstance(output.loss, float):
            self.loss_sum += output.loss_sum
            return
        self._unread.append(output)
        if len(self._unread) == MOST_UNREAD:
            self.read()

    def read(self) -> None:
        """Add the losses that wait on a device.

        Raises:
            NonFiniteLossError: See `value`.
        """
        unread, self._unread = self._unread, []
        waiting = [output.loss for output in unread if isinstance(output.loss, Tensor)]
        losses = torch.stack(waiting).tolist() if waiting else []
        for output, loss in zip(unread, losses, strict=True):
            if output.refused is not None and not math.isfinite(loss):
                raise output.refused()
            self.loss_sum += loss * output.times

    def state_dict(self) -> dict[str, Any]:
        """Return the sums inside the epoch."""
        self.read()
        return {"loss_sum": self.loss_sum, "rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the sums."""
        self._unread = []
        self.loss_sum, self.rows = state["loss_sum"], state["rows"]
