"""Run a backend around a user's object on a thread, so that it cannot hold up a training."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sbi_ignite.loggers.base import Backend, EpochFigure, EpochRow, RunInfo

if TYPE_CHECKING:
    from sbi_ignite.summary import TrainingSummary


class OnHelperThread(Backend):
    """Calls a backend on a daemon thread.

    Training waits for each call, so that a user's object is called in time and cannot change the
    global random states, until the waits add up to what was granted. From then on the calls queue
    up and run alongside the training.

    Args:
        inner: The backend that does the work.
    """

    name: str = "thread"

    def __init__(self, inner: Backend) -> None:
        super().__init__(every_n_iterations=inner.every_n_iterations)
        self.inner = inner
        # What the group shows and asks is the inner backend's.
        self.name = inner.name
        self.shows_progress = inner.shows_progress
        self.shows_figures = inner.shows_figures
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._waiting = 0
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._patience = 0.0
        self._thread: threading.Thread | None = None

    def grant(self, seconds: float) -> None:
        """Wait no longer than this in all."""
        self._patience = seconds

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        """Start the thread and pass the call on."""
        self._error, self.waited = None, 0.0
        self._thread = threading.Thread(
            target=self._work, name=f"sbi_ignite-{self.name}", daemon=True
        )
        self._thread.start()
        self._do(lambda: self.inner.start(info, identity))

    def log_epoch(self, row: EpochRow) -> None:
        """Pass the call on."""
        self._do(lambda: self.inner.log_epoch(row))

    def log_figure(self, figure: EpochFigure) -> None:
        """Pass the call on."""
        self._do(lambda: self.inner.log_figure(figure))

    def log_iteration(self, iteration: int, values: Mapping[str, float]) -> None:
        """Pass the call on."""
        self._do(lambda: self.inner.log_iteration(iteration, values))

    def finish(self, summary: TrainingSummary) -> None:
        """Pass the call on."""
        self._do(lambda: self.inner.finish(summary))

    def fail(self, status: str, message: str) -> None:
        """Pass the call on."""
        self._do(lambda: self.inner.fail(status, message))

    def settled(self) -> bool:
        """Say whether every call has returned."""
        self._raise_error()
        return self._idle.is_set()

    def abandon(self) -> None:
        """Let the thread end after the queued calls."""
        self._jobs.put(None)

    def state_dict(self) -> dict[str, Any]:
        """Return the inner backend's state."""
        return self.inner.state_dict()

    def _do(self, job: Callable[[], None]) -> None:
        """Queue a call and wait for it while granted time is left."""
        self._raise_error()
        with self._lock:
            self._waiting += 1
            self._idle.clear()
        before = time.perf_counter()
        with _random_states_kept():
            self._jobs.put(job)
            if self._patience > 0:
                self._idle.wait(self._patience)
        waited = time.perf_counter() - before
        self._patience -= waited
        self.waited += waited
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:
                self._error = error
            with self._lock:
                self._waiting -= 1
                if self._waiting == 0:
                    self._idle.set()


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Restore the global random states, which a user's code may have changed."""
    import numpy
    import torch

    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    numpy.random.set_state(states[1])
    torch.set_rng_state(states[2])
