"""Stop when the loss has not improved for some epochs."""

from __future__ import annotations

import math

from sbi_ignite.callback import TrainingState, watched_loss
from sbi_ignite.handlers.rules.base import PlainState, WithPatience
from sbi_ignite.settings import EarlyStopping


class Patience(WithPatience, PlainState):
    """Stop after `patience` epochs without an improvement of more than `min_delta`.

    Improvements add up: the loss is compared with the one at the last improvement that counted, so
    that a slow steady descent is not a plateau. NaN never counts.

    Args:
        patience: Fruitless epochs to let pass.
        min_delta: How much lower a loss must be, in its own units, whatever its sign.

    Example:
        >>> rule = Patience(patience=2)
        >>> [rule.observe(loss) for loss in (1.0, 0.5, 0.6, float("nan"))]
        [False, False, False, True]
    """

    limits = frozenset({"patience", "min_delta"})
    measures = frozenset({"min_delta"})
    reason = "patience"

    def __init__(self, patience: int, min_delta: float = 0.0) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.reference = math.inf
        self.fruitless_epochs = 0

    def should_stop(self, state: TrainingState) -> bool:
        """Observe the loss of the epoch."""
        return self.observe(watched_loss(state))

    def already_stopped(self, state: TrainingState) -> bool:
        """Say whether patience had run out."""
        return self.fruitless_epochs >= self.patience

    def observe(self, loss: float) -> bool:
        """Take in one loss and say whether patience has run out."""
        if loss < self.reference - self.min_delta:
            self.reference, self.fruitless_epochs = loss, 0
        else:
            self.fruitless_epochs += 1
        return self.fruitless_epochs >= self.patience


def make(asked: EarlyStopping, smoothing: float) -> Patience:
    """Return the rule for a setting."""
    return Patience(asked.patience, asked.min_delta)
