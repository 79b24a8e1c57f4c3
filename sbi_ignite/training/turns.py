"""Let trainings of one process take turns: where they pause, and how one goes on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ignite.engine import Engine, Events

from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.summary import TrainingSummary
from sbi_ignite.training.training import Training

Call = Callable[[Callable[[], Any]], Any]
"""Calls a function and returns what it returns."""


def called(function: Callable[[], Any]) -> Any:
    """Call a function and do nothing else."""
    return function()


class Pauses:
    """Interrupts an engine whenever an event happens.

    Args:
        engine: The training engine.
        event: `GET_BATCH_STARTED` to pause before each batch, `ITERATION_STARTED` to pause between
            a batch and its step.

    Attributes:
        wanted: Whether it still does.
    """

    def __init__(self, engine: Engine, event: Events) -> None:
        self.wanted = True
        self._asked = self._waiting = False
        engine.add_event_handler(event, self._ask)
        engine.add_event_handler(Events.INTERRUPT, self._interrupted)

    def is_waiting(self) -> bool:
        """Return whether the engine has just paused here, rather than ended; ask once a pause."""
        waiting, self._waiting = self._waiting, False
        return waiting

    def _ask(self, engine: Engine) -> None:
        if self.wanted:
            self._asked = True
            engine.interrupt()

    def _interrupted(self) -> None:
        self._waiting, self._asked = self._asked, False


class InTurns:
    """One of several trainings that take turns.

    Args:
        training: The training.
        turns: What `in_turns` made of it.
        call: Calls what it does in a turn, for example in a context of its own.

    Attributes:
        training: The training.
        outcome: Its summary, or the error that ended it; None while it runs.
    """

    def __init__(
        self,
        training: Training,
        turns: Generator[None, None, TrainingSummary],
        call: Call = called,
    ) -> None:
        self.training, self._call = training, call
        self.outcome: TrainingSummary | Exception | None = None
        self._turns = turns

    def resume(self) -> None:
        """Go to where the training continues."""
        with self.training.random.in_force():
            self._call(self._next)

    def turn(self) -> None:
        """Go on to the next pause, or to the end."""
        random = self.training.random
        try:
            with random.in_force() if self.may_draw() else random.in_force_when_asked():
                self._call(self._next)
        except Exception as error:
            self.outcome = error

    def may_draw(self) -> bool:
        """Return whether random numbers may be drawn in the next turn."""
        return True

    def _next(self) -> None:
        try:
            next(self._turns)
        except StopIteration as end:  # which must not pass through other generators
            self.outcome = end.value

    def end(self, error: BaseException) -> None:
        """Let the training report, and record in its directory, what ended all of them."""
        # What its callbacks raise in turn must not keep the others from hearing of it.
        with suppress(BaseException):
            self._call(lambda: self._turns.throw(error))


@contextmanager
def ends_all(members: Sequence[InTurns]) -> Iterator[None]:
    """Let every training report what ends the block, such as a signal, before it is raised."""
    try:
        yield
    except BaseException as error:
        for member in members:
            member.end(error)
        raise


def check_directories(trainings: Sequence[Training]) -> None:
    """Refuse two trainings in one run directory.

    Raises:
        ArgumentError: Naming the directory.
    """
    taken = set()
    for training in trainings:
        checkpoint = training.settings.checkpoint
        if checkpoint is None:
            continue
        path = (training.hooks.place.directory or checkpoint.directory).resolve()
        if path in taken:
            raise ArgumentError(
                f"trainings: expected a run directory of its own for each, got {path} twice. Name "
                "another directory in the CheckpointConfig of each training."
            )
        taken.add(path)
