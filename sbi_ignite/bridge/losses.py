"""Choose the loss of an sbi trainer's method, given its loss arguments."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from types import BuiltinFunctionType, FunctionType
from typing import Any

from sbi.inference import BNRE, NRE_A, NRE_B, NRE_C
from sbi.inference.trainers._contracts import LossArgsVF as SbiLossArgsVF
from sbi.inference.trainers.nle.nle_base import LikelihoodEstimatorTrainer
from sbi.inference.trainers.npe.npe_base import PosteriorEstimatorTrainer
from sbi.inference.trainers.vfpe.base_vf_inference import VectorFieldTrainer
from torch import Tensor

from sbi_ignite.bridge.ownership import is_sbis_own
from sbi_ignite.methods.base import Loss
from sbi_ignite.methods.contrasts import InBatchContrasts
from sbi_ignite.methods.nle import LikelihoodLoss
from sbi_ignite.methods.npe import PosteriorLoss
from sbi_ignite.methods.nre import BalancedRatioLoss, RatioLossA, RatioLossB, RatioLossC
from sbi_ignite.methods.vector_field import VectorFieldLoss

_CONTRASTS = "_classifier_logits"


def loss_of(trainer: Any, args: Any, as_sbi: bool) -> Loss:
    """Return the loss of a trainer's method.

    A trainer that overrides `_loss` or `_get_losses` keeps its own.

    Args:
        trainer: One of sbi's trainers, or of a user's subclass.
        args: sbi's loss arguments of this call; None for likelihood estimation.
        as_sbi: Whether sbi's numbers must be reproduced bit for bit.
    """
    make = _LOSSES.get(getattr(type(trainer), "_loss", None))
    if make is None or not all(is_sbis_own(trainer, name) for name in ("_loss", "_get_losses")):
        return TrainersOwnLoss(trainer, args)
    if as_sbi and hasattr(args, "calibration_kernel"):
        args = replace(args, calibration_kernel=as_sbi_hands_it_over(args.calibration_kernel))
    loss: Any = make(trainer, args)
    if as_sbi or not hasattr(loss, "classifier_logits"):
        return loss
    if is_sbis_own(trainer, _CONTRASTS):
        loss = replace(loss, classifier_logits=InBatchContrasts(trainer))
    return replace(loss, by_row=True)


def as_sbi_hands_it_over(kernel: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a calibration kernel that, as in sbi, is copied for every batch.

    This only matters for kernels with state; plain functions are never copied.
    """
    if isinstance(kernel, FunctionType | BuiltinFunctionType):
        return kernel
    return lambda x: deepcopy(kernel)(x)


@dataclass(frozen=True)
class TrainersOwnLoss:
    """The losses that a trainer computes itself.

    Attributes:
        trainer: Has `_get_losses(batch, loss_args)`.
        args: sbi's loss arguments.
    """

    trainer: Any
    args: Any

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """Return the losses of a training batch."""
        # sbi trains vector fields at random times and validates at fixed ones.
        at_random_times = isinstance(self.args, SbiLossArgsVF)
        return self._losses(batch, replace(self.args, times=None) if at_random_times else self.args)

    def validate(self, model: Any, batch: Any) -> Tensor:
        """Return the losses of a validation batch."""
        return self._losses(batch, self.args)

    def _losses(self, batch: Any, args: Any) -> Tensor:
        if args is None:
            return self.trainer._get_losses(batch=batch)
        return self.trainer._get_losses(batch=batch, loss_args=args)


def _posterior(trainer: Any, args: Any) -> Loss:
    if trainer._round == 0 or args.force_first_round_loss:
        return PosteriorLoss(args.calibration_kernel)

    def proposal_log_prob(theta: Tensor, x: Tensor, masks: Tensor) -> Tensor:
        # Fields are passed as they are: sbi copies the proposal, network included, for every batch.
        return trainer._log_prob_proposal_posterior(theta, x, masks, args.proposal)

    return PosteriorLoss(args.calibration_kernel, proposal_log_prob)


def _vector_field(trainer: Any, args: Any) -> Loss:
    if trainer._round > 0 and not args.force_first_round_loss:
        return TrainersOwnLoss(trainer, args)
    return VectorFieldLoss(args.calibration_kernel, args.times.to(trainer._device))


_LOSSES: dict[Any, Callable[[Any, Any], Loss]] = {
    PosteriorEstimatorTrainer._loss: _posterior,
    LikelihoodEstimatorTrainer._loss: lambda trainer, args: LikelihoodLoss(),
    NRE_A._loss: lambda trainer, args: RatioLossA(trainer._classifier_logits),
    NRE_B._loss: lambda trainer, args: RatioLossB(trainer._classifier_logits, args.num_atoms),
    NRE_C._loss: lambda trainer, args: RatioLossC(
        trainer._classifier_logits, args.num_atoms, args.gamma
    ),
    BNRE._loss: lambda trainer, args: BalancedRatioLoss(
        trainer._classifier_logits, args.regularization_strength
    ),
    VectorFieldTrainer._loss: _vector_field,
}
