"""Compute the losses of a batch and the gradients of their mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sbi_ignite.capture.loss_values import check_losses

Backward = Callable[[], object]
LossFunction = Callable[[Any, Any], Tensor]


class Gradients(Protocol):
    """Losses of a batch and the gradients of their mean.

    The two are separate, so that losses can be checked before any gradient is stored.
    """

    def __call__(self, batch: Any, /) -> tuple[Tensor, Backward]:
        """Return losses, shape (batch,) or (), and a function that adds gradients to `p.grad`."""
        ...


@dataclass
class EagerGradients:
    """Forward pass now, backward pass when asked: plain torch.

    What the loss function returns is checked: thoroughly for the first batch, and later for what
    torch cannot differentiate.

    Attributes:
        model: The network.
        loss: Losses of a batch, shape (batch,), or their mean.
    """

    model: nn.Module
    loss: LossFunction
    _first: bool = field(default=True, init=False, repr=False)

    def __call__(self, batch: Any) -> tuple[Tensor, Backward]:
        """Return losses and the backward pass from their mean."""
        losses = self.loss(self.model, batch)
        if self._first or not isinstance(losses, Tensor) or not losses.requires_grad:
            check_losses(losses, training=True)
            self._first = False
        return losses, torch.mean(losses).backward


def hand_over(parameters: Iterable[Tensor], gradients: Iterable[Tensor | None]) -> None:
    """Store gradients as a backward pass does: the first is kept, later ones are added.

    Args:
        parameters: Leaves that require gradients.
        gradients: One for each, in the same layout, owned by nothing else; None if the parameter
            has no part in the loss.
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad.add_(gradient)
