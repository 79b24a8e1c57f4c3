"""What this package remembers of a trainer from one `.train()` call to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sbi_ignite.callback import TrainingState
from sbi_ignite.runs.snapshot import Snapshot

_ATTRIBUTE = "_sbi_ignite"


@dataclass(frozen=True)
class Round:
    """One training of a trainer, including all calls that continue it.

    Attributes:
        index: How many trainings this trainer has completed before.
        first_step: Epochs of those trainings.
        first_iteration: Optimizer steps of those trainings.
        iterations: Optimizer steps of this one, once it is complete.
        complete: Whether it has ended regularly.
    """

    index: int = 0
    first_step: int = 0
    first_iteration: int = 0
    iterations: int = 0
    complete: bool = False


@dataclass(frozen=True)
class RowSeeds:
    """Seeds that decide which rows a trainer trains on, instead of the global random state.

    Attributes:
        split: Seed of the split into rows for training and for validation.
        bootstrap: Seed with which as many rows as there are for training are drawn from them, with
            replacement; None to train on each once.
    """

    split: int
    bootstrap: int | None = None


@dataclass
class TrainerMemory:
    """What is remembered of one trainer.

    Attributes:
        round: The last round; None before the first.
        logged_to: What loggers need to continue the same runs.
        network: How the network was built, as plain data; None if that was not asked for.
        state: Counters and history of the last training.
        snapshot: States of the last training in the typed form, from which it can be resumed.
        rate: Learning rate of the last training.
        kept_on_resume: Settings of the last training that cannot change when it is resumed.
        row_seeds: Seeds of the next split; None draws from the global random state, as sbi does.
        loss_arguments: Its loss arguments, as plain data.
        validation: Tensors of the user's own validation set; None if the simulations were split.
        init_from: What the first weights of the last training came from; None if from nowhere.
        few_rows: Rows from which the network was built, while a call needs them.
    """

    round: Round | None = None
    logged_to: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] | None = None
    state: TrainingState | None = None
    snapshot: Snapshot | None = None
    rate: float = 0.0
    kept_on_resume: Mapping[str, Any] = field(default_factory=dict)
    row_seeds: RowSeeds | None = None
    loss_arguments: Mapping[str, Any] = field(default_factory=dict)
    validation: Sequence[Tensor] | None = None
    init_from: Mapping[str, Any] | None = None
    few_rows: Sequence[Tensor] | None = None


def memory_of(trainer: Any) -> TrainerMemory:
    """Return what is remembered of a trainer.

    It is an attribute of the trainer, so that it is pickled and copied with it.

    Args:
        trainer: One of sbi's trainers.

    Example:
        >>> class Trainer:
        ...     pass
        >>> trainer = Trainer()
        >>> memory_of(trainer).rate = 0.1
        >>> memory_of(trainer).rate
        0.1
    """
    return vars(trainer).setdefault(_ATTRIBUTE, TrainerMemory())
