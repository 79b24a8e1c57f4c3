"""End a training cleanly on a signal from the operating system."""

from __future__ import annotations

import inspect
import os
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from ignite.engine import Engine, Events
from typing_extensions import Self

from sbi_ignite.callback import TrainingState
from sbi_ignite.data.in_memory import InMemoryBatches
from sbi_ignite.handlers.stop_mid_epoch import stop_after_batch
from sbi_ignite.settings import Resolved
from sbi_ignite.world import ONE, World

Step = Callable[..., Any]
Flag = Callable[[], bool]

NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")

AT_ONCE = {"SIGINT": 2}
"""How many signals of one kind end the process at once. Slurm usually sends SIGTERM twice: to the
step, and through a job script that passes it on."""
_AT_ONCE = 3

MOMENT = 0.5
"""Seconds between a worker's end and the arrival of the signal that killed it: process groups and
job steps are signalled one process at a time."""

_WORKER_ERRORS = (RuntimeError, OSError, EOFError)
"""What a loader raises when its workers, or their pipes, are gone."""


_entered: weakref.WeakSet[HeldSignals] = weakref.WeakSet()


class StoppedInLoader(Exception):  # noqa: N818 # a request, not an error
    """A signal that asked training to stop also ended the workers that a loader reads with."""


class HeldSignals:
    """Hold signals off for a training, or for several that take turns in one process.

    While the context is entered, the first signal is only noted. A second Ctrl-C raises
    KeyboardInterrupt at once; the third SIGTERM or SIGUSR1 does what the first would have done
    without it. Signals that the process ignores stay ignored. Off the main thread, where python
    takes no signals, nothing happens. Entered several times, it ends with the last exit, which puts
    the original handlers back. Functions of the user's among them are owed the signals that
    arrived, see `tell_users`.

    Args:
        names: The signals.
        only_deadly: Leave alone signals that already have a handler, other than python's own.

    Attributes:
        received: The signal that arrived; None if none has.
        workers: Holds back torch's errors about workers that have died.
    """

    def __init__(self, names: Sequence[str] = NAMES, only_deadly: bool = False) -> None:
        self.received: signal.Signals | None = None
        self.workers = _WorkerErrors()
        self.names, self.only_deadly = tuple(names), only_deadly
        self._originals: dict[signal.Signals, Any] = {}
        self._counts: Counter[int] = Counter()
        self._owed: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {}
        self._entered = 0

    @property
    def are_held(self) -> bool:
        """Whether any signal is held off now."""
        return bool(self._originals)

    def __enter__(self) -> Self:
        self._entered += 1
        if self._entered == 1 and threading.current_thread() is threading.main_thread():
            self._hold()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if not self._entered:
            self._let_go()
            if kind is not None:  # nobody gets to say when everything else is done
                self.tell_users()

    def tell_users(self) -> None:
        """Call handlers of the user's that the context replaced with the signals that arrived.

        In the order of arrival, each once. What one of them raises is raised.
        """
        while self._owed:
            number = next(iter(self._owed))
            self._owed.pop(number)(number, inspect.currentframe())

    def let_child_end(self) -> None:
        """Restore SIGTERM in a forked child, which its parent must be able to end.

        Other signals are for the training to handle.
        """
        original = self._originals.pop(signal.SIGTERM, None)
        if original is not None:
            signal.signal(signal.SIGTERM, original)

    def came(self, seconds: float) -> bool:
        """Return whether a signal has arrived, or arrives within this many seconds."""
        until = time.monotonic() + (seconds if self._originals else 0.0)
        while self.received is None and time.monotonic() < until:
            time.sleep(0.01)
        return self.received is not None

    def _hold(self) -> None:
        for name in self.names:
            number: signal.Signals | None = getattr(signal, name, None)
            if number is None:
                continue
            before = signal.getsignal(number)
            # A handler that C code installed (None) cannot be put back, and is left alone. Ignored
            # signals stay ignored, above all Ctrl-C in a script that runs in the background.
            if before in (None, signal.SIG_IGN):
                continue
            if self.only_deadly and before not in (signal.SIG_DFL, signal.default_int_handler):
                continue
            self._originals[number] = signal.signal(number, self._note)
        if self._originals:
            _entered.add(self)
            self.workers.hold()

    def _let_go(self) -> None:
        _entered.discard(self)
        self.workers.let_go()
        for number, original in self._originals.items():
            signal.signal(number, original)
        self._originals.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        self._counts[number] += 1
        original = self._originals.get(received)
        if callable(original) and original is not signal.default_int_handler:
            self._owed.setdefault(received, original)
        if self._counts[number] >= AT_ONCE.get(received.name, _AT_ONCE):
            owed = self._owed.pop(received, None)
            if received == signal.SIGINT:
                if owed is not None:
                    owed(number, frame)
                raise KeyboardInterrupt
            self._do_as_before(received)
        elif self.received is None or received == signal.SIGINT:
            self.received = received

    def _do_as_before(self, number: signal.Signals) -> None:
        """Let the signal do what it did before the context was entered."""
        signal.signal(number, self._originals.get(number, signal.SIG_DFL))
        os.kill(os.getpid(), number)


