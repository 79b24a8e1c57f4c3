"""Marginal density estimation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sbi.neural_nets.estimators.shape_handling import reshape_to_batch_event
from torch import Tensor

from sbi_ignite.methods.base import LossArgs, Method


class LossArgsMarginal(LossArgs):
    """Loss arguments of MarginalTrainer.

    Example:
        >>> LossArgsMarginal().exclude_invalid_x is None
        True
    """


@dataclass(frozen=True)
class MarginalLoss:
    """Negative log-probability of x."""

    def __call__(self, model: Any, batch: tuple[Tensor, ...]) -> Tensor:
        """Return losses of shape (batch,)."""
        return model.loss(reshape_to_batch_event(batch[0], event_shape=model.input_shape))


MARGINAL = Method(LossArgsMarginal, lambda trainer: MarginalLoss())
