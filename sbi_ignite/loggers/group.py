"""Pass the numbers of a training on to all backends, and contain their failures."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sbi_ignite.exceptions import SbiIgniteWarning
from sbi_ignite.loggers.base import Backend, EpochFigure, EpochRow, RunInfo
from sbi_ignite.loggers.clock import now
from sbi_ignite.loggers.waiting import Patience
from sbi_ignite.settings.redaction import redact

if TYPE_CHECKING:
    from ignite.engine import Engine

    from sbi_ignite.callback import TrainingState
    from sbi_ignite.summary import TrainingSummary

MAX_WAIT_SECONDS = 5.0
"""The longest that one training waits for its backends, all of them together, while none moves."""

_SHARE_INSIDE_CALLS = 0.4
"""The part of it that may be spent while training runs; the rest is for the end."""

_POLL_SECONDS = 0.005


class Loggers:
    """Tells all backends what happens in a training; none of them can harm it.

    A backend that raises causes one warning and is dropped; those that hang are waited for at the
    end, all of them together for at most `max_wait` seconds. Local work that moves, such as
    creating a store, is waited for in addition. Without backends nothing is attached.

    Args:
        backends: The backends.
        max_wait: Seconds to wait for what does not move; None: `MAX_WAIT_SECONDS`.
    """

    def __init__(self, backends: Sequence[Backend] = (), max_wait: float | None = None) -> None:
        self.backends = tuple(backends)
        self._max_wait = max_wait
        self._alive = list(self.backends)
        self._warned: set[int] = set()
        self._state: TrainingState | None = None
        self._info = RunInfo()
        self._sent = 0
        self._iterations = 0
        self._rate = math.nan

    @property
    def shows_progress(self) -> bool:
        """Whether a backend shows progress on the screen."""
        return any(backend.shows_progress for backend in self.backends)

    def attach(self, engine: Engine, state: TrainingState) -> None:
        """Log when an epoch is validated, and every n iterations for those that ask.

        Attach it after the handlers that change the best weights or stop the training.

        Args:
            engine: The training engine, which knows `TrainingEvents`.
            state: The training as it stands.
        """
        from ignite.engine import Events

        from sbi_ignite.handlers.events import TrainingEvents

        self._state = state
        state.shows_figures = any(backend.shows_figures for backend in self.backends)
        if self.backends:
            engine.add_event_handler(TrainingEvents.VALIDATED, self._log_epochs)
        if any(backend.every_n_iterations for backend in self.backends):
            engine.add_event_handler(Events.ITERATION_STARTED, self._note_rate)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._log_iteration)

    def start(self, info: RunInfo) -> None:
        """Tell all backends about the run, before its first step.

        Args:
            info: The run; its `identity` lets backends continue an interrupted one.
        """
        if not self.backends:
            return
        self._info = self._counted_on(info)
        for backend in self.backends:
            backend.grant(self._limit * _SHARE_INSIDE_CALLS / len(self.backends))
        for name, backend in self._named():
            self._call(backend, backend.start, self._info, info.identity.get(name, {}))
        self._log_epochs()

    def finish(self, summary: TrainingSummary) -> None:
        """Tell all backends the results and wait a little for them.

        Args:
            summary: The summary of the training.
        """
        if not self.backends:
            return
        self._log_epochs()
        if summary.stop_reason == "signal":
            self._end("fail", "killed", "a signal ended the training")
        else:
            self._end("finish", summary)

    def fail(self, error: BaseException) -> None:
        """Tell all backends that training ended with an error and wait a little for them.

        Args:
            error: What was raised.
        """
        if not self.backends:
            return
        self._log_epochs()
        status = "failed" if isinstance(error, Exception) else "killed"
        words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        self._end("fail", status, redact(words))

    def state_dict(self) -> dict[str, Any]:
        """Return, as plain data, what a later run needs to continue those of the backends."""
        if not self.backends:
            return {}
        states = {name: backend.state_dict() for name, backend in self._named()}
        return {**{n: s for n, s in states.items() if s}, "iterations": self._iterations}

    # --- telling

    @property
    def _limit(self) -> float:
        return MAX_WAIT_SECONDS if self._max_wait is None else self._max_wait

    def _named(self) -> list[tuple[str, Backend]]:
        """Return every backend under a name of its own."""
        names = [backend.name for backend in self.backends]
        numbered = (
            name if names[:i].count(name) == 0 else f"{name}-{names[:i].count(name) + 1}"
            for i, name in enumerate(names)
        )
        return list(zip(numbered, self.backends, strict=True))

    def _counted_on(self, info: RunInfo) -> RunInfo:
        """Return the run with the iterations of earlier rounds and of an interrupted run."""
        before = info.identity.get("iterations", 0)
        first = info.first_iteration or (before if not info.epochs_done else 0)
        done = self._state.iteration if self._state is not None and info.epochs_done else 0
        self._iterations = first + done
        return dataclasses.replace(info, first_iteration=first, iterations_done=done)

    def _log_epochs(self) -> None:
        """Tell all backends about the epochs in the history that they do not know yet."""
        for row in self._new_rows():
            for backend in tuple(self._alive):
                self._call(backend, backend.log_epoch, row)
        for figure in self._new_figures():
            for backend in tuple(self._alive):
                if backend.shows_figures:
                    self._call(backend, backend.log_figure, figure)

    def _new_figures(self) -> list[EpochFigure]:
        """Return the figures that callbacks have logged since the last time."""
        state, first = self._state, self._info.first_step
        if state is None:
            return []
        new, state.figures[:] = list(state.figures), []
        return [EpochFigure(first + state.epoch, name, figure, now()) for name, figure in new]

    def _new_rows(self) -> list[EpochRow]:
        state, info = self._state, self._info
        if state is None:
            return []
        # A training that sbi continues may have forgotten its first epochs.
        forgotten = state.epoch - len(state.history.training_loss)
        rows = [self._row(i, forgotten + i + 1) for i in range(self._sent, state.epoch - forgotten)]
        self._sent += len(rows)
        return [row for row in rows if row.step > info.first_step]

    def _row(self, index: int, epoch: int) -> EpochRow:
        """Return the numbers of one epoch from the history, which is what the summary gets."""
        state: Any = self._state  # asked by the caller
        return EpochRow(
            step=self._info.first_step + epoch,
            values=state.history.row(index, state.validated),
            time=now(),
            replayed=epoch <= self._info.epochs_done,
        )

    def _note_rate(self) -> None:
        """Remember the rate of the coming step; schedules change it afterwards."""
        self._rate = self._state.learning_rate if self._state is not None else math.nan

    def _log_iteration(self, engine: Engine) -> None:
        """Tell the backends that ask for it the running loss of the last batch."""
        self._iterations = self._info.first_iteration + engine.state.iteration
        asked = [b for b in self._alive if _due(b, engine.state.iteration)]
        if not asked or self._state is None:
            return
        output: Any = engine.state.output
        values = {
            "iteration_loss": output.loss_sum / max(output.rows, 1),
            "iteration_learning_rate": self._rate,
        }
        for backend in asked:
            self._call(backend, backend.log_iteration, self._iterations, values)

    # --- the end

    def _end(self, method: str, *args: Any) -> None:
        """Tell all backends that training is over, and wait for them as long as allowed."""
        for backend in tuple(self._alive):
            self._call(backend, getattr(backend, method), *args)
        limit = max(self._limit - sum(backend.waited for backend in self.backends), 0.0)
        # After a training was ended on purpose, there may be little time left.
        patience = Patience(limit, for_local_work=args[:1] != ("killed",))
        waiting = list(self._alive)
        try:
            while waiting := [b for b in waiting if b in self._alive and not self._settled(b)]:
                if patience.is_over(waiting):
                    break
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            if not patience.has_spoken:
                raise
        for backend in waiting:
            trouble = backend.trouble or f"not everything was stored within {self._limit:g} s"
            self._warn(backend, f"{trouble}{backend.afterwards}")
        for backend in self.backends:
            self._quietly(backend.abandon)
        self._alive = []

    def _settled(self, backend: Backend) -> bool:
        try:
            settled = backend.settled()
        except Exception as error:
            self._give_up(backend, error)
            return True
        self._report_trouble(backend)
        return settled

    # --- trouble

    def _call(self, backend: Backend, method: Callable[..., None], *args: Any) -> None:
        if backend not in self._alive:
            return
        try:
            method(*args)
        except Exception as error:
            self._give_up(backend, error)
        else:
            self._report_trouble(backend)

    def _report_trouble(self, backend: Backend) -> None:
        if backend.trouble is not None:
            self._warn(backend, backend.trouble)

    def _give_up(self, backend: Backend, error: Exception) -> None:
        """Stop using a backend."""
        self._alive.remove(backend)
        self._warn(backend, f"{type(error).__name__}: {error}".strip(": "))
        self._quietly(backend.abandon)

    def _warn(self, backend: Backend, text: str) -> None:
        """Warn once per backend; never raises."""
        if id(backend) in self._warned:
            return
        self._warned.add(id(backend))
        message = (
            f"Logging to {backend.name} failed; training is unaffected: "
            f"{redact(text).rstrip('.')}. "
            f"{self._where_numbers_are()}"
        )
        try:
            warnings.warn(message, SbiIgniteWarning, stacklevel=_stacklevel_of_user())
        except SbiIgniteWarning:  # warnings are errors here, but a training is worth more
            print(f"SbiIgniteWarning: {message}", file=sys.stderr)

    def _where_numbers_are(self) -> str:
        directory = self._info.run_directory
        if directory is None:
            return "The numbers stay in the training summary."
        return f"The numbers stay in {Path(directory) / 'metrics.jsonl'}."

    @staticmethod
    def _quietly(method: Callable[..., None], *args: Any) -> None:
        """Call what was already warned about, or would only fail as a consequence."""
        try:
            method(*args)
        except Exception as error:
            del error  # the disk may be the cause; the warning has been given


def _due(backend: Backend, iteration: int) -> bool:
    """Say whether a backend wants this iteration."""
    every = backend.every_n_iterations
    return bool(every) and iteration % every == 0


def _stacklevel_of_user() -> int:
    """Return the stacklevel of the first frame outside sbi, ignite and this package."""
    inside = (f"{Path(__file__).parents[1]}/", "/ignite/", "/sbi/")
    level, frame = 2, sys._getframe(2)
    while frame.f_back is not None and any(p in frame.f_code.co_filename for p in inside):
        frame, level = frame.f_back, level + 1
    return level
