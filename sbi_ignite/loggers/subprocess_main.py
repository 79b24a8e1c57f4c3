"""The process in which a backend lives; the other end of `subprocess_backend.py`."""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from sbi_ignite.loggers.base import Backend, EpochFigure, EpochRow, RunInfo
from sbi_ignite.loggers.make import backend_class
from sbi_ignite.loggers.movement import Movement
from sbi_ignite.loggers.subprocess_backend import LINGER_SECONDS
from sbi_ignite.summary import TrainingSummary

_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
_END = ("finish", "fail")
_DOING = {"start": "start up and open its run", "finish": "store the results"}

_NICENESS = 5
"""Where processes compete for a core, the training goes first."""


class Reports:
    """Writes one JSON object per line to the training, as long as it listens.

    Args:
        stream: The training's end of a pipe.
        when_gone: Called once, when the training is found to be no longer listening.
    """

    def __init__(self, stream: IO[str], when_gone: Callable[[], None]) -> None:
        self._stream, self._when_gone = stream, when_gone
        self._gone = False
        self._lock = threading.Lock()

    def __call__(self, **report: Any) -> None:
        """Send one report."""
        # A training that has ended, perhaps during a retry here, no longer listens.
        if not self._sent(report) and not self._gone:
            self._gone = True
            self._when_gone()

    def moving(self, what: str) -> None:
        """Report that work moves, unless the training is gone."""
        if not self._gone:
            self._sent({"moving": what})

    def _sent(self, report: Mapping[str, Any]) -> bool:
        try:
            with self._lock:
                self._stream.write(json.dumps(report) + "\n")
                self._stream.flush()
        except OSError:
            return False
        return True


def main(name: str) -> None:
    """Serve one training.

    Args:
        name: The backend's name.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    messages, report = _take_pipes()
    try:
        serve(name, messages, report)
    except Exception as error:
        report(failed=describe(error))
        code = 1
    else:
        report(done=True)
        code = 0
    # At a regular exit, the libraries might still wait for servers.
    os._exit(code)


def serve(name: str, messages: Iterator[Any], report: Reports) -> None:
    """Hand every message to a new backend; a training that falls silent has been killed."""
    kind, fields = next(messages)
    backend: Any = backend_class(name)(**fields)
    movement = Movement(report.moving, lambda: backend.local)
    backend.say = lambda line: report(say=line)
    backend.still_moving = movement.note
    for kind, *arguments in messages:
        if kind in _END:
            _limit_time()
        with movement.doing(_DOING.get(kind, "store what was logged")):
            _deliver(backend, kind, _decoded(kind, arguments), report)
        if kind == "start":
            report(identity=backend.state_dict())
        if kind in _END:
            return
    _limit_time()
    _deliver(backend, "fail", ("killed", "the process that trained is gone"), report)


def _deliver(backend: Backend, kind: str, arguments: Any, report: Reports) -> None:
    """Hand over one message, again and again if the backend says that this may help."""
    for attempt in itertools.count():
        try:
            getattr(backend, kind)(*arguments)
        except Exception as error:
            if not backend.worth_retrying(error):
                raise
            report(trouble=describe(error))
            time.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
        else:
            if attempt:
                report(recovered=True)
            return


def _decoded(kind: str, arguments: list[Any]) -> tuple[Any, ...]:
    """Return the arguments of a backend's method as it takes them."""
    if kind == "start":
        return RunInfo.from_dict(arguments[0]), arguments[1]
    if kind == "log_epoch":
        return (EpochRow(**arguments[0]),)
    if kind == "log_figure":
        step, figure_name, image, seconds = arguments
        return (EpochFigure(step, figure_name, base64.b64decode(image), seconds),)
    if kind == "finish":
        return (_summary(arguments[0]),)
    return tuple(arguments)


def _summary(plain: Mapping[str, Any]) -> TrainingSummary:
    """Return the summary that `to_dict` made plain."""
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in plain.items()}
    return TrainingSummary(**values)


def describe(error: BaseException) -> str:
    """Return an error in one line of limited length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _limit_time() -> None:
    """End this process after a while, whatever it is waiting for."""
    timer = threading.Timer(LINGER_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _take_pipes() -> tuple[Iterator[Any], Reports]:
    """Return both pipes, and connect stdin and stdout to nothing, for libraries to use."""
    incoming, outgoing = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 # for the life of the process
    os.set_blocking(incoming, True)
    os.set_blocking(outgoing, True)
    return _messages(os.fdopen(incoming, "r")), Reports(os.fdopen(outgoing, "w"), _limit_time)


def _messages(lines: IO[str]) -> Iterator[Any]:
    """Return every whole line's object; a training that is killed may leave half a line."""
    for line in lines:
        if line.endswith("\n"):
            yield json.loads(line)
