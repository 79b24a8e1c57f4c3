"""What every method shares: common loss arguments, and the protocols of a loss and of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from sbi_ignite.settings import EarlyStopping, Settings
from sbi_ignite.world import World


class LossArgs(Settings):
    """Loss arguments that every method takes.

    Example:
        >>> LossArgs(exclude_invalid_x=True).exclude_invalid_x
        True
    """

    exclude_invalid_x: bool | None = Field(
        default=None,
        description="True drops rows with NaN or Inf in x before the split and says how many; "
        "False raises before training if there are such rows; None leaves what "
        "append_simulations did.",
    )


class Loss(Protocol):
    """A loss, which takes a network and a batch and returns losses.

    An object may also have `validate(model, batch)` of the same form, where the validation loss
    differs from the training loss; `met`, the numbers of the tensors of a batch whose rows in
    other processes it needs too, see `InMemoryBatches.shard`; and `mean_over(batch)`, the rows of a
    batch in all processes, where sbi's own loss is a scalar, the mean over them.
    """

    def __call__(self, model: Any, batch: Any, /) -> Tensor:
        """Return losses of shape (batch,), or one scalar for the whole batch."""
        ...


Classifier: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(theta, x) to logits, shape (batch, 1)."""

ClassifierLogits: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]
"""(theta, x, num_atoms) to the logits of every x with its own theta and `num_atoms - 1` others of
the batch, shape (batch * num_atoms, 1); every `num_atoms`-th is of a joint pair."""

ProposalLogProb: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(theta, x, prior masks) to the log-probability of the proposal posterior, shape (batch,)."""


class TrainerView(Protocol):
    """What a loss may use of a trainer; `bridge/losses.py` implements it for sbi's trainers."""

    @property
    def arguments(self) -> Any:
        """Sbi's own loss arguments of this call; None for methods without any."""
        ...

    @property
    def as_sbi(self) -> bool:
        """Whether sbi's numbers must be reproduced bit for bit."""
        ...

    @property
    def world(self) -> World:
        """The processes that share a batch, if batches have the rows of all where a loss asks."""
        ...

    @property
    def first_round(self) -> bool:
        """Whether all simulations were drawn from the prior."""
        ...

    @property
    def device(self) -> torch.device | str:
        """Where the batches are."""
        ...

    @property
    def classifier_logits(self) -> ClassifierLogits:
        """The trainer's own way to pair theta and x (ratio estimation)."""
        ...

    @property
    def classifier(self) -> Classifier | None:
        """The classifier, if it may be fed other pairs; None if the user pairs theta and x."""
        ...

    @property
    def proposal_log_prob(self) -> ProposalLogProb:
        """The log-probability that the loss of later rounds maximizes (posterior estimation)."""
        ...


def _unknown(keywords: Mapping[str, Any], first_round: bool) -> None:
    return None


def _once(keywords: Mapping[str, Any]) -> int:
    return 1


@dataclass(frozen=True)
class Method:
    """All that is particular to a method; `methods/table.py` says which trainers have which.

    Attributes:
        loss_args: Type of its loss arguments.
        loss: Makes the loss for a trainer; None in place of a loss leaves it to the trainer's own.
        default_rule: Stopping rule that sbi uses for it.
        rows_needed: Minimum number of rows in a batch: losses that contrast rows need two, and that
            of NRE_C, which draws contrasts for classes and for one class less, needs three.
        rows_met: Returns, given sbi's keywords for the loss and whether this is the first round,
            how many rows of its batch a row is compared with, including itself. In a batch with
            more rows, the loss means the same. None: the loss depends on the batch as a whole, or
            is not known.
        repeats: Returns, given sbi's keywords for the loss, how often it computes each validation
            row.
        contrasts: Whether recipes may treat the loss as one of ratio estimation, which contrasts
            single rows with others; BNRE's regulariser depends on the batch as a whole.
        traces_proposal: Whether the loss of later rounds is the same computation for every batch,
            as long as the prior is.

    Example:
        >>> Method(LossArgs, lambda trainer: None).default_rule.kind
        'validation_loss'
    """

    loss_args: type[LossArgs]
    loss: Callable[[TrainerView], Loss | None]
    default_rule: EarlyStopping = field(default_factory=EarlyStopping.validation_loss)
    rows_needed: int = 1
    rows_met: Callable[[Mapping[str, Any], bool], int | None] = _unknown
    repeats: Callable[[Mapping[str, Any]], int] = _once
    contrasts: bool = False
    traces_proposal: bool = False
