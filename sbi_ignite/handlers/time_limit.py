"""End a training cleanly after the batch in which its time limit has passed."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from ignite.engine import Engine, Events

from sbi_ignite.callback import TrainingState
from sbi_ignite.handlers.stop_mid_epoch import stop_after_batch

Flag = Callable[[], bool]


class TimeLimit:
    """End training when the time is up, counted from the creation of this object.

    Args:
        limit: Time that this call may take; a resumed training has all of it again.
        state: Where the request to stop is made.
        clock: Seconds that only ever increase.
        decide: Makes a decision of one process that of all, see `Together.decide`.
    """

    def __init__(
        self,
        limit: timedelta,
        state: TrainingState,
        clock: Callable[[], float] = time.monotonic,
        decide: Callable[[Flag], Flag] = lambda flag: flag,
    ) -> None:
        self._state, self._clock = state, clock
        self._end = clock() + limit.total_seconds()
        self._ends = decide(lambda: self.is_up)

    def attach(self, engine: Engine) -> None:
        """Check the clock after every batch and after every validation."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    @property
    def is_up(self) -> bool:
        """Whether the time has passed."""
        return self._clock() >= self._end

    def _iteration_completed(self, engine: Engine) -> None:
        if self._ends():
            stop_after_batch(engine, self._state, "time_limit")

    def _epoch_completed(self, engine: Engine) -> None:
        if self._ends():
            self._state.stop("time_limit")
            engine.terminate()
