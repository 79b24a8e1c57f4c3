"""Neural posterior estimation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field
from sbi.neural_nets.estimators.shape_handling import reshape_to_batch_event
from torch import Tensor

from sbi_ignite.methods.base import Loss, LossArgs, Method, ProposalLogProb, TrainerView


class LossArgsNPE(LossArgs):
    """Loss arguments of NPE_A, NPE_B, NPE_C and MNPE.

    Example:
        >>> LossArgsNPE(exclude_invalid_x=True).force_first_round_loss
        False
    """

    calibration_kernel: Callable[..., Any] | None = Field(
        default=None,
        description="Weights losses by x, shape (batch, ...) -> (batch,) (Lueckmann et al. 2017).",
    )
    force_first_round_loss: bool = Field(
        default=False, description="Train by maximum likelihood whatever the proposal was."
    )
    num_atoms: int = Field(default=10, ge=2, description="Atoms of NPE_C's atomic loss.")
    use_combined_loss: bool = Field(
        default=False, description="NPE_C: add the maximum-likelihood loss on prior samples."
    )


@dataclass(frozen=True)
class PosteriorLoss:
    """Negative log-probability of theta given x, weighted by a calibration kernel.

    Attributes:
        calibration_kernel: x of shape (batch, ...) to weights of shape (batch,).
        proposal_log_prob: (theta, x, masks) to the log-probability of the proposal posterior, shape
            (batch,), for rounds after the first; None trains by maximum likelihood.
    """

    calibration_kernel: Callable[[Tensor], Tensor]
    proposal_log_prob: ProposalLogProb | None = None

    def __call__(self, model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return losses of shape (batch,)."""
        theta, x, masks = batch
        if self.proposal_log_prob is None:
            theta = reshape_to_batch_event(theta, event_shape=model.input_shape)
            x = reshape_to_batch_event(x, event_shape=model.condition_shape)
            loss = model.loss(theta, x)
        else:
            loss = -self.proposal_log_prob(theta, x, masks)
        return self.calibration_kernel(x) * loss


def _loss(trainer: TrainerView) -> Loss:
    args = trainer.arguments
    by_likelihood = trainer.first_round or args.force_first_round_loss
    return PosteriorLoss(
        args.calibration_kernel, None if by_likelihood else trainer.proposal_log_prob
    )


def _rows_met(keywords: Mapping[str, Any], first_round: bool) -> int | None:
    """Return 1; None in later rounds, where rows are contrasted with others of their batch."""
    alone = first_round or keywords.get("force_first_round_loss")
    return 1 if alone and not keywords.get("calibration_kernel") else None


NPE = Method(LossArgsNPE, _loss, rows_met=_rows_met)
NPE_ATOMIC = replace(NPE, traces_proposal=True)
