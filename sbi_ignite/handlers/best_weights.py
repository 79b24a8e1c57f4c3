"""Keep the weights of the best epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from sbi_ignite.callback import TrainingState, watched_loss


class BestWeights:
    """Keep a copy of the weights with the lowest validation loss.

    Without validation data the training loss decides. NaN is never an improvement. The weights are
    kept in memory, on the model's device.
    """

    def __init__(self) -> None:
        self.loss = math.inf
        self.epoch = 0
        self.weights: dict[str, Any] | None = None

    def update(self, state: TrainingState) -> None:
        """Consider the epoch that has just ended."""
        loss = watched_loss(state)
        if loss < self.loss:
            self.take(loss, state)
        state.note_best(self.loss, self.epoch)

    def take(self, loss: float, state: TrainingState) -> None:
        """Treat what the model holds now as the best weights, whatever its loss."""
        self.loss, self.epoch = loss, state.epoch
        self.weights = copy_of(state.model.state_dict())
        state.note_best(self.loss, self.epoch)

    def restore(self, model: nn.Module) -> None:
        """Load the best weights into `model`; without any it stays as it is."""
        if self.weights is not None:
            model.load_state_dict(self.weights)

    def conclude(self, model: nn.Module) -> None:
        """Leave the best weights in `model` at a regular end of training."""
        self.restore(model)

    def state_dict(self) -> dict[str, Any]:
        """Return loss, epoch and weights."""
        return {"loss": self.loss, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.loss, self.epoch, self.weights = state["loss"], state["epoch"], state["weights"]


def copy_of(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a state dict that later steps do not change."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else deepcopy(value)
        for name, value in weights.items()
    }
