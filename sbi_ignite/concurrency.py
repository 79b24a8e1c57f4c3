"""Count trainings that run at once in threads of one process, and warn about the second."""

from __future__ import annotations

import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from sbi_ignite.exceptions import SbiIgniteWarning

_lock = threading.Lock()
_running: Counter[int] = Counter()
"""How many nested trainings a thread is running."""
_met = False
"""Whether threads have trained at once since the last time that none did."""


@contextmanager
def training_in_this_thread() -> Iterator[None]:
    """Count a training for the duration of the block.

    Warns:
        SbiIgniteWarning: If another thread is training; once, until no thread is.
    """
    global _met
    me = threading.get_ident()
    with _lock:
        _running[me] += 1
        meets = len(_running) > 1
        tell = meets and not _met
        _met = _met or meets
    try:
        if tell:
            warnings.warn(
                "Several trainings run at once in threads of this process. They share torch's "
                "random numbers, so that none of them has the numbers of a training that runs "
                "alone, nor the same ones twice. Train in processes instead, for example by "
                "joblib.Parallel(n_jobs=2), whose workers are processes by default.",
                SbiIgniteWarning,
                stacklevel=3,
            )
        yield
    finally:
        with _lock:
            _running[me] -= 1
            if not _running[me]:
                del _running[me]
            _met = _met and bool(_running)


def others_train() -> bool:
    """Return whether a training runs in another thread of this process."""
    return len(_running) > (threading.get_ident() in _running)


def others_may_draw() -> bool:
    """Return whether trainings are started in threads, so that others may draw random numbers.

    They also do so before they train, when they simulate.
    """
    return _met or threading.current_thread() is not threading.main_thread()


def _forget_in_child() -> None:
    """Restart the count in a forked child, which has only the thread that forked."""
    global _lock, _met
    _lock, _met = threading.Lock(), False
    me = threading.get_ident()
    for thread in [thread for thread in _running if thread != me]:
        del _running[thread]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
