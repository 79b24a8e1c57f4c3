"""A signal of the operating system comes in; training ends cleanly after the current batch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

from ignite.engine import Engine, Events
from typing_extensions import Self

from sbi_ignite.callback import TrainingState
from sbi_ignite.handlers.cutting import stop_after_batch

NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")


class StopOnSignals:
    """End training after the current batch when a signal arrives: SIGTERM, SIGUSR1 or Ctrl-C.

    While the context is entered, the first signal only sets a flag; a second Ctrl-C raises
    KeyboardInterrupt at once. Signals that the process ignores stay ignored. Off the main thread,
    where python takes no signals, nothing happens.

    Args:
        state: Where the request to stop is made.
        names: The signals.
        only_deadly: Leave signals alone that somebody else handles.

    Attributes:
        received: The signal that came, None without any.
    """

    def __init__(
        self, state: TrainingState, names: Sequence[str] = NAMES, only_deadly: bool = False
    ) -> None:
        self.received: signal.Signals | None = None
        self._state, self._names, self._only_deadly = state, names, only_deadly
        self._originals: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int | None:
        """Exit code by which shells tell the signal that came; None without any."""
        return None if self.received is None else 128 + self.received

    def pass_on(self) -> None:
        """End the process as the signal would have done, if one came.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            SystemExit: After another signal, with the shell's exit code for it.
        """
        if self.received is None:
            return
        if self.received.name == "SIGINT":
            raise KeyboardInterrupt
        raise SystemExit(self.exit_code)

    def attach(self, engine: Engine) -> None:
        """Look at the flag after every batch and after every validation."""
        if not self._names:
            return
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in self._names:
            number: signal.Signals | None = getattr(signal, name, None)
            if number is None:
                continue
            before = signal.getsignal(number)
            # A handler that C code installed (None) cannot be put back, and is left alone; what is
            # ignored stays so, Ctrl-C above all where a shell has put a script in the background.
            if before in (None, signal.SIG_IGN):
                continue
            if self._only_deadly and before != signal.SIG_DFL:
                continue
            self._originals[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, original in self._originals.items():
            signal.signal(number, original)
        self._originals.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None or number == signal.SIGINT:
            self.received = signal.Signals(number)

    def _iteration_completed(self, engine: Engine) -> None:
        if self.received is not None:
            stop_after_batch(engine, self._state, "signal")

    def _epoch_completed(self, engine: Engine) -> None:
        if self.received is not None:
            self._state.stop("signal")
            engine.terminate()
