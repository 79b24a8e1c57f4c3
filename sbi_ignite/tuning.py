"""Tune settings with Optuna: report every epoch to a trial, and end trials that it prunes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from sbi_ignite.callback import Callback, TrainingState, watched_loss
from sbi_ignite.exceptions import ArgumentError, MissingPackageError

if TYPE_CHECKING:
    from sbi_ignite.summary import TrainingSummary


class OptunaPruning(Callback):
    """Report the validation loss of every epoch to an Optuna trial, and stop if it is pruned.

    A pruned training ends like any other: its last state and best weights are saved, and its
    status in run.json and in trackers is "pruned". Then `train()` raises `optuna.TrialPruned`,
    which tells Optuna. A training that is continued from its run directory reports the epochs that
    it has behind it as well, so that a trial which takes up a killed one is judged like any other.

    Args:
        trial: The trial, as Optuna passes it to the objective.

    Raises:
        MissingPackageError: If Optuna is not installed.
        ArgumentError: If it is not a trial, or one of a study that minimizes several values, which
            Optuna cannot prune.

    Example:
        >>> def objective(trial):
        ...     rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        ...     inference = NPE(prior).append_simulations(theta, x)
        ...     inference.train(
        ...         TrainConfig(learning_rate=rate), callbacks=[OptunaPruning(trial)]
        ...     )
        ...     return inference.training_summary.best_validation_loss
        >>> # optuna.create_study(pruner=optuna.pruners.MedianPruner()).optimize(objective)
    """

    def __init__(self, trial: Any) -> None:
        self._optuna = _optuna()
        if not all(hasattr(trial, name) for name in ("report", "should_prune", "study")):
            raise ArgumentError(
                "OptunaPruning: expected the trial that Optuna passes to the objective, got "
                f"{type(trial).__name__}."
            )
        directions = getattr(trial.study, "directions", ())
        if len(directions) > 1:
            raise ArgumentError(
                "OptunaPruning: expected a study of one value, which Optuna can prune, got one of "
                f"{len(directions)}. Leave the callback out, or optimize the loss alone."
            )
        if any(direction.name == "MAXIMIZE" for direction in directions):
            raise ArgumentError(
                "OptunaPruning: expected a study that minimizes, because a loss is reported, got "
                'one that maximizes. Make it with create_study(direction="minimize").'
            )
        self._trial = trial

    def on_train_start(self, state: TrainingState) -> None:
        """Report the epochs that a continued training has behind it."""
        history = state.history
        losses = history.validation_loss if state.validated else history.training_loss
        first = state.epoch - len(losses) + 1
        for epoch, loss in enumerate(losses, start=first):
            self._report(loss, epoch)

    def on_epoch_end(self, state: TrainingState) -> None:
        """Report the loss, and ask whether to go on."""
        self._report(watched_loss(state), state.epoch)
        if self._trial.should_prune():
            state.stop("pruned")

    def on_saved(self, summary: TrainingSummary) -> None:
        """Tell Optuna that the trial was pruned.

        Raises:
            optuna.TrialPruned: If it was.
        """
        if summary.stop_reason == "pruned":
            raise self._optuna.TrialPruned(
                f"pruned after epoch {summary.epochs_trained}, best {summary.best_kind} loss "
                f"{summary.best_validation_loss:.4f}"
            )

    def _report(self, loss: float, epoch: int) -> None:
        with warnings.catch_warnings():
            # A trial that takes up another has inherited the values of its epochs.
            warnings.filterwarnings("ignore", message=".*already reported.*")
            self._trial.report(loss, epoch)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingPackageError(
            "OptunaPruning needs the package 'optuna', which is not installed. Install it with: "
            'pip install "sbi-ignite[tune]"'
        ) from error
    return optuna
