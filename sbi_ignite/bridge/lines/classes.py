"""sbi's classes of trainers, and the method of theirs that is replaced."""

from __future__ import annotations

from typing import Any

import sbi.inference as sbi_inference
from sbi.inference.trainers._contracts import LossArgsVF as SbiLossArgsVF
from sbi.inference.trainers._contracts import TrainConfig as SbiTrainConfig

__all__ = [
    "LOOP",
    "ReplacedLoop",
    "SbiLossArgsVF",
    "SbiTrainConfig",
    "can_train",
    "trainers_without_training",
]

LOOP = "_run_training_loop"
"""Name of the method that is sbi's only loop, but for MarginalTrainer's."""


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
