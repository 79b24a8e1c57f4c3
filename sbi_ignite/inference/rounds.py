"""A trainer that begins to train comes in; where this training stands among its rounds goes out.

Rounds share one axis of epochs in loggers, and every round after the first has a run directory of
its own below the one that was named.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sbi_ignite.inference.arguments import Call


@dataclass(frozen=True)
class Round:
    """One training of a trainer, over all calls that continue it.

    Attributes:
        index: How many trainings this trainer has completed before.
        first_step: Epochs of those.
        first_iteration: Optimizer steps of those.
        iterations: Optimizer steps of this one, once it is complete.
        complete: Whether it has ended regularly.
    """

    index: int = 0
    first_step: int = 0
    first_iteration: int = 0
    iterations: int = 0
    complete: bool = False


def begin_round(trainer: Any, resume: bool) -> Round:
    """Return the round that a call belongs to, and note it on the trainer.

    Args:
        trainer: One of sbi's trainers.
        resume: Whether the call continues the last one.
    """
    last: Round | None = getattr(trainer, "_ignite_round", None)
    if last is None:
        now = Round(first_step=0 if resume else _epochs_so_far(trainer))
    elif resume or not last.complete:
        now = replace(last, complete=False)
    else:
        now = Round(
            index=last.index + 1,
            first_step=_epochs_so_far(trainer),
            first_iteration=last.first_iteration + last.iterations,
        )
    trainer._ignite_round = now
    return now


def end_round(trainer: Any, iterations: int) -> None:
    """Note that a training has ended regularly after so many optimizer steps."""
    trainer._ignite_round = replace(trainer._ignite_round, iterations=iterations, complete=True)


def _epochs_so_far(trainer: Any) -> int:
    return len(trainer._summary["training_loss"])


# --- run directories

_trainers: dict[Path, list[weakref.ref[Any]]] = {}


def directory_of(trainer: Any, call: Call, now: Round) -> Path | None:
    """Return the run directory of a training; None without checkpoints.

    A directory that the call names is taken as it is. One that comes from the environment or a file
    belongs to a whole script: its first trainer gets the directory itself, the others
    `trainer-1`, `trainer-2`, ... below it, in the order in which they first train.

    Args:
        trainer: The trainer.
        call: The call.
        now: Its round; rounds after the first get `round-1`, `round-2`, ... below.
    """
    checkpoint = call.settings.checkpoint
    if checkpoint is None:
        return None
    path = Path(checkpoint.directory)
    if call.settings.origin("checkpoint.directory").source != "call":
        number = _number_of(trainer, path.absolute())
        path = path / f"trainer-{number}" if number else path
    return path / f"round-{now.index}" if now.index else path


def _number_of(trainer: Any, path: Path) -> int:
    """Return how many other trainers of this process have used a directory before this one."""
    known = _trainers.setdefault(path, [])
    for number, reference in enumerate(known):
        if reference() is trainer:
            return number
    known.append(weakref.ref(trainer))
    return len(known) - 1
