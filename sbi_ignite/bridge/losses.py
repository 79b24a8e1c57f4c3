"""Choose the loss of an sbi trainer's method, given its loss arguments."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import sbi
from sbi.inference.trainers._contracts import LossArgsVF as SbiLossArgsVF
from torch import Tensor

from sbi_ignite.methods.base import Classifier, ClassifierLogits, Loss, ProposalLogProb
from sbi_ignite.methods.table import known_class, method_of

LOSS_METHODS = ("_loss", "_get_losses", "loss")
"""Methods with which a trainer computes its loss; only MarginalTrainer has the last one."""

_NOT_USERS = (f"{Path(str(sbi.__file__)).parent}/", f"{Path(__file__).parents[1]}/")


def loss_of(trainer: Any, args: Any, as_sbi: bool) -> Loss:
    """Return the loss of a trainer's method.

    A trainer that overrides one of `LOSS_METHODS` keeps its own.

    Args:
        trainer: One of sbi's trainers, or of a user's subclass.
        args: sbi's loss arguments of this call; None for likelihood estimation.
        as_sbi: Whether sbi's numbers must be reproduced bit for bit.
    """
    if not _computes_loss_as_known(trainer):
        return TrainersOwnLoss(trainer, args)
    if as_sbi and hasattr(args, "calibration_kernel"):
        args = replace(args, calibration_kernel=as_sbi_hands_it_over(args.calibration_kernel))
    loss = method_of(type(trainer)).loss(SbiTrainerView(trainer, args, as_sbi))
    return TrainersOwnLoss(trainer, args) if loss is None else loss


def _computes_loss_as_known(trainer: Any) -> bool:
    """Return whether a trainer's loss is the one that its page in `methods/` has.

    A subclass in sbi itself may override `_loss` too, before it has a page of its own.
    """
    known = known_class(type(trainer))
    return known is not None and all(
        is_sbis_own(trainer, name) and getattr(type(trainer), name) is getattr(known, name)
        for name in LOSS_METHODS
        if hasattr(known, name)
    )


@dataclass(frozen=True)
class SbiTrainerView:
    """What the losses in `methods/` may use of one of sbi's trainers; see `TrainerView`.

    Attributes:
        trainer: The trainer.
        arguments: sbi's loss arguments of this call.
        as_sbi: Whether sbi's numbers must be reproduced bit for bit.
    """

    trainer: Any
    arguments: Any
    as_sbi: bool

    @property
    def first_round(self) -> bool:
        """Whether all simulations were drawn from the prior."""
        return self.trainer._round == 0

    @property
    def device(self) -> Any:
        """Where the trainer's batches are."""
        return self.trainer._device

    @property
    def classifier_logits(self) -> ClassifierLogits:
        """Sbi's way to pair theta and x."""
        return self.trainer._classifier_logits

    @property
    def classifier(self) -> Classifier | None:
        """The network, asked for anew each time; None if the user pairs theta and x."""
        if not is_sbis_own(self.trainer, "_classifier_logits"):
            return None
        return TrainersNetwork(self.trainer)

    @property
    def proposal_log_prob(self) -> ProposalLogProb:
        """The trainer's own correction for proposals other than the prior."""
        trainer, args = self.trainer, self.arguments

        def proposal_log_prob(theta: Tensor, x: Tensor, masks: Tensor) -> Tensor:
            # Fields are passed as they are: sbi copies the proposal, network included, for every
            # batch.
            return trainer._log_prob_proposal_posterior(theta, x, masks, args.proposal)

        return proposal_log_prob


@dataclass(frozen=True)
class TrainersNetwork:
    """The network that a trainer has at the time of the call.

    Attributes:
        trainer: The trainer.
    """

    trainer: Any

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return the network's output, shape (batch, 1)."""
        return self.trainer._neural_net(theta, x)


def is_sbis_own(trainer: Any, name: str) -> bool:
    """Return whether a method is sbi's or ours, overridden by neither a user's class nor instance.

    The file of the code decides: a wrapper made with functools.wraps has the wrapped names.
    """
    code = getattr(getattr(type(trainer), name, None), "__code__", None)
    return (
        name not in vars(trainer) and code is not None and code.co_filename.startswith(_NOT_USERS)
    )


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
        trainer: Has `_get_losses(batch, loss_args)`, or `loss(x)` if it is a MarginalTrainer.
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
        if not hasattr(self.trainer, "_get_losses"):
            return self.trainer.loss(batch[0])
        if args is None:
            return self.trainer._get_losses(batch=batch)
        return self.trainer._get_losses(batch=batch, loss_args=args)
