"""How long the end of a training waits for its backends."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence

from sbi_ignite.loggers.base import Backend

LONGEST_SECONDS = 300.0
"""The longest wait for local work, however it moves."""

_LAST_CHANCE = 1.0
"""Seconds to wait where all remaining backends are known to have problems."""

_STILL_SECONDS = 1.0
"""Seconds without a sign of movement after which local work counts as stalled."""

_SILENT_SECONDS = 5.0
"""Seconds of waiting after which the user is told why."""


class Patience:
    """Counts the time in which nothing moved; time in which local work moved is free.

    Args:
        limit: Seconds to wait for what does not move, all pauses together.
        for_local_work: Whether local work is waited for as long as it moves.
    """

    def __init__(self, limit: float, *, for_local_work: bool = True) -> None:
        self._limit, self._for_local_work = limit, for_local_work
        self._began = self._moved = time.monotonic()
        self._still = 0.0
        self.has_spoken = False

    def is_over(self, waiting: Sequence[Backend]) -> bool:
        """Say whether to wait no longer.

        Args:
            waiting: The backends that have not taken in everything.
        """
        now = time.monotonic()
        movers = [b for b in waiting if self._for_local_work and b.trouble is None]
        moved = max((b.moved_at for b in movers), default=-math.inf)
        if moved > self._moved:
            pause = moved - self._moved
            self._still += pause if pause > _STILL_SECONDS else 0.0
            self._moved = moved
            if now - self._began > _SILENT_SECONDS:
                self._speak(next(b for b in movers if b.moved_at == moved))
        hopeful = any(backend.trouble is None for backend in waiting)
        limit = self._limit if hopeful else min(self._limit, _LAST_CHANCE)
        longest = max(self._limit, LONGEST_SECONDS)
        return self._still + now - self._moved > limit or now - self._began > longest

    def _speak(self, backend: Backend) -> None:
        if not self.has_spoken:
            self.has_spoken = True
            print(
                f"sbi_ignite: training has finished. Waiting for {backend.name} to "
                f"{backend.doing}, so that nothing is missing there when train() returns; Ctrl-C "
                f"ends the wait, and {backend.name} goes on in the background.",
                file=sys.stderr,
            )
