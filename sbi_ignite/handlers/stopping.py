"""Stopping rules, and the handler that asks them.

Every rule is a small object that needs no engine. It is given the training state once per epoch and
says whether training should end; `StopOnRules` asks the rules at the right moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events

from sbi_ignite.callback import TrainingState, watched_loss
from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.settings import EarlyStopping


class Rule(Protocol):
    """A stopping rule.

    Attributes:
        reason: What the summary gives as `stop_reason` when this rule ends a training.
    """

    reason: str

    @property
    def patience_left(self) -> int | None:
        """Epochs without improvement still allowed, at least 0; None if it counts none."""
        ...

    def should_stop(self, state: TrainingState) -> bool:
        """Take in the epoch that has just ended and say whether to stop."""
        ...

    def already_stopped(self, state: TrainingState) -> bool:
        """Say, before the first epoch of a call, whether an earlier call ended by this rule."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what the rule remembers, as plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what `state_dict` returned."""
        ...


class WithoutPatience:
    """A rule that does not count epochs."""

    @property
    def patience_left(self) -> None:
        """None."""
        return None


class WithPatience:
    """A rule that counts fruitless epochs up to its patience."""

    patience: int
    fruitless_epochs: int

    @property
    def patience_left(self) -> int:
        """Fruitless epochs still allowed."""
        return max(self.patience - self.fruitless_epochs, 0)


class _PlainState:
    """State of a rule whose public attributes are plain numbers and lists."""

    def state_dict(self) -> dict[str, Any]:
        """Return all attributes."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the attributes that change; the limits stay those of this call."""
        limits = {"patience", "min_delta", "min_lr", "smoothing"}
        vars(self).update({name: value for name, value in state.items() if name not in limits})


class Patience(WithPatience, _PlainState):
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


class TwoStandardDeviations(WithPatience, _PlainState):
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


class LearningRateThreshold(WithoutPatience, _PlainState):
    """Stop when the learning rate has fallen below `min_lr`.

    A rate that is still rising, as in a warm-up or at the beginning of a cycle, has not fallen.

    Args:
        min_lr: Lowest rate worth training with.

    Example:
        >>> LearningRateThreshold(min_lr=1e-6).observe(9e-7)
        True
    """

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


def make_rule(early_stopping: EarlyStopping, smoothing: float = 0.1) -> Rule:
    """Return the rule that a setting describes.

    Args:
        early_stopping: The setting.
        smoothing: Weight of the newest loss for the rule of two standard deviations.
    """
    if early_stopping.kind == "validation_loss":
        return Patience(early_stopping.patience, early_stopping.min_delta)
    if early_stopping.kind == "two_standard_deviations":
        return TwoStandardDeviations(early_stopping.patience, smoothing)
    if early_stopping.kind == "lr_threshold":
        return LearningRateThreshold(early_stopping.min_lr)
    if early_stopping.kind == "when" and early_stopping.rule is not None:
        return When(early_stopping.rule)
    return When(lambda state: False)


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
