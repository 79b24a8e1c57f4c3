"""Keep the weights of the best epoch."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from sbi_ignite.callback import TrainingState, watched_loss


class BestWeights:
    """Keep a copy of the weights with the lowest validation loss.

    Without validation data the training loss decides. NaN is never an improvement. The weights are
    kept in memory, on the model's device; their loss and epoch are in the training's state.

    Args:
        state: The state of the training.
    """

    def __init__(self, state: TrainingState) -> None:
        self._state = state
        self.weights: dict[str, Any] | None = None

    @property
    def loss(self) -> float:
        """Loss of the best weights, infinite without any."""
        return self._state.best_validation_loss

    @property
    def epoch(self) -> int:
        """Epoch of the best weights, counted from 1; 0 without any."""
        return self._state.best_epoch

    def update(self) -> None:
        """Consider the epoch that has just ended."""
        loss = watched_loss(self._state)
        if loss < self.loss:
            self.take(loss)
        self._state.note_best(self.loss, self.epoch)

    def take(self, loss: float) -> None:
        """Treat what the model holds now as the best weights, whatever its loss."""
        self.weights = copy_of(self._state.model.state_dict())
        self._state.note_best(loss, self._state.epoch)

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
        self._state.best_validation_loss, self._state.best_epoch = state["loss"], state["epoch"]
        self.weights = state["weights"]


def copy_of(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a state dict that later steps do not change."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else deepcopy(value)
        for name, value in weights.items()
    }
