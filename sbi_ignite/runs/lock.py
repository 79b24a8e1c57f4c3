"""Lock a run directory, so that no other process writes into it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
import warnings
import weakref
from pathlib import Path

from sbi_ignite.exceptions import CheckpointError, SbiIgniteWarning

try:
    import fcntl
except ImportError:  # Windows has no such locks; there nobody is kept out
    fcntl = None

_held: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """An operating-system lock on a file; it ends with the process, however that ends.

    Args:
        path: The lock file. It stays behind, unlocked: removing it would let two processes lock
            two files of the same name.

    Raises:
        CheckpointError: If another process holds the lock, or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._acquire(path)
        except OSError as error:
            self.release()
            raise CheckpointError(
                f"{path.parent} cannot be used as a run directory: {error.strerror}."
            ) from error
        except CheckpointError:
            self.release()
            raise
        _held.add(self)

    def release(self) -> None:
        """Let others in."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _acquire(self, path: Path) -> None:
        descriptor = self._descriptor
        if fcntl is None or descriptor is None:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise CheckpointError(
                    f"{path.parent} is in use by {_holder(descriptor)}. Wait for it or stop it, or "
                    "train in another directory."
                ) from error
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            warnings.warn(
                f"{path.parent}: this file system has no locks, so make sure that no other "
                "process trains in this directory.",
                SbiIgniteWarning,
                stacklevel=2,
            )
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
        # On a full disk the lock still holds; only the holder's name is missing.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(me).encode() + b"\n", 0)


def _holder(descriptor: int) -> str:
    """Name the process that wrote into the lock file."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
    return "another process"


def _forget_in_child() -> None:
    """Close inherited locks in a forked child, such as a data loader's worker.

    A child that outlives its killed parent would keep the lock otherwise.
    """
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