class StopOnSignals:
    """End training after the current batch when a signal arrives: SIGTERM, SIGUSR1 or Ctrl-C.

    While the context is entered, signals are held off, see `HeldSignals`.

    A signal often reaches all processes of a job, including those of data loaders. `guard` turns
    what a loader then raises into the stop that was asked for.

    Args:
        state: Where the request to stop is made.
        names: The signals.
        only_deadly: Leave alone signals that already have a handler, other than python's own.

    Attributes:
        may_cut: Says whether training may end before the end of its epoch, when a signal came.
        cut_in_loader: Whether training was ended while it waited for a batch that never came.
    """

    def __init__(
        self, state: TrainingState, names: Sequence[str] = NAMES, only_deadly: bool = False
    ) -> None:
        self.may_cut: Callable[[], bool] = lambda: True
        self.cut_in_loader = False
        self._state, self._held = state, HeldSignals(names, only_deadly)
        self._came: Flag = lambda: self.received is not None
        self._cuts: Flag = lambda: self.received is not None and self.may_cut()
        self._world: World = ONE

    def decide_with(self, world: World, decide: Callable[[Flag], Flag]) -> None:
        """Let a signal that reaches one process end the training in all of them.

        Args:
            world: The processes.
            decide: Makes a decision of one process that of all, see `Together.decide`.
        """
        self._world, self._came, self._cuts = world, decide(self._came), decide(self._cuts)

    def tell_others(self) -> None:
        """Let processes that no signal has reached take the first one that reached another."""
        came = [received for received in self._world.gather(self.received) if received is not None]
        if self._held.received is None and came:
            self._held.received = signal.Signals(came[0])

    @property
    def received(self) -> signal.Signals | None:
        """The signal that arrived; None if none has."""
        return self._held.received

    @property
    def exit_code(self) -> int | None:
        """Exit code by which shells report the signal that arrived; None if none has."""
        return None if self.received is None else 128 + self.received

    def pass_on(self) -> None:
        """End the process as the signal would have done, if one came.

        A handler of the user's is called first; what it raises is raised.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            SystemExit: After another signal, with the shell's exit code for it.
        """
        if self.received is None:
            return
        self._held.tell_users()
        if self.received.name == "SIGINT":
            raise KeyboardInterrupt
        raise SystemExit(self.exit_code)

    def attach(self, engine: Engine) -> None:
        """Check the flag after every batch and after every validation."""
        if not self._held.names:
            return
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def ask_before_training(self) -> None:
        """Request the stop if a signal came before the first batch."""
        if self._world.any(self.received is not None):
            self._state.stop("signal")

    def guard(self, loader: Any) -> Any:
        """Return a loader that ends training, instead of failing, when a signal ends its workers.

        Everything else about the loader stays as it is.

        Args:
            loader: Any iterable of batches.
        """
        # Batches in memory need no workers.
        if not self._held.are_held or isinstance(loader, InMemoryBatches):
            return loader
        return GuardedLoader(loader, self._guarded, self._held.workers)

    def guard_step(self, step: Step | None) -> Step | None:
        """Guard a step that reads from loaders itself, as `guard` does a loader; None stays None.

        Args:
            step: A process function of ignite.
        """
        return None if step is None else lambda *args: self._guarded(step, *args)

    def __enter__(self) -> Self:
        self._held.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.__exit__(kind, error, traceback)

    def _iteration_completed(self, engine: Engine) -> None:
        if self._cuts():
            stop_after_batch(engine, self._state, "signal")

    def _epoch_completed(self, engine: Engine) -> None:
        if self._came():
            self._state.stop("signal")
            engine.terminate()

    def _guarded(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call what reads from a loader; after a signal, its errors count as the requested stop."""
        try:
            with self._held.workers.allowed():
                return function(*args)
        except StopIteration:
            raise
        except Exception as error:
            if not self._held.came(MOMENT if isinstance(error, _WORKER_ERRORS) else 0.0):
                raise
            self.cut_in_loader = True
            self._state.stop("signal")
            raise StoppedInLoader(str(error)) from error


def hold_together(several: Sequence[StopOnSignals]) -> None:
    """Let one signal end all of several trainings; call it before any of them is entered.

    They hold off what any of them does: one that is saved on SIGTERM must not be lost because
    another, which is not saved, leaves SIGTERM alone.

    Args:
        several: What stops each of them.
    """
    holds = [signals._held for signals in several]
    names = dict.fromkeys(name for held in holds for name in held.names)
    together = HeldSignals(tuple(names), all(held.only_deadly for held in holds))
    for signals in several:
        signals._held = together


def signals_to_stop_on(
    settings: Resolved, state: TrainingState, in_process: bool = False
) -> StopOnSignals:
    """Return what holds signals off until everything about a training is saved and logged.

    Args:
        settings: All settings.
        state: The training's numbers.
        in_process: Whether a later call of this process may continue the training.
    """
    if settings.checkpoint is not None:
        return StopOnSignals(state)
    # SIGTERM leaves nothing to continue from, but logged runs end with the right status.
    names = (*(("SIGTERM",) if settings.logging else ()), *(("SIGINT",) if in_process else ()))
    return StopOnSignals(state, names, only_deadly=True)


class GuardedLoader:
    """A loader whose errors go through a guard; everything else is the loader's own.

    Args:
        loader: The loader.
        guarded: Calls a function and looks at what it raises.
        workers: Holds back torch's errors about workers that have died.
    """

    def __init__(self, loader: Any, guarded: Callable[..., Any], workers: _WorkerErrors) -> None:
        self._loader, self._guarded, self._workers = loader, guarded, workers

    def __iter__(self) -> Iterator[Any]:
        with self._workers.torch_in_charge():
            batches = self._guarded(iter, self._loader)
        return _GuardedIterator(batches, self._guarded)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # not there yet: an empty copy is being filled
            raise AttributeError(name)
        return getattr(self._loader, name)


class _GuardedIterator:
    """The batches of one epoch of a guarded loader."""

    def __init__(self, batches: Iterator[Any], guarded: Callable[..., Any]) -> None:
        self._batches, self._guarded = batches, guarded

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self._guarded(next, self._batches)


class _WorkerErrors:
    """Lets torch report that a worker has died only while a loader is asked for a batch.

    torch raises that error from its handler of SIGCHLD, wherever the main thread happens to be:
    inside a step, or while the last checkpoint is being written.
    """

    def __init__(self) -> None:
        self._torchs: Any = None
        self._holding = self._may_raise = self._postponed = False

    def hold(self) -> None:
        """Replace torch's handler, if it is installed."""
        self._holding = True
        number = getattr(signal, "SIGCHLD", None)
        found = None if number is None else signal.getsignal(number)
        if number is not None and _is_torchs(found):
            self._torchs = found
            signal.signal(number, self._child_ended)

    def let_go(self) -> None:
        """Put torch's handler back."""
        if self._torchs is not None and signal.getsignal(signal.SIGCHLD) == self._child_ended:
            signal.signal(signal.SIGCHLD, self._torchs)
        # Only now: a process may end until torch's handler is back.
        self._holding = self._postponed = False
        self._torchs = None

    @contextmanager
    def torch_in_charge(self) -> Iterator[None]:
        """Let torch install its handler, which it does once for all loaders."""
        if not self._holding:
            yield
            return
        self.let_go()
        try:
            yield
        finally:
            self.hold()

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Let errors be raised, including those for workers that died in the meantime."""
        self._may_raise = True
        try:
            if self._postponed:
                self._postponed = False
                self._torchs(signal.SIGCHLD, None)
            yield
        finally:
            self._may_raise = False

    def _child_ended(self, number: int, frame: FrameType | None) -> None:
        if self._may_raise:
            self._torchs(number, frame)
        else:
            self._postponed = True


def _is_torchs(handler: Any) -> bool:
    """Say whether torch's data loaders have installed a signal handler."""
    return callable(handler) and str(handler.__module__).startswith("torch.utils.data.")


def _let_children_end() -> None:
    for held in list(_entered):
        held.let_child_end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_children_end)
