"""Gradients come in; gradients of bounded norm, and the norm before, go out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from sbi_ignite.handlers.events import TrainingEvents


class GradientClipping:
    """Scale the gradients so that their total 2-norm is at most `max_norm`.

    ignite has no such handler; it works between backward pass and optimizer step.

    Args:
        parameters: The parameters whose gradients count.
        max_norm: Largest total norm that is left alone; None clips and measures nothing.

    Example:
        >>> GradientClipping([torch.nn.Parameter(torch.zeros(1))], max_norm=5.0).mean_norm
        nan
    """

    def __init__(self, parameters: Iterable[Tensor], max_norm: float | None) -> None:
        self._parameters = list(parameters)
        self.max_norm = max_norm
        self._norms: Tensor | float = 0.0
        self._steps = 0

    def attach(self, engine: Engine) -> None:
        """Clip after every backward pass of `engine`."""
        if self.max_norm is None:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(TrainingEvents.BACKWARD_COMPLETED, self._clip)

    @property
    def mean_norm(self) -> float:
        """Mean norm before clipping over the steps of the epoch; NaN before the first."""
        return float(self._norms) / self._steps if self._steps else float("nan")

    def _reset(self) -> None:
        self._norms, self._steps = 0.0, 0

    def _clip(self) -> None:
        assert self.max_norm is not None
        # The sum stays on the device: reading it here would wait for the device in every step.
        self._norms = self._norms + clip_grad_norm_(self._parameters, max_norm=self.max_norm)
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the sums inside the epoch."""
        return {"norms": torch.as_tensor(self._norms), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the sums."""
        self._norms, self._steps = state["norms"], state["steps"]
