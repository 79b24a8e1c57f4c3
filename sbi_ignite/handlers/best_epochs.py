"""Epochs come in; the mean of the weights of the best ones goes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from sbi_ignite.handlers.best_weights import copy_of


class _Epoch(NamedTuple):
    """What is kept of an epoch."""

    loss: float
    number: int
    weights: dict[str, Any]


class BestEpochs:
    """Keep the weights of the epochs with the lowest losses, and average them.

    The lowest of many noisy losses is a lucky one. The mean of several good networks from one
    training, close enough to be averaged, depends less on luck and is often better than any of
    them (Izmailov et al., 2018; Wortsman et al., 2022).

    Trainable parameters are averaged; buffers and frozen parameters are those of the best epoch.

    Example:
        >>> model, epochs = nn.Linear(1, 1), BestEpochs()
        >>> for number, (loss, weight) in enumerate([(0.2, 1.0), (0.9, 7.0), (0.4, 2.0)]):
        ...     _ = nn.init.constant_(model.weight, weight)
        ...     epochs.update(loss, number, model, most=2)
        >>> epochs.mean(model)["weight"].item(), round(epochs.mean_loss, 3)
        (1.5, 0.3)
    """

    def __init__(self) -> None:
        self._epochs: list[_Epoch] = []

    def __len__(self) -> int:
        return len(self._epochs)

    def update(self, loss: float, number: int, model: nn.Module, most: int) -> None:
        """Look at an epoch.

        Args:
            loss: Its loss; with NaN it is not kept.
            number: Its number; of equal losses the earlier one is better.
            model: Holds its weights.
            most: How many epochs to keep.
        """
        full = len(self._epochs) >= most
        if loss < self._epochs[-1].loss if full else loss == loss:
            self._epochs.append(_Epoch(loss, number, copy_of(model.state_dict())))
            self._epochs = sorted(self._epochs, key=lambda epoch: epoch[:2])[:most]

    @property
    def mean_loss(self) -> float:
        """Mean of the losses of the epochs that are kept, at least one."""
        return sum(epoch.loss for epoch in self._epochs) / len(self._epochs)

    def mean(self, model: nn.Module) -> dict[str, Any]:
        """Return the mean of the weights that are kept.

        Args:
            model: Says which of its weights are trained.
        """
        live = model.state_dict(keep_vars=True)
        mean = dict(self._epochs[0].weights)
        for name in mean:
            if live[name].requires_grad:
                mean[name] = torch.stack([epoch.weights[name] for epoch in self._epochs]).mean(0)
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs, best first."""
        return {"epochs": [epoch._asdict() for epoch in self._epochs]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._epochs = [_Epoch(**epoch) for epoch in state["epochs"]]
