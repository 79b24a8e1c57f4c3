"""sbi's private names: one page per supported line of sbi, and what all lines have in common."""

from __future__ import annotations

from functools import cache
from typing import Any

from sbi_ignite.bridge.lines.classes import (
    LOOP,
    ReplacedLoop,
    SbiLossArgsVF,
    SbiTrainConfig,
    can_train,
    trainers_without_training,
)
from sbi_ignite.bridge.lines.common import SbiTrainer
from sbi_ignite.bridge.lines.network_call import (
    NetworkCall,
    UnbuildableError,
    UndescribableError,
)
from sbi_ignite.bridge.lines.sbi_0_27 import call_of_factory
from sbi_ignite.bridge.probe import check_sbi, line

__all__ = [
    "LOOP",
    "NetworkCall",
    "ReplacedLoop",
    "SbiLossArgsVF",
    "SbiTrainConfig",
    "SbiTrainer",
    "UnbuildableError",
    "UndescribableError",
    "call_of_factory",
    "can_train",
    "check_sbi",
    "describe_builder",
    "line_name",
    "private",
    "trainers_without_training",
]


def private(trainer: Any) -> SbiTrainer:
    """Return the private parts of a trainer under public names.

    Args:
        trainer: One of sbi's trainers, or of a user's subclass.

    Example:
        >>> from sbi.inference import NLE
        >>> private(NLE(show_progress_bars=False)).has_simulations
        False
    """
    return _trainer_class()(trainer)


def describe_builder(build: Any) -> NetworkCall:
    """Return what a builder of sbi's does, as data.

    Args:
        build: A trainer's builder, such as `posterior_nn("maf")`.

    Raises:
        UndescribableError: If it is not one of sbi's.

    Example:
        >>> from sbi.neural_nets import posterior_nn
        >>> describe_builder(posterior_nn("maf")).function
        'build_maf'
    """
    return _trainer_class().describe_builder(build)


def line_name() -> str:
    """Return the name of the line that the installed sbi belongs to."""
    return str(line().NAME)


@cache
def _trainer_class() -> type[SbiTrainer]:
    return line().Trainer
