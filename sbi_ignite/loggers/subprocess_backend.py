"""A backend that lives in a process of its own.

wandb and mlflow may hang, take seconds to import, draw from python's random state and hold up the
exit of the interpreter. In a process of their own they can do none of this to a training, and when
training is killed, they notice and still deliver what they were given.

Both pipes carry one JSON object per line. To the process: `["start", info, identity]`,
`["log_epoch", row]`, ...; back: `{"identity": {...}}`, `{"moving": what}`, `{"failed": why}`,
`{"trouble": why}`, `{"recovered": true}`, `{"say": line}`, `{"done": true}`.
Nothing here ever waits: the pipes do not block and what does not fit stays in memory.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sbi_ignite.loggers.base import Backend, EpochFigure, EpochRow, RunInfo
from sbi_ignite.loggers.clock import now
from sbi_ignite.loggers.surroundings import (
    known_to_this_process,
    new_identity,
    secrets_of_this_process,
)

if TYPE_CHECKING:
    from sbi_ignite.summary import TrainingSummary

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from sbi_ignite.loggers.subprocess_main import main; main(sys.argv[2])"
)


LINGER_SECONDS = 60.0
"""How long the process may go on delivering after training has ended or died."""


class SubprocessError(RuntimeError):
    """The backend in the other process has failed."""


class SubprocessBackend(Backend):
    """Represents a backend that lives in a process of its own.

    Args:
        name: The backend's name.
        fields: Arguments of the backend's class.
    """

    shows_figures = True
    afterwards: str = f"; the rest is delivered in the background for up to {LINGER_SECONDS:g} s"

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        super().__init__(every_n_iterations=fields.get("every_n_iterations"))
        self.name = name
        self._fields = dict(fields)
        self._identity: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._outbox, self._inbox = bytearray(), bytearray()
        self._done = False

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        """Start the process and tell it about the run."""
        self._identity = dict(identity) or new_identity(self.name)
        self._done, self.trouble, self.moved_at = False, None, -math.inf
        self._outbox.clear()
        self._inbox.clear()
        self._process = self._spawn()
        fields = {**self._fields, **known_to_this_process(self.name, self._identity)}
        self._send("make", fields)
        known = {**self._identity, "continued": bool(identity)}
        self._send("start", info.to_dict(), known)

    def log_epoch(self, row: EpochRow) -> None:
        """Send the numbers."""
        self._send("log_epoch", dataclasses.asdict(row))

    def log_figure(self, figure: EpochFigure) -> None:
        """Send it as a PNG file."""
        image = base64.b64encode(figure.png()).decode()
        self._send("log_figure", figure.step, figure.name, image, figure.time)

    def log_iteration(self, iteration: int, values: Mapping[str, float]) -> None:
        """Send the numbers."""
        self._send("log_iteration", iteration, values, now())

    def finish(self, summary: TrainingSummary) -> None:
        """Send the summary."""
        self._send("finish", summary.to_dict())

    def fail(self, status: str, message: str) -> None:
        """Send what happened."""
        self._send("fail", status, message)

    def settled(self) -> bool:
        """Say whether the process reports that everything has arrived."""
        self._exchange()
        return self._done

    def abandon(self) -> None:
        """Close the pipes; a process with problems is ended, a slow one may go on for a while."""
        process, self._process = self._process, None
        if process is None:
            return
        if self.trouble is not None:
            with contextlib.suppress(OSError):
                process.kill()
        self._hand_over(process)
        # The process must be reaped when it ends, without anything waiting for it.
        threading.Thread(target=process.wait, daemon=True).start()

    def state_dict(self) -> dict[str, Any]:
        """Return the run's identifier."""
        return dict(self._identity)

    # --- the process and its pipes

    def _spawn(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[2])
        path = [os.getcwd() if entry == "" else entry for entry in sys.path]
        environment = {
            **os.environ,
            **secrets_of_this_process(self.name),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
            "PYTHONWARNINGS": "ignore",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps([root, *path]), self.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            # Ctrl-C in the terminal is for the training, which then sends this process a message.
            start_new_session=True,
            bufsize=0,
        )
        for pipe in (process.stdin, process.stdout):
            os.set_blocking(pipe.fileno(), False)  # type: ignore[union-attr] # both are pipes
        return process

    def _send(self, *message: Any) -> None:
        if self._process is None:
            raise SubprocessError("its process was not started")
        self._outbox += json.dumps(message).encode() + b"\n"
        self._exchange()

    def _exchange(self) -> None:
        """Write what the pipes take, and read what they hold, at this moment."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return
        broken = not _write_some(process.stdin.fileno(), self._outbox)
        ended = not _read_some(process.stdout.fileno(), self._inbox)
        self._read_reports()
        if (broken or ended) and not self._done:
            raise SubprocessError(f"its process ended early (exit code {process.poll()})")

    def _read_reports(self) -> None:
        *lines, rest = self._inbox.split(b"\n")
        self._inbox = bytearray(rest)
        for line in lines:
            report = json.loads(line)
            self._done = self._done or "done" in report
            self._identity |= report.get("identity", {})
            if "moving" in report:
                self.doing, self.moved_at = report["moving"], time.monotonic()
            if "say" in report:
                print(report["say"], file=sys.stderr)
            if "trouble" in report or "recovered" in report:
                self.trouble = report.get("trouble")
            if "failed" in report:
                self.trouble = report["failed"]
                raise SubprocessError(report["failed"])

    def _hand_over(self, process: subprocess.Popen[bytes]) -> None:
        """Close our ends of the pipes, which tells the process that the training is over."""
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _write_some(pipe: int, outbox: bytearray) -> bool:
    """Write as much as the pipe takes; False if nobody reads it any more."""
    try:
        while outbox:
            del outbox[: os.write(pipe, outbox[:65536])]
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def _read_some(pipe: int, inbox: bytearray) -> bool:
    """Read as much as the pipe has; False if nobody writes to it any more."""
    try:
        while data := os.read(pipe, 65536):
            inbox += data
    except BlockingIOError:
        return True
    return False
