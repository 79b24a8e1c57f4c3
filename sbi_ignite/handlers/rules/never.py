"""Train all epochs."""

from __future__ import annotations

from sbi_ignite.handlers.rules.when import When
from sbi_ignite.settings import EarlyStopping


def make(asked: EarlyStopping, smoothing: float) -> When:
    """Return a rule that never stops a training."""
    return When(lambda state: False)
