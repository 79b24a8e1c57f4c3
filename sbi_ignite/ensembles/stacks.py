"""Train several members of an ensemble stacked, in whatever process they find themselves.

sbi's `train()` returns when its training has ended. To run the trainings of several members
together, the first one's begins the next one's when it comes to its loop, and so on; the last one
runs the loops of all. Then they return, the last one first.
"""

from __future__ import annotations

import contextvars
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from sbi_ignite.bridge.fit import run_by
from sbi_ignite.ensembles.members import Outcome, Task, attempt, end_with_parent, one_at_a_time
from sbi_ignite.summary import TrainingSummary
from sbi_ignite.training.stacked import Stacking, run_stacked
from sbi_ignite.training.training import Training
from sbi_ignite.training.turns import Call

_FRAMES = 60
"""Calls in one another between the beginning of a member and that of its loop, with a margin."""


def train_stack(
    tasks: Sequence[Task], wanted: Literal[True, "auto"], tensors: Sequence[Tensor] | None = None
) -> list[Outcome]:
    """Train members stacked; the process is afterwards as it was.

    Args:
        tasks: What to train.
        wanted: True, or "auto" to measure whether it pays.
        tensors: The simulations; None reads them from the tasks' folder.

    Returns:
        The outcomes, in the order of the tasks; errors of trainings are in them instead of being
        raised.
    """
    end_with_parent(tasks[0].started_by)
    with one_at_a_time, _deeper_by(_FRAMES * len(tasks)):
        return _Together(tasks, tensors, Stacking(wanted)).outcomes()


class _Together:
    """The members of one stack.

    Args:
        tasks: What to train.
        tensors: The simulations.
        stacking: Whether to measure; it is told what was decided.
    """

    def __init__(
        self, tasks: Sequence[Task], tensors: Sequence[Tensor] | None, stacking: Stacking
    ) -> None:
        self._tasks, self._tensors, self._stacking = tasks, tensors, stacking
        self._to_begin = deque(tasks)
        self._begun: list[tuple[Training, Call]] = []
        self._results: list[TrainingSummary | Exception] | None = None
        self._outcomes: dict[int, Outcome] = {}
        self._latest: list[warnings.WarningMessage] = []

    def outcomes(self) -> list[Outcome]:
        """Train all members."""
        self._begin_others()
        chosen = self._stacking.chosen
        found = (chosen or False, self._stacking.because or "no member has come to its first step")
        return [replace(self._outcomes[task.index], stacking=found) for task in self._tasks]

    def _begin_others(self) -> None:
        while self._to_begin:
            task = self._to_begin.popleft()
            self._outcomes[task.index] = attempt(task, self._tensors, self._around)

    def _around(
        self, trainer: Any, caught: list[warnings.WarningMessage]
    ) -> AbstractContextManager[object]:
        return run_by(trainer, lambda training: self._run(training, caught))

    def _run(self, training: Training, caught: list[warnings.WarningMessage]) -> TrainingSummary:
        """Return the summary of one member's training after all have been run."""
        context, number = contextvars.copy_context(), len(self._begun)

        def call(function: Callable[[], Any]) -> Any:
            # Warnings are caught by the latest member's list.
            before = len(self._latest)
            try:
                return context.run(function)
            finally:
                if caught is not self._latest:
                    caught.extend(self._latest[before:])
                    del self._latest[before:]

        self._begun.append((training, call))
        self._latest = caught
        self._begin_others()
        if self._results is None:
            self._latest = caught
            trainings, calls = zip(*self._begun, strict=True)
            self._results = run_stacked(trainings, self._stacking, calls)
        result = self._results[number]
        if isinstance(result, Exception):
            raise result
        return result


@contextmanager
def _deeper_by(frames: int) -> Iterator[None]:
    """Allow so many more calls in one another."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + frames)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
