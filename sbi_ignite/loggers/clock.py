"""Timestamps that never go back."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Seconds since 1970 by the wall clock, going on evenly where that one is set back.

    A wall clock is set back by time servers, by virtual machines and by hand. Timestamps that
    follow it would give runs a negative duration and curves that turn around.

    Args:
        wall: Seconds since 1970.
        steady: Seconds that only ever increase.

    Example:
        >>> wall, steady = iter([100.0, 40.0, 500.0]), iter([0.0, 10.0, 15.0])
        >>> clock = Clock(lambda: next(wall), lambda: next(steady))
        >>> clock(), clock()  # set back by 70 s within 10 s, then set to what it is
        (110.0, 500.0)
    """

    def __init__(
        self,
        wall: Callable[[], float] = lambda: time.time(),
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._steady = wall, steady
        self._latest, self._at = wall(), steady()

    def __call__(self) -> float:
        """Return the time now."""
        at = self._steady()
        self._latest, self._at = max(self._wall(), self._latest + at - self._at), at
        return self._latest


now = Clock()
"""The time by the one clock of this process."""
