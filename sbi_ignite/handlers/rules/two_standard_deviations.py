"""Stop when a noisy loss has clearly risen above the best, as sbi does for FMPE and NPSE."""

from __future__ import annotations

import math

import torch

from sbi_ignite.callback import TrainingState, watched_loss
from sbi_ignite.handlers.rules.base import PlainState, WithPatience
from sbi_ignite.settings import EarlyStopping


class TwoStandardDeviations(WithPatience, PlainState):
    """sbi's rule for flow matching and score matching, whose losses are noisy.

    An epoch is fruitless when its loss is more than two standard deviations, taken over the last
    `2 * patience` smoothed losses, above the best; any other resets the count. Nothing is counted
    before `patience` epochs.

    Args:
        patience: Fruitless epochs in a row to let pass.
        smoothing: Weight of the newest loss in the running average; 1 does not smooth.

    Example:
        >>> rule = TwoStandardDeviations(patience=1, smoothing=1.0)
        >>> [rule.observe(loss) for loss in (1.0, 0.9, 1.0, 5.0)]
        [False, False, False, False]
    """

    limits = frozenset({"patience", "smoothing"})
    measures = frozenset({"smoothing"})
    reason = "patience"

    def __init__(self, patience: int, smoothing: float = 0.1) -> None:
        self.patience, self.smoothing = patience, smoothing
        self.best = math.inf
        self.smoothed: list[float] = []
        self.fruitless_epochs = 0

    def should_stop(self, state: TrainingState) -> bool:
        """Observe the loss of the epoch."""
        return self.observe(watched_loss(state))

    def already_stopped(self, state: TrainingState) -> bool:
        """Say whether patience had run out."""
        return self.fruitless_epochs >= self.patience

    def observe(self, loss: float) -> bool:
        """Take in one loss and say whether patience has run out."""
        previous = self.smoothed[-1] if self.smoothed else loss
        self.smoothed.append((1 - self.smoothing) * previous + self.smoothing * loss)
        if loss < self.best:
            self.best, self.fruitless_epochs = loss, 0
        elif len(self.smoothed) >= self.patience:
            recent = torch.tensor(self.smoothed[-2 * self.patience :])
            spread = recent.std().item() if len(recent) > 1 else math.inf
            worse = not loss - self.best <= 2.0 * spread
            self.fruitless_epochs = self.fruitless_epochs + 1 if worse else 0
        return self.fruitless_epochs >= self.patience


def make(asked: EarlyStopping, smoothing: float) -> TwoStandardDeviations:
    """Return the rule for a setting; `smoothing` is the weight of the newest loss."""
    return TwoStandardDeviations(asked.patience, smoothing)
