"""Make the stopping rules of a training and ask them after every epoch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events

from sbi_ignite.callback import TrainingState
from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.handlers.rules.base import Rule, WithPatience
from sbi_ignite.handlers.rules.when import When
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

    A rule continues from the state of a rule of its kind that judged epochs as it does. One without
    such a predecessor counts the epochs that the training already has.

    Args:
        rules: All are asked each time, so that each sees every epoch.
        state: Where the request to stop is made.
    """

    def __init__(self, rules: Sequence[Rule], state: TrainingState) -> None:
        self.rules, self._state = tuple(rules), state
        self._new: tuple[Rule, ...] = ()

    def attach(self, engine: Engine) -> None:
        """Ask when an epoch is validated, and end the engine when a stop was requested."""
        engine.add_event_handler(TrainingEvents.VALIDATED, self._ask)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def ask_before_training(self) -> None:
        """Ask whether the training that this call continues had already ended."""
        history = self._state.history
        losses = history.validation_loss if self._state.validated else history.training_loss
        for rule in self._new:
            if isinstance(rule, WithPatience):
                rule.recount(losses)
        self._new = ()
        for rule in [rule for rule in self.rules if rule.already_stopped(self._state)]:
            self._state.stop(rule.reason)
        self._state.patience_left = self.patience_left

    def ended_by_user(self) -> Iterator[str]:
        """Ask whether a training that a rule of the user's has ended is over in this call, too.

        It is if that rule computes the same; another rule is asked.

        Yields:
            For each such rule the values that it reads and that were others then, as words.
        """
        for rule in self.rules:
            if isinstance(rule, When) and (
                rule.should_stop(self._state) if rule in self._new else rule.ended
            ):
                yield rule.changed

    @property
    def patience_left(self) -> int | None:
        """The smallest `patience_left` of the rules; None if none counts epochs."""
        counted = [left for rule in self.rules if (left := rule.patience_left) is not None]
        return min(counted, default=None)

    def state_dict(self) -> dict[str, Any]:
        """Return what the rules remember, each with its kind."""
        return {"rules": [{"kind": _kind(rule), "state": rule.state_dict()} for rule in self.rules]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each rule the state of its predecessor, whatever their numbers."""
        left, new = list(state["rules"]), []
        for i, rule in enumerate(self.rules):
            found = next((entry for entry in left if _continues(rule, i, entry)), None)
            if found is None:
                new.append(rule)
            else:
                left.remove(found)
                rule.load_state_dict(found["state"])
        self._new = tuple(new)

    def _ask(self) -> None:
        stopping = [rule for rule in self.rules if rule.should_stop(self._state)]
        self._state.note_patience(self.patience_left)
        for rule in stopping:
            self._state.stop(rule.reason)

    def _end(self, engine: Engine) -> None:
        if self._state.stop_reason is not None:
            engine.terminate()


def _kind(rule: Rule) -> str:
    return type(rule).__name__


def _continues(rule: Rule, number: int, entry: Mapping[str, Any]) -> bool:
    """Say whether a rule can continue from an entry of `StopOnRules.state_dict`.

    Args:
        rule: The rule.
        number: Its number, from 0.
        entry: The entry. Those of version 0.1 have a "number" instead of a kind.
    """
    if entry.get("number", number) != number or entry.get("kind", _kind(rule)) != _kind(rule):
        return False
    state, continues = entry["state"], getattr(rule, "continues", None)
    return continues is None or continues(state)


def rules_as_now(states: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return saved states with those of the rules as `StopOnRules` takes them.

    Args:
        states: States of a checkpoint; version 0.1 has a "rule-0", a "rule-1", ... for each rule.
    """
    numbers = {name: int(name[5:]) for name in states if name.startswith("rule-")}
    if not numbers:
        return states
    rules = [{"number": number, "state": states[name]} for name, number in numbers.items()]
    return {**{n: s for n, s in states.items() if n not in numbers}, "rules": {"rules": rules}}
