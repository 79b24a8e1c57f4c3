"""Neural ratio estimation.

Each loss gets `ClassifierLogits`. sbi returns means over a batch; losses of rows, which say how
uncertain such a mean is, round differently and are therefore returned only if `by_row` asks for
them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from sbi_ignite.methods.base import ClassifierLogits, LossArgs, Method, TrainerView
from sbi_ignite.methods.contrasts import InBatchContrasts
from sbi_ignite.world import ONE, World


class LossArgsNRE(LossArgs):
    """Loss arguments of NRE_B.

    Example:
        >>> LossArgsNRE(num_atoms=20).num_atoms
        20
    """

    num_atoms: int = Field(
        default=10, ge=2, description="Pairs that compete in one classification."
    )


class LossArgsNRE_A(LossArgs):
    """Loss arguments of NRE_A.

    Example:
        >>> LossArgsNRE_A().exclude_invalid_x is None
        True
    """


class LossArgsNRE_C(LossArgs):
    """Loss arguments of NRE_C (Miller et al. 2022).

    Example:
        >>> LossArgsNRE_C(num_classes=3).gamma
        1.0
    """

    num_classes: int = Field(default=5, ge=1, description="Number K of classes drawn jointly.")
    gamma: float = Field(
        default=1.0, gt=0, description="Weight of the K dependent classes against the marginal one."
    )


class LossArgsBNRE(LossArgs):
    """Loss arguments of BNRE (Delaunoy et al. 2022).

    Example:
        >>> LossArgsBNRE().regularization_strength
        100.0
    """

    regularization_strength: float = Field(
        default=100.0, gt=0, description="Factor of the balancing regulariser."
    )


VALIDATION_DRAWS = 3
VALIDATION_ROWS = 300
"""Other theta are drawn this often for a validation batch, less often where that would make more
rows than this in total, and at least once."""


class RatioLoss(ABC):
    """What all four losses share.

    A tenth of 1,000 rows, each set against nine others, distinguishes epochs poorly. With three
    times as many others, 9 of 20 trainings on the tuning tasks of `benchmarks/tasks.py` chose an
    epoch with a lower loss on fresh pairs and 1 a higher one, at about 7 % of an epoch's time. More
    rows need fewer draws.
    """

    classifier_logits: ClassifierLogits
    by_row: bool
    world: World

    @property
    def met(self) -> tuple[int, ...]:
        """Tensors of a batch whose rows in other processes are met: theta; see `Loss`."""
        meets = self.world is not ONE and isinstance(self.classifier_logits, InBatchContrasts)
        return (0,) if meets else ()

    def logits(self, batch: tuple[Tensor, ...], num_atoms: int) -> Tensor:
        """Return the logits of the rows of a batch, see `ClassifierLogits`."""
        if not self.met:
            return self.classifier_logits(batch[0], batch[1], num_atoms)
        return self.classifier_logits(batch[-1], batch[1], num_atoms, batch[-2])  # type: ignore[call-arg] # InBatchContrasts

    def mean_over(self, batch: tuple[Tensor, ...]) -> int:
        """Return over how many rows sbi's loss of a batch is the mean: those of all processes.

        Where theta of other processes are not at hand, all are taken to have as many rows.
        """
        return self.num_theta(batch) * (1 if self.met else self.world.size)

    def num_theta(self, batch: tuple[Tensor, ...]) -> int:
        """Return how many theta an x can meet."""
        return len(batch[-1] if self.met else batch[0])

    @abstractmethod
    def __call__(self, model: Any, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the losses of a training batch."""

    def validate(self, model: Any, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the losses of a validation batch; those of rows are means over several draws."""
        if not self.by_row:
            return self(model, batch)
        draws = max(1, min(VALIDATION_ROWS // self.num_theta(batch), VALIDATION_DRAWS))
        return torch.stack([self(model, batch) for _ in range(draws)]).mean(dim=0)


@dataclass(frozen=True)
class RatioLossA(RatioLoss):
    """Binary cross-entropy of one joint against one marginal pair (Hermans et al. 2020)."""

    classifier_logits: ClassifierLogits
    by_row: bool = False
    world: World = ONE

    def __call__(self, model: Any, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the mean loss, a scalar, or losses of shape (batch,)."""
        return _binary_cross_entropy(self.logits(batch, 2), self.by_row)


@dataclass(frozen=True)
class BalancedRatioLoss(RatioLoss):
    """NRE_A's loss with the balancing regulariser of BNRE (Delaunoy et al. 2022)."""

    classifier_logits: ClassifierLogits
    regularization_strength: float
    by_row: bool = False
    world: World = ONE

    def __call__(self, model: Any, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the mean loss, a scalar, or losses of shape (batch,), all with the regulariser."""
        logits = self.logits(batch, 2)
        balance = torch.sigmoid(logits[0::2]) + torch.sigmoid(logits[1::2]) - 1
        loss = _binary_cross_entropy(logits, self.by_row)
        return loss + self.regularization_strength * self._squared_mean(balance)

    def _squared_mean(self, balance: Tensor) -> Tensor:
        """Return the square of the mean over the rows of all processes.

        Its gradient, averaged over processes by their rows, is that of one process with all rows.
        """
        mean = balance.mean()
        if self.world is ONE:
            return mean.square()
        total, rows = self.world.sums(balance.detach().sum().item(), balance.numel())
        of_all = total / rows
        return of_all**2 + 2 * of_all * (mean - mean.detach())


@dataclass(frozen=True)
class RatioLossB(RatioLoss):
    """Cross-entropy of one joint against `num_atoms - 1` marginal pairs (Durkan et al. 2020)."""

    classifier_logits: ClassifierLogits
    num_atoms: int
    by_row: bool = False
    world: World = ONE

    def __call__(self, model: Any, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the mean loss, a scalar, or losses of shape (batch,)."""
        num_atoms = min(self.num_atoms, self.num_theta(batch))
        logits = self.logits(batch, num_atoms).reshape(len(batch[0]), num_atoms)
        log_prob = logits[:, 0] - torch.logsumexp(logits, dim=-1)
        return -log_prob if self.by_row else -torch.mean(log_prob)


@dataclass(frozen=True)
class RatioLossC(RatioLoss):
    """Contrastive loss with an independently drawn class (Miller et al. 2022).

    Attributes:
        classifier_logits: Logits of pairs of theta and x.
        num_atoms: Number of classes K plus one.
        gamma: Weight of the K dependent classes against the marginal one.
        by_row: See the module's docstring.
        world: The processes that share a batch.
    """

    classifier_logits: ClassifierLogits
    num_atoms: int
    gamma: float
    by_row: bool = False
    world: World = ONE

    def __call__(self, model: Any, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the mean loss, a scalar, or losses of shape (batch,)."""
        size, num_classes = len(batch[0]), min(self.num_atoms, self.num_theta(batch)) - 1
        marginal = self.logits(batch, num_classes + 1).reshape(size, num_classes + 1)
        joint = self.logits(batch, num_classes).reshape(size, num_classes)
        log_gamma = marginal.new_tensor(self.gamma).log()
        log_classes = marginal.new_tensor(num_classes).log()
        rest = log_classes.expand((size, 1))
        # Column 0 holds the joint pair: without it, every column is drawn from the marginals.
        marginal = torch.concat([log_gamma + marginal[:, 1:], rest], dim=-1)
        log_prob_marginal = log_classes - torch.logsumexp(marginal, dim=-1)
        normalizer = torch.logsumexp(torch.concat([log_gamma + joint, rest], dim=-1), dim=-1)
        log_prob_joint = log_gamma + joint[:, 0] - normalizer
        p_marginal, p_joint = 1 / (1 + self.gamma), self.gamma / (1 + self.gamma)
        log_prob = p_marginal * log_prob_marginal + p_joint * log_prob_joint
        return -log_prob if self.by_row else -torch.mean(log_prob)


def _binary_cross_entropy(logits: Tensor, by_row: bool) -> Tensor:
    """Return the loss of pairs that are joint (even rows) and marginal (odd rows) in turn.

    Args:
        logits: Those of the pairs, shape (2 * batch, 1).
        by_row: Return the mean of the two pairs of every row, shape (batch,), not of all.
    """
    likelihood = torch.sigmoid(logits).squeeze()
    labels = torch.ones(len(logits), device=logits.device)
    labels[1::2] = 0.0
    if by_row:
        losses = nn.functional.binary_cross_entropy(likelihood, labels, reduction="none")
        return losses.reshape(-1, 2).mean(dim=1)
    return nn.functional.binary_cross_entropy(likelihood, labels)


def _logits(trainer: TrainerView) -> ClassifierLogits:
    """Return the trainer's own pairs, or cheaper ones, with rows of other processes if need be."""
    if (trainer.as_sbi and trainer.world is ONE) or trainer.classifier is None:
        return trainer.classifier_logits
    return InBatchContrasts(trainer.classifier)


def _shared(trainer: TrainerView) -> dict[str, Any]:
    # With several processes, a scalar would have to be weighted by rows, which by_row does.
    return {"by_row": not trainer.as_sbi or trainer.world is not ONE, "world": trainer.world}


def _loss_a(trainer: TrainerView) -> RatioLossA:
    return RatioLossA(_logits(trainer), **_shared(trainer))


def _loss_b(trainer: TrainerView) -> RatioLossB:
    return RatioLossB(_logits(trainer), trainer.arguments.num_atoms, **_shared(trainer))


def _loss_c(trainer: TrainerView) -> RatioLossC:
    args = trainer.arguments
    return RatioLossC(_logits(trainer), args.num_atoms, args.gamma, **_shared(trainer))


def _balanced_loss(trainer: TrainerView) -> BalancedRatioLoss:
    strength = trainer.arguments.regularization_strength
    return BalancedRatioLoss(_logits(trainer), strength, **_shared(trainer))


def _atoms(keywords: Mapping[str, Any], first_round: bool) -> int:
    return keywords.get("num_atoms", LossArgsNRE().num_atoms)


def _classes(keywords: Mapping[str, Any], first_round: bool) -> int:
    return keywords.get("num_classes", LossArgsNRE_C().num_classes) + 1


NRE_A = Method(
    LossArgsNRE_A,
    _loss_a,
    rows_needed=2,
    rows_met=lambda keywords, first_round: 2,
    contrasts=True,
)
NRE_B = Method(LossArgsNRE, _loss_b, rows_needed=2, rows_met=_atoms, contrasts=True)
NRE_C = Method(LossArgsNRE_C, _loss_c, rows_needed=3, rows_met=_classes, contrasts=True)
BNRE = Method(LossArgsBNRE, _balanced_loss, rows_needed=2)
