"""Stop when a rule of the user says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sbi_ignite.callback import TrainingState
from sbi_ignite.explain import check_call
from sbi_ignite.handlers.rules.base import WithoutPatience
from sbi_ignite.runs.loss_record import changed_variables, describe_loss, loss_differences
from sbi_ignite.settings import EarlyStopping


class When(WithoutPatience):
    """Stop when a user's rule says so.

    Args:
        rule: Called with the training state after every epoch. If the object has `state_dict` and
            `load_state_dict`, they are used for resuming.

    Attributes:
        ended: Whether it has ended the training.
        changed: Values that it reads and that were others when its state was saved, as words.

    Example:
        >>> When(lambda state: state.epoch >= 3).should_stop(TrainingState(model=None, epoch=3))
        True
    """

    reason = "rule"

    def __init__(self, rule: Callable[[TrainingState], Any]) -> None:
        self.rule = rule
        self.ended, self.changed = False, ""
        self._computes = describe_loss(rule)

    def should_stop(self, state: TrainingState) -> bool:
        """Ask the user's rule."""
        self.ended = bool(self.rule(state))
        return self.ended

    def already_stopped(self, state: TrainingState) -> bool:
        """Let a new call go on: the user's rule is asked after its first epoch."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what the rule computes, whether it ended the training, and the user's state."""
        theirs = self.rule.state_dict() if hasattr(self.rule, "state_dict") else {}  # type: ignore[attr-defined] # just asked
        return {"computes": self._computes, "ended": self.ended, "theirs": theirs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand the state back to the user's rule."""
        # Version 0.1 saved the user's state alone.
        is_new = "computes" in state
        # Who asks knows that some rule has ended the training: there, it was the only one to know.
        theirs, self.ended = (state["theirs"], state["ended"]) if is_new else (state, True)
        before = state["computes"] if is_new else self._computes
        self.changed = changed_variables(before, self._computes)
        if theirs and hasattr(self.rule, "load_state_dict"):
            self.rule.load_state_dict(theirs)  # type: ignore[attr-defined] # just asked

    def continues(self, state: Mapping[str, Any]) -> bool:
        """Say whether a state is that of a rule that computes the same."""
        before = state.get("computes", self._computes)
        return not any(loss_differences(before, self._computes))


def make(asked: EarlyStopping, smoothing: float) -> When:
    """Return the rule for a setting, which has checked that it has a callable.

    Raises:
        ArgumentError: If the callable does not take the state.
    """
    if asked.rule is not None:
        check_call(asked.rule, 1, "EarlyStopping.when(rule): expected a callable state -> bool")
    return When(asked.rule or (lambda state: False))
