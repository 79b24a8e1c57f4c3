"""Signs that local work is alive, which tell a training whether it is worth waiting for."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_TICK_SECONDS = 0.25
_WINDOW_TICKS = 4
_LEAST_SHARE = 0.04
"""Share of a processor, over the last second, that counts as movement: more than polling takes, and
less than an import gets on a machine that is busy with ten others."""


class Movement:
    """Reports, from a thread of its own, that local work moves.

    Work moves when this process or a child of it uses the processor, or when `note` was called.
    Nothing is reported between two pieces of work, nor about work for a server.

    Args:
        report: Called with what is being done, up to four times a second.
        is_local: Says whether the work needs this machine only.
    """

    def __init__(self, report: Callable[[str], None], is_local: Callable[[], bool]) -> None:
        self._report, self._is_local = report, is_local
        self._doing: str | None = None
        self._notes = self._notes_seen = 0
        self._looks: deque[tuple[float, float]] = deque(maxlen=_WINDOW_TICKS + 1)
        threading.Thread(target=self._watch, name="sbi_ignite-movement", daemon=True).start()

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Name the work that is done within a block.

        Args:
            what: As the end of "waiting for wandb to ...".
        """
        self.note()
        self._doing = what
        try:
            yield
        finally:
            self._doing = None

    def note(self) -> None:
        """Note that something has moved, even if it needed no processor time."""
        self._notes += 1

    def _watch(self) -> None:
        while True:
            time.sleep(_TICK_SECONDS)
            doing = self._doing
            if doing is not None and self._is_local() and self._has_moved():
                self._report(doing)

    def _has_moved(self) -> bool:
        notes, now, used = self._notes, time.monotonic(), _processor_seconds()
        if self._looks and used < self._looks[-1][1]:  # a child that has ended no longer counts
            self._looks.clear()
        self._looks.append((now, used))
        then, used_then = self._looks[0]
        noted = notes != self._notes_seen
        self._notes_seen = notes
        return noted or (now > then and used - used_then >= _LEAST_SHARE * (now - then))


def _processor_seconds() -> float:
    """Return the processor time of this process and, on Linux, of its living children."""
    return time.process_time() + sum(map(_seconds_of, _children()))


def _children() -> list[int]:
    try:
        lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    except OSError:  # a thread has just ended
        return []
    return [int(pid) for pids in lists for pid in pids.split()]


def _seconds_of(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
