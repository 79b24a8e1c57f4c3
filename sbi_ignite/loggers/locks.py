"""Locks between processes of one machine, for stores and runs that only one process may touch."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

_PATIENT_SECONDS = 60.0
_POLL_SECONDS = 0.1


@contextmanager
def alone(name: str, still_waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Keep other processes out; has no effect where locks do not work.

    Args:
        name: What is locked.
        still_waiting: Called repeatedly for up to a minute while another process holds it.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            file = stack.enter_context(_path(name).open("a"))
            deadline = time.monotonic() + _PATIENT_SECONDS
            while not _locked(file) and time.monotonic() < deadline:
                if still_waiting is not None:
                    still_waiting()
                time.sleep(_POLL_SECONDS)
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claim(name: str) -> IO[str] | None:
    """Return what holds a name until it is closed or the process ends; None if it is held already.

    Args:
        name: What is claimed.
    """
    file = _path(name).open("a")
    if _locked(file):
        return file
    file.close()
    return None


def _locked(file: IO[str]) -> bool:
    """Lock a file unless another process has; return whether it is ours."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _path(name: str) -> Path:
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"sbi_ignite-{digest}.lock")
