"""Make the stopping rules of a training and ask them after every epoch."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from ignite.engine import Engine, Events

from sbi_ignite.callback import TrainingState
from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.handlers.rules.base import Rule
from sbi_ignite.settings import EarlyStopping


def make_rule(early_stopping: EarlyStopping, smoothing: float = 0.1) -> Rule:
    """Return the rule that a setting describes, from the page of its kind in `handlers/rules/`.

    Args:
        early_stopping: The setting.
        smoothing: Weight of the newest loss for the rule of two standard deviations.
    """
    page = importlib.import_module(f"sbi_ignite.handlers.rules.{early_stopping.kind}")
    return page.make(early_stopping, smoothing)


class StopOnRules:
    """Ask every rule after every epoch; the first that says stop gives the reason.

    Args:
        rules: All are asked each time, so that each sees every epoch.
        state: Where the request to stop is made.
    """

    def __init__(self, rules: Sequence[Rule], state: TrainingState) -> None:
        self.rules, self._state = tuple(rules), state

    def attach(self, engine: Engine) -> None:
        """Ask when an epoch is validated, and end the engine when a stop was requested."""
        engine.add_event_handler(TrainingEvents.VALIDATED, self._ask)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def ask_before_training(self) -> None:
        """Ask whether the training that this call continues had already ended."""
        for rule in [rule for rule in self.rules if rule.already_stopped(self._state)]:
            self._state.stop(rule.reason)
        self._state.patience_left = self.patience_left

    @property
    def patience_left(self) -> int | None:
        """The smallest `patience_left` of the rules; None if none counts epochs."""
        counted = [left for rule in self.rules if (left := rule.patience_left) is not None]
        return min(counted, default=None)

    def _ask(self) -> None:
        stopping = [rule for rule in self.rules if rule.should_stop(self._state)]
        self._state.note_patience(self.patience_left)
        for rule in stopping:
            self._state.stop(rule.reason)

    def _end(self, engine: Engine) -> None:
        if self._state.stop_reason is not None:
            engine.terminate()
