"""sbi's classes of trainers, and the method of theirs that is replaced."""

from __future__ import annotations

from typing import Any

import sbi.inference as sbi_inference
from sbi.inference.trainers._contracts import LossArgsVF as SbiLossArgsVF
from sbi.inference.trainers._contracts import TrainConfig as SbiTrainConfig
from sbi.inference.trainers.nle.nle_base import LikelihoodEstimatorTrainer
from sbi.inference.trainers.npe.npe_base import PosteriorEstimatorTrainer
from sbi.inference.trainers.nre.nre_base import RatioEstimatorTrainer
from sbi.inference.trainers.vfpe.base_vf_inference import VectorFieldTrainer

__all__ = [
    "LOOP",
    "TRAINERS",
    "ReplacedLoop",
    "SbiLossArgsVF",
    "SbiTrainConfig",
    "can_train",
    "trainers_without_training",
]

LOOP = "_run_training_loop"
"""Name of the method that is sbi's only loop, but for MarginalTrainer's."""

TRAINERS: tuple[type, ...] = (
    PosteriorEstimatorTrainer,
    LikelihoodEstimatorTrainer,
    RatioEstimatorTrainer,
    VectorFieldTrainer,
    sbi_inference.NPE_A,
    sbi_inference.NPE_B,
    sbi_inference.NPE_C,
    sbi_inference.MNPE,
    sbi_inference.NLE_A,
    sbi_inference.MNLE,
    sbi_inference.NRE_A,
    sbi_inference.NRE_B,
    sbi_inference.NRE_C,
    sbi_inference.BNRE,
    sbi_inference.FMPE,
    sbi_inference.NPSE,
)
"""The trainers that share it, and their bases."""


class ReplacedLoop:
    """A trainer whose loop, where sbi would run its own, is `train_where_sbi_would`."""

    def _run_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        return self.train_where_sbi_would(*args, **kwargs)

    def train_where_sbi_would(self, *args: Any, **kwargs: Any) -> Any:
        """Train with what sbi hands to its loop, and return the network."""
        raise NotImplementedError


def can_train(candidate: Any) -> bool:
    """Return whether something is one of sbi's trainers that train a network.

    Args:
        candidate: Anything.

    Example:
        >>> can_train("NPE")
        False
    """
    kinds = (sbi_inference.NeuralInference, sbi_inference.MarginalTrainer)
    return isinstance(candidate, kinds) and not isinstance(candidate, trainers_without_training())


def trainers_without_training() -> tuple[type, ...]:
    """Return sbi's trainers whose networks are trained already: NPE_PFN, where sbi has it."""
    found = getattr(sbi_inference, "NPE_PFN", None)
    return () if found is None else (found,)
