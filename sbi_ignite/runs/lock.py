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

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_TRIES, _PAUSE = 5, 0.02
"""How often, and after how many seconds again, a lock is asked for: `is_held` takes it, too, for an
instant."""

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
            _lock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in _TAKEN:
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


def is_held(path: Path) -> bool | None:
    """Say whether a process holds a lock.

    Args:
        path: The lock file; it is neither made nor changed.

    Returns:
        None where nobody can tell: without such locks on this system or disk, or without the right
        to read the file.

    Example:
        >>> is_held(Path("no such file"))
        False
    """
    if not path.exists():
        return False
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in _TAKEN else None
    else:
        return False
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> None:
    """Lock a file, unless another process holds it for longer than an instant."""
    tries = _TRIES if fcntl is not None else 0
    while fcntl is not None and tries:
        tries -= 1
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _TAKEN or not tries:
                raise
            time.sleep(_PAUSE)
        else:
            tries = 0


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
