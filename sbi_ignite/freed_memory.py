"""Return freed memory to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def return_freed_memory() -> bool:
    """Return the memory that this process has freed to the system, as far as it can.

    glibc keeps what is freed, in pieces between what is in use, for its next requests. Larger
    requests do not fit into the pieces: a process grows by the intermediate results of a large
    batch each time that these have other sizes or come in another order. Elsewhere this does
    nothing.

    Returns:
        Whether memory was returned.

    Example:
        >>> return_freed_memory() in (True, False)
        True
    """
    trim = _malloc_trim()
    return trim is not None and trim(0) == 1


@cache
def _malloc_trim() -> Any:
    """Return glibc's function; None where the C library has none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
