"""What every stopping rule is.

A rule is a small object that needs no engine. It is given the training state once per epoch and
says whether training should end. Its page ends in `make(asked, smoothing)`, which returns the rule
for an `EarlyStopping`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol

from sbi_ignite.callback import TrainingState


class Rule(Protocol):
    """A stopping rule."""

    @property
    def reason(self) -> str:
        """What the summary gives as `stop_reason` when this rule ends a training."""
        ...

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

    def observe(self, loss: float) -> bool:
        """Take in one loss and say whether patience has run out."""
        raise NotImplementedError

    def recount(self, losses: Iterable[float]) -> None:
        """Take in the losses of epochs that an earlier start had, judged by other rules."""
        for loss in losses:
            self.observe(loss)

    @property
    def patience_left(self) -> int:
        """Fruitless epochs still allowed."""
        return max(self.patience - self.fruitless_epochs, 0)


class PlainState:
    """State of a rule whose attributes are plain numbers and lists.

    Attributes:
        limits: Attributes that are settings of a call; they stay when a state is loaded.
        measures: Those of them by which epochs have been judged already; a state with other values
            says nothing about this rule.
    """

    limits: ClassVar[frozenset[str]] = frozenset()
    measures: ClassVar[frozenset[str]] = frozenset()

    def continues(self, state: Mapping[str, Any]) -> bool:
        """Say whether a state is that of a rule which has judged epochs as this one does."""
        own = vars(self)
        return state.keys() == own.keys() and all(state[n] == own[n] for n in self.measures)

    def state_dict(self) -> dict[str, Any]:
        """Return all attributes."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the attributes that change; the limits stay those of this call."""
        changing = {name: value for name, value in state.items() if name not in self.limits}
        vars(self).update(changing)
