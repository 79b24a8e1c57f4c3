"""The families of sbi's trainers, with the loss arguments and the stopping rule of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sbi.inference import BNRE, NRE_A, NRE_C, MarginalTrainer
from sbi.inference.trainers.nle.nle_base import LikelihoodEstimatorTrainer
from sbi.inference.trainers.npe.npe_base import PosteriorEstimatorTrainer
from sbi.inference.trainers.nre.nre_base import RatioEstimatorTrainer
from sbi.inference.trainers.vfpe.base_vf_inference import VectorFieldTrainer

from sbi_ignite.methods.base import LossArgs
from sbi_ignite.methods.marginal import LossArgsMarginal
from sbi_ignite.methods.nle import LossArgsNLE
from sbi_ignite.methods.npe import LossArgsNPE
from sbi_ignite.methods.nre import LossArgsBNRE, LossArgsNRE, LossArgsNRE_A, LossArgsNRE_C
from sbi_ignite.methods.vector_field import LossArgsVF
from sbi_ignite.settings import EarlyStopping


@dataclass(frozen=True)
class Family:
    """What trainers of one family have in common.

    Attributes:
        loss_args: Type of their loss arguments.
        default_rule: Stopping rule that sbi uses for them.
        rows_needed: Minimum number of rows in a batch: losses that contrast rows need two, and that
            of NRE_C, which draws contrasts for classes and for one class less, needs three.
        rows_met: Returns, given sbi's keywords for the loss, how many rows of its batch a row is
            compared with in the first round, including itself. In a batch with more rows, the loss
            means the same. None: the loss depends on the batch as a whole, or is not known.
        contrasts: Whether recipes may treat the loss as one of ratio estimation, which contrasts
            single rows with others; BNRE's regulariser depends on the batch as a whole.
    """

    loss_args: type[LossArgs]
    default_rule: EarlyStopping
    rows_needed: int = 1
    rows_met: Callable[[Mapping[str, Any]], int] | None = None
    contrasts: bool = False


def _itself(keywords: Mapping[str, Any]) -> int:
    return 1


def _a_pair(keywords: Mapping[str, Any]) -> int:
    return 2


def _atoms(keywords: Mapping[str, Any]) -> int:
    return keywords.get("num_atoms", LossArgsNRE().num_atoms)


def _classes(keywords: Mapping[str, Any]) -> int:
    return keywords.get("num_classes", LossArgsNRE_C().num_classes) + 1


_PATIENCE = EarlyStopping.validation_loss()


def _ratio(
    loss_args: type[LossArgs],
    rows_met: Callable[[Mapping[str, Any]], int],
    rows_needed: int = 2,
) -> Family:
    """Return a family of ratio estimation."""
    return Family(loss_args, _PATIENCE, rows_needed=rows_needed, rows_met=rows_met, contrasts=True)


# The first match counts: subclasses come before their parents.
_FAMILIES: tuple[tuple[type, Family], ...] = (
    (BNRE, Family(LossArgsBNRE, _PATIENCE, rows_needed=2)),
    (NRE_A, _ratio(LossArgsNRE_A, _a_pair)),
    (NRE_C, _ratio(LossArgsNRE_C, _classes, rows_needed=3)),
    (RatioEstimatorTrainer, _ratio(LossArgsNRE, _atoms)),
    (PosteriorEstimatorTrainer, Family(LossArgsNPE, _PATIENCE, rows_met=_itself)),
    (LikelihoodEstimatorTrainer, Family(LossArgsNLE, _PATIENCE, rows_met=_itself)),
    (
        VectorFieldTrainer,
        Family(LossArgsVF, EarlyStopping.two_standard_deviations(), rows_met=_itself),
    ),
    (MarginalTrainer, Family(LossArgsMarginal, _PATIENCE)),
)


def family_of(trainer: Any) -> Family:
    """Return the family of a trainer; for an unknown kind, one that takes `LossArgs`."""
    return family_of_class(type(trainer))


def family_of_class(cls: type) -> Family:
    """Return the family of a class of trainers."""
    for kind, family in _FAMILIES:
        if issubclass(cls, kind):
            return family
    return Family(LossArgs, _PATIENCE)
