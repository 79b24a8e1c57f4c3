"""Losses of batches come in; the mean of the epoch goes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ignite.engine import Engine, Events


@dataclass(frozen=True)
class StepOutput:
    """What one batch contributes to the epoch's mean.

    Attributes:
        loss_sum: Sum of the losses.
        rows: How many losses were summed.
    """

    loss_sum: float
    rows: int


class EpochMean:
    """Mean loss of the epoch, summed in double precision over what the step function returned.

    Args:
        rows: Number of rows to divide by; None divides by the rows that were seen.
    """

    def __init__(self, rows: int | None = None) -> None:
        self._rows = rows
        self._reset()

    def attach(self, engine: Engine) -> None:
        """Reset at the start of an epoch and add after every iteration."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)

    @property
    def value(self) -> float:
        """The mean so far."""
        return self.loss_sum / (self._rows or max(self.rows, 1))

    def _reset(self) -> None:
        self.loss_sum, self.rows = 0.0, 0

    def _add(self, engine: Engine) -> None:
        output: StepOutput = engine.state.output  # type: ignore[assignment] # our steps return it
        self.loss_sum += output.loss_sum
        self.rows += output.rows

    def state_dict(self) -> dict[str, Any]:
        """Return the sums inside the epoch."""
        return {"loss_sum": self.loss_sum, "rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the sums."""
        self.loss_sum, self.rows = state["loss_sum"], state["rows"]
