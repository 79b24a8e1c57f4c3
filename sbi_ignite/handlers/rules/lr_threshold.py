"""Stop when the learning rate has fallen below a threshold."""

from __future__ import annotations

from sbi_ignite.callback import TrainingState
from sbi_ignite.handlers.rules.base import PlainState, WithoutPatience
from sbi_ignite.settings import EarlyStopping


class LearningRateThreshold(WithoutPatience, PlainState):
    """Stop when the learning rate has fallen below `min_lr`.

    A rate that is still rising, as in a warm-up or at the beginning of a cycle, has not fallen.

    Args:
        min_lr: Lowest rate worth training with.

    Example:
        >>> LearningRateThreshold(min_lr=1e-6).observe(9e-7)
        True
    """

    limits = frozenset({"min_lr"})
    reason = "lr_threshold"

    def __init__(self, min_lr: float) -> None:
        self.min_lr = min_lr

    def should_stop(self, state: TrainingState) -> bool:
        """Observe the learning rate with which the next epoch would begin."""
        return not state.learning_rate_rises and self.observe(state.learning_rate)

    def already_stopped(self, state: TrainingState) -> bool:
        """Say whether the rate was below the limit when an earlier call ended."""
        return state.epoch > 0 and self.should_stop(state)

    def observe(self, learning_rate: float) -> bool:
        """Take in one rate and say whether it is below the limit."""
        return learning_rate < self.min_lr


def make(asked: EarlyStopping, smoothing: float) -> LearningRateThreshold:
    """Return the rule for a setting."""
    return LearningRateThreshold(asked.min_lr)
