"""Average the weights of the best epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class _Epoch(NamedTuple):
    """What is kept of an epoch."""

    loss: float
    number: int
    weights: list[Tensor]


class BestEpochs:
    """Keep the weights of the epochs with the lowest losses, and average them.

    The lowest of many noisy losses is a lucky one. The mean of several good networks from one
    training, close enough to be averaged, depends less on luck and is often better than any of
    them (Izmailov et al., 2018; Wortsman et al., 2022).

    Only parameters that are trainable when training starts are kept and averaged; the rest stays as
    the network holds it.

    Args:
        model: The network.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> epochs = BestEpochs(model)
        >>> for number, (loss, weight) in enumerate([(0.2, 1.0), (0.9, 7.0), (0.4, 2.0)]):
        ...     _ = nn.init.constant_(model.weight, weight)
        ...     epochs.update(loss, number, most=3)
        >>> with epochs.mean_shown(2):
        ...     print(model.weight.item(), round(epochs.mean_loss(2), 3))
        1.5 0.3
    """

    def __init__(self, model: nn.Module) -> None:
        self._groups = _by_kind(p for p in model.parameters() if p.requires_grad)
        self._epochs: list[_Epoch] = []

    def __len__(self) -> int:
        return len(self._epochs)

    def update(self, loss: float, number: int, most: int) -> None:
        """Consider the weights that the network holds after an epoch.

        Args:
            loss: Their loss; with NaN they are not kept.
            number: The epoch's number; of equal losses the earlier one is better.
            most: How many epochs to keep, at most.
        """
        if math.isnan(loss) or (len(self._epochs) >= most and loss >= self._epochs[-1].loss):
            return
        self._epochs.append(_Epoch(loss, number, self._weights()))
        self._epochs = sorted(self._epochs, key=lambda epoch: epoch[:2])[:most]

    @property
    def lowest_loss(self) -> float:
        """Loss of the best epoch; infinite before the first."""
        return self._epochs[0].loss if self._epochs else math.inf

    def mean_loss(self, number: int) -> float:
        """Return the mean loss of the best `number` epochs, or of all if there are fewer."""
        losses = [epoch.loss for epoch in self._epochs[:number]]
        return sum(losses) / len(losses)

    @contextmanager
    def mean_shown(self, number: int) -> Iterator[None]:
        """Let the network hold the mean of the best epochs' weights within a block.

        Args:
            number: How many epochs to average; all where there are fewer, of at least one.
        """
        before = self._weights()
        kept = zip(*(epoch.weights for epoch in self._epochs[:number]), strict=True)
        # After a resume, what was kept may be on another device.
        means = [
            torch.stack([weights.to(now.device) for weights in group]).mean(0)
            for group, now in zip(kept, before, strict=True)
        ]
        self._put(means)
        try:
            yield
        finally:
            self._put(before)

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs, best first."""
        return {"epochs": [epoch._asdict() for epoch in self._epochs]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._epochs = [_Epoch(**epoch) for epoch in state["epochs"]]

    def _weights(self) -> list[Tensor]:
        """Return a copy of the weights, one flat tensor per group, which is cheapest."""
        return [torch.cat([p.detach().reshape(-1) for p in group]) for group in self._groups]

    @torch.no_grad()
    def _put(self, weights: Sequence[Tensor]) -> None:
        for group, flat in zip(self._groups, weights, strict=True):
            for parameter, part in zip(group, flat.split([p.numel() for p in group]), strict=True):
                parameter.copy_(part.view_as(parameter))


def _by_kind(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return parameters in groups of one type on one device."""
    groups: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    return list(groups.values())
