"""Timestamps that never go back."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Seconds since 1970 that never decrease, even if the wall clock is set back.

    Time servers, virtual machines and people set clocks back. Timestamps that followed them would
    give runs a negative duration and points in the wrong order.

    Args:
        wall: Seconds since 1970.
        steady: Seconds that only ever increase.

    Example:
        >>> wall, steady = iter([100.0, 40.0, 500.0]), iter([0.0, 10.0, 15.0])
        >>> clock = Clock(lambda: next(wall), lambda: next(steady))
        >>> clock(), clock()  # set back after 10 s, later set forward
        (110.0, 500.0)
    """

    def __init__(
        self,
        wall: Callable[[], float] = lambda: time.time(),
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._steady = wall, steady
        self._latest = wall(), steady()

    def __call__(self) -> float:
        """Return the time now."""
        at = self._steady()
        # Read at once: another thread may be here too.
        latest, then = self._latest
        time_now = max(self._wall(), latest + at - then)
        self._latest = time_now, at
        return time_now


now = Clock()
"""The clock of this process."""
