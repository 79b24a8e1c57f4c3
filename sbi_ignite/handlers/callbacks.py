"""Call user callbacks at the moments that their methods name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from ignite.engine import Engine

from sbi_ignite.callback import CALLBACK_METHODS, Callback, TrainingState
from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.explain import check_call
from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.summary import TrainingSummary


class UserCallbacks:
    """Call users' callbacks, and attach their ignite handlers, in the order in which they came.

    Args:
        callbacks: Objects with any of the methods of `Callback`, or with ignite's `attach(engine)`.
        state: What the callbacks get to see.

    Raises:
        ArgumentError: If an object has neither.
    """

    def __init__(self, callbacks: Iterable[Any], state: TrainingState) -> None:
        self._callbacks, self._state = tuple(callbacks), state
        _check_callbacks(self._callbacks)

    def attach(self, engine: Engine) -> None:
        """Attach ignite handlers and call `on_epoch_end` after validation."""
        engine.add_event_handler(TrainingEvents.VALIDATED, self._on_epoch_end)
        for callback in self._callbacks:
            if hasattr(callback, "attach"):
                callback.attach(engine)

    def on_train_start(self) -> None:
        """Tell all that training begins."""
        self._call("on_train_start", self._state)

    def on_measure(self) -> None:
        """Let all measure what stopping rules may ask for."""
        self._call("on_measure", self._state)

    def on_train_end(self, summary: TrainingSummary) -> None:
        """Tell all that training ended regularly."""
        self._call("on_train_end", summary)

    def on_saved(self, summary: TrainingSummary) -> None:
        """Tell all that the files of a training that ended regularly are complete."""
        self._call("on_saved", summary)

    def on_exception(self, error: BaseException) -> None:
        """Tell all that training ended with an error."""
        self._call("on_exception", error, self._state)

    def _on_epoch_end(self) -> None:
        self._call("on_epoch_end", self._state)

    def _call(self, name: str, *args: Any) -> None:
        for callback in self._callbacks:
            method = getattr(callback, name, None)
            if method is not None:
                method(*args)


def as_callbacks(callbacks: Any) -> tuple[Any, ...]:
    """Return a user's callbacks as a tuple; one alone is a tuple of one.

    Args:
        callbacks: Callbacks or ignite handlers in any iterable, one of them, or None.

    Raises:
        ArgumentError: If an object has none of their methods.
    """
    if callbacks is None:
        return ()
    alone = _is_callback(callbacks) or not isinstance(callbacks, Iterable)
    several = (callbacks,) if alone else tuple(callbacks)
    _check_callbacks(several)
    return several


def _is_callback(value: Any) -> bool:
    return any(hasattr(value, name) for name in (*CALLBACK_METHODS, "attach"))


def _check_callbacks(callbacks: Iterable[Any]) -> None:
    seen: set[int] = set()
    for callback in callbacks:
        if id(callback) in seen:
            raise ArgumentError(
                f"callbacks: expected every object once, got {callback!r} twice; it would be "
                "called twice at every moment. List it once, or make a second object."
            )
        seen.add(id(callback))
        if isinstance(callback, type) and _is_callback(callback):
            raise ArgumentError(
                f"callbacks: expected an instance, got the class {callback.__name__}. Pass "
                f"{callback.__name__}(...)."
            )
        _check_hooks(callback)
        for name in CALLBACK_METHODS:
            method = getattr(callback, name, None)
            if callable(method):
                argument = "summary" if name in ("on_train_end", "on_saved") else "state"
                takes = ("error", "state") if name == "on_exception" else (argument,)
                expected = f"{type(callback).__name__}: expected {name}({', '.join(takes)})"
                check_call(method, len(takes), expected)
        if not _is_callback(callback):
            raise ArgumentError(
                "callbacks: expected objects with one of the methods "
                f"{', '.join(CALLBACK_METHODS)} or with ignite's attach(engine), got {callback!r}."
            )


def _check_hooks(callback: Any) -> None:
    """Refuse a `Callback` with a method that looks like one of ours and would never be called."""
    if not isinstance(callback, Callback):
        return
    for name in dir(type(callback)):
        if name.startswith("on_") and name not in CALLBACK_METHODS:
            close = difflib.get_close_matches(name, CALLBACK_METHODS, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ArgumentError(
                f"callbacks: {type(callback).__name__}.{name} would never be called; expected some "
                f"of {', '.join(CALLBACK_METHODS)}.{hint} Name helpers without on_."
            )
