"""Choose the loss of an sbi trainer's method, given its loss arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import Tensor

from sbi_ignite.bridge.lines import SbiLossArgsVF, private
from sbi_ignite.kernels.embedding import contexts_once, embedding_once, has_parameters
from sbi_ignite.methods.base import Classifier, ClassifierLogits, Loss, ProposalLogProb
from sbi_ignite.methods.contrasts import AtomsInOneOrder
from sbi_ignite.methods.table import known_class, method_of
from sbi_ignite.world import ONE, World


def loss_of(trainer: Any, args: Any, as_sbi: bool, world: World = ONE) -> Loss:
    """Return the loss of a trainer's method.

    A trainer that overrides a method of its loss keeps its own.

    Args:
        trainer: One of sbi's trainers, or of a user's subclass.
        args: sbi's loss arguments of this call; None for likelihood estimation.
        as_sbi: Whether sbi's numbers must be reproduced bit for bit.
        world: The processes that share a batch.
    """
    # A subclass in sbi itself may override the loss, too, before it has a page of its own.
    known = known_class(type(trainer))
    if known is None or not private(trainer).computes_loss_as(known):
        return TrainersOwnLoss(trainer, args)
    if as_sbi and hasattr(args, "calibration_kernel"):
        args = replace(args, calibration_kernel=as_sbi_hands_it_over(args.calibration_kernel))
    loss = method_of(type(trainer)).loss(SbiTrainerView(trainer, args, as_sbi, world))
    return TrainersOwnLoss(trainer, args) if loss is None else loss


@dataclass(frozen=True)
class SbiTrainerView:
    """What the losses in `methods/` may use of one of sbi's trainers; see `TrainerView`.

    Attributes:
        trainer: The trainer.
        arguments: sbi's loss arguments of this call.
        as_sbi: Whether sbi's numbers must be reproduced bit for bit.
        world: The processes that share a batch.
    """

    trainer: Any
    arguments: Any
    as_sbi: bool
    world: World = ONE

    @property
    def first_round(self) -> bool:
        """Whether all simulations were drawn from the prior."""
        return private(self.trainer).round_index == 0

    @property
    def device(self) -> Any:
        """Where the trainer's batches are."""
        return private(self.trainer).device

    @property
    def classifier_logits(self) -> ClassifierLogits:
        """Sbi's way to pair theta and x."""
        return private(self.trainer).classifier_logits

    @property
    def classifier(self) -> Classifier | None:
        """The network, asked for anew each time; None if the user pairs theta and x."""
        return TrainersNetwork(self.trainer) if private(self.trainer).pairs_as_sbi else None

    @property
    def proposal_log_prob(self) -> ProposalLogProb:
        """The trainer's own correction for proposals other than the prior."""
        own, args = private(self.trainer), self.arguments

        def proposal_log_prob(theta: Tensor, x: Tensor, masks: Tensor) -> Tensor:
            # Fields are passed as they are: sbi copies the proposal, network included, for every
            # batch.
            with self._faster(len(x)):
                return own.proposal_log_prob(theta, x, masks, args.proposal)

        return proposal_log_prob

    @contextmanager
    def _faster(self, num_rows: int) -> Iterator[None]:
        """Draw atoms, and compute what they have in common, faster than sbi; not in sbi's form."""
        with ExitStack() as stack:
            stack.enter_context(self._embedding_once(num_rows))
            own = private(self.trainer)
            if not self.as_sbi and own.loss_and_proposal_are_sbis_own:
                stack.enter_context(AtomsInOneOrder())
                stack.enter_context(contexts_once(own.network, num_rows))
            yield

    def _embedding_once(self, num_rows: int) -> AbstractContextManager[None]:
        """Embed every x once, not once for each of its atoms, where bits may differ from sbi's."""
        embedding = getattr(private(self.trainer).network, "embedding_net", None)
        if self.as_sbi or not has_parameters(embedding):
            return nullcontext()
        return embedding_once(embedding, num_rows)


@dataclass(frozen=True)
class TrainersNetwork:
    """The network that a trainer has at the time of the call.

    Attributes:
        trainer: The trainer.
    """

    trainer: Any

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return the network's output, shape (batch, 1)."""
        return private(self.trainer).network(theta, x)


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
        trainer: One of sbi's trainers.
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
        return private(self.trainer).losses(batch, args)
