"""Stop when a rule of the user says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sbi_ignite.callback import TrainingState
from sbi_ignite.explain import check_call
from sbi_ignite.handlers.rules.base import WithoutPatience
from sbi_ignite.settings import EarlyStopping


class When(WithoutPatience):
    """Stop when a user's rule says so.

    Args:
        rule: Called with the training state after every epoch. If the object has `state_dict` and
            `load_state_dict`, they are used for resuming.

    Example:
        >>> When(lambda state: state.epoch >= 3).should_stop(TrainingState(model=None, epoch=3))
        True
    """

    reason = "rule"

    def __init__(self, rule: Callable[[TrainingState], Any]) -> None:
        self.rule = rule

    def should_stop(self, state: TrainingState) -> bool:
        """Ask the user's rule."""
        return bool(self.rule(state))

    def already_stopped(self, state: TrainingState) -> bool:
        """Let a new call go on: the user's rule is asked after its first epoch."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the user's state, {} where the rule has none."""
        return self.rule.state_dict() if hasattr(self.rule, "state_dict") else {}  # type: ignore[attr-defined] # just asked

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand the state back to the user's rule."""
        if hasattr(self.rule, "load_state_dict"):
            self.rule.load_state_dict(state)  # type: ignore[attr-defined] # just asked


def make(asked: EarlyStopping, smoothing: float) -> When:
    """Return the rule for a setting, which has checked that it has a callable.

    Raises:
        ArgumentError: If the callable does not take the state.
    """
    if asked.rule is not None:
        check_call(asked.rule, 1, "EarlyStopping.when(rule): expected a callable state -> bool")
    return When(asked.rule or (lambda state: False))
