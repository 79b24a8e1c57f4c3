"""Neural likelihood estimation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sbi.neural_nets.estimators.shape_handling import reshape_to_batch_event
from torch import Tensor

from sbi_ignite.methods.base import LossArgs, Method


class LossArgsNLE(LossArgs):
    """Loss arguments of NLE_A and MNLE.

    Example:
        >>> LossArgsNLE().exclude_invalid_x is None
        True
    """


@dataclass(frozen=True)
class LikelihoodLoss:
    """Negative log-probability of x given theta."""

    def __call__(self, model: Any, batch: tuple[Tensor, ...]) -> Tensor:
        """Return losses of shape (batch,)."""
        theta, x = batch[0], batch[1]
        theta = reshape_to_batch_event(theta, event_shape=model.condition_shape)
        x = reshape_to_batch_event(x, event_shape=model.input_shape)
        return model.loss(x, condition=theta)


NLE = Method(
    LossArgsNLE,
    lambda trainer: LikelihoodLoss(),
    rows_met=lambda keywords, first_round: 1,
)
