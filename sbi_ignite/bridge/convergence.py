"""Choose the stopping rules of a call and the keeper of its best weights.

In sbi's form the trainer's own `_converged` decides and keeps the best weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import nn

from sbi_ignite.bridge.arguments import Call
from sbi_ignite.bridge.lines import private
from sbi_ignite.callback import TrainingState
from sbi_ignite.handlers.best_weights import BestWeights
from sbi_ignite.handlers.rules.base import Rule, WithoutPatience
from sbi_ignite.handlers.stopping import make_rule
from sbi_ignite.settings import EarlyStopping


def rules_of(
    trainer: Any, call: Call, state: TrainingState
) -> tuple[tuple[Rule, ...], BestWeights]:
    """Return the stopping rules of a call and the keeper of its best weights.

    In sbi's form the trainer's own `_converged` decides, and keeps the best weights, unless the
    call asks for something that it does not support.
    """
    asked, config = call.settings.early_stopping, call.settings.train
    if not config.sbi_compat:
        rules = tuple(make_rule(rule, call.ema_loss_decay) for rule in asked)
        return rules, KeptOnTrainer(trainer, state)
    budget = SbiBudget(trainer, config.max_epochs)
    own = sbis_rule(call)
    others = tuple(make_rule(rule, call.ema_loss_decay) for rule in asked if rule is not own)
    if own is None:
        return (budget, *others), KeptOnTrainer(trainer, state)
    converged = SbiConverged(trainer, own.patience, config.max_epochs)
    return (budget, converged, *others), KeptBySbi(trainer, converged, state)


def sbis_rule(call: Call) -> EarlyStopping | None:
    """Return the rule of a call that sbi's `_converged` implements for its method, if there is one.

    Args:
        call: The call.
    """
    kind = call.method.default_rule.kind
    rules = call.settings.early_stopping
    return next((rule for rule in rules if rule.kind == kind and rule.min_delta == 0.0), None)


class _Trainers:
    """A rule whose state is in the trainer's own attributes, which `TrainerRecords` saves."""

    def __init__(self, trainer: Any, max_epochs: int) -> None:
        self._trainer, self._max_epochs = private(trainer), max_epochs

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing: there is no state of its own."""

    @property
    def spent(self) -> bool:
        """Whether the trainer's count is over the budget."""
        return self._trainer.trainer.epoch > self._max_epochs


class SbiBudget(WithoutPatience, _Trainers):
    """sbi's budget of epochs: `max_num_epochs=N` trains up to N + 1."""

    reason = "max_epochs"

    def should_stop(self, state: TrainingState) -> bool:
        """Say whether the trainer's count is over the budget."""
        return self.spent

    def already_stopped(self, state: TrainingState) -> bool:
        """Say whether it is over the budget before the first epoch."""
        return self.spent


class SbiConverged(_Trainers):
    """The trainer's own `_converged`, called when sbi would call it.

    Args:
        trainer: One of sbi's trainers.
        patience: sbi's `stop_after_epochs`.
        max_epochs: sbi's `max_num_epochs`.
    """

    reason = "patience"

    def __init__(self, trainer: Any, patience: int, max_epochs: int) -> None:
        super().__init__(trainer, max_epochs)
        self._patience = patience
        self.converged = False
        self._continued = False

    @property
    def patience_left(self) -> int | None:
        """Patience left by sbi's count; None if a user's own `_converged` counts."""
        fruitless = self._trainer.fruitless_epochs
        if fruitless is None or not self._trainer.converges_as_sbi:
            return None
        return max(self._patience - fruitless, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return whether `_converged` has ended the training."""
        return {"converged": self.converged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue without calling it again, which would count one epoch too many."""
        self.converged, self._continued = state["converged"], True

    def should_stop(self, state: TrainingState) -> bool:
        """Call it after an epoch; as in sbi, not after the last one of the budget."""
        before = self._trainer.best_weights
        stop = self._ask(state)
        is_new = self._trainer.best_weights is not before
        state.note_best(state.best_validation_loss, state.epoch if is_new else state.best_epoch)
        return stop

    def already_stopped(self, state: TrainingState) -> bool:
        """Call it before the first epoch, which also resets the trainer's state at epoch 0."""
        if not self._continued:
            return self._ask(state)
        if self._trainer.converges_as_sbi:
            patient = (self._trainer.fruitless_epochs or 0) < self._patience
            self.converged = self.converged and not patient
        return self.converged

    def _ask(self, state: TrainingState) -> bool:
        if self.spent:
            return False
        self.converged = self._trainer.converged(self._patience)
        state.best_validation_loss = self._trainer.best_loss
        return self.converged


class KeptBySbi(BestWeights):
    """The best weights as sbi's `_converged` keeps them on the trainer.

    Args:
        trainer: One of sbi's trainers.
        rule: The rule that calls `_converged`.
        state: The state of the training.
    """

    def __init__(self, trainer: Any, rule: SbiConverged, state: TrainingState) -> None:
        super().__init__(state)
        self._trainer, self._rule = private(trainer), rule
        self._last: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the best weights: those that the trainer has, or those of the last epoch."""
        weights = self._trainer.best_weights if self._last is None else self._last
        return {"loss": self.loss, "epoch": 0, "weights": weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give the trainer its best weights back."""
        self._trainer.best_weights = state["weights"]

    def update(self) -> None:
        """Leave the weights to `_converged`, which never sees the last epoch of a spent budget."""
        trainer, state = self._trainer, self._state
        if self._rule.spent and trainer.validation_loss < trainer.best_loss:
            weights = deepcopy(state.model.state_dict())
            if trainer.scores_last_epoch:
                trainer.keep_best(trainer.validation_loss, weights)
            else:
                # The trainer itself looks at this epoch when it reports how training ended.
                self._last = weights
            state.note_best(trainer.validation_loss, state.epoch)

    def restore(self, model: nn.Module) -> None:
        """Load the best weights that the trainer has."""
        if self._trainer.best_weights is not None:
            model.load_state_dict(self._trainer.best_weights)

    def conclude(self, model: nn.Module) -> None:
        """Load the best weights, unless `_converged` has ended the training and done so."""
        if self._rule.spent and not self._trainer.scores_last_epoch:
            return  # as in sbi, the network keeps the weights of the last epoch
        if not self._rule.converged:
            self.restore(model)


class KeptOnTrainer(BestWeights):
    """The best weights, also available on the trainer under sbi's names.

    Args:
        trainer: One of sbi's trainers.
        state: The state of the training; where epochs are done, the trainer has weights of them.
    """

    def __init__(self, trainer: Any, state: TrainingState) -> None:
        super().__init__(state)
        self._trainer = private(trainer)
        if state.epoch and self._trainer.best_weights is not None:
            self.weights = self._trainer.best_weights
            state.best_validation_loss = self._trainer.best_loss
            state.best_epoch = trainer.epoch - (self._trainer.fruitless_epochs or 0)

    def update(self) -> None:
        """Look at the epoch and tell the trainer."""
        super().update()
        self._tell()

    def take(self, loss: float) -> None:
        """Take the weights as the best ones and tell the trainer."""
        super().take(loss)
        self._tell()

    def _tell(self) -> None:
        fruitless = self._state.epoch - self.epoch
        self._trainer.keep_best(self.loss, self.weights, fruitless)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue, and give the trainer its best weights back."""
        super().load_state_dict(state)
        self._trainer.best_weights = self.weights
