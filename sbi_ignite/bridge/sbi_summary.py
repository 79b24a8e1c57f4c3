"""Keep the records that an sbi trainer has of its training: counters, summary, tracker.

Private names were read in sbi 0.27.0.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sbi
import torch
from torch import Tensor

from sbi_ignite.bridge.arguments import Call
from sbi_ignite.bridge.losses import is_sbis_own
from sbi_ignite.data.source import Batches
from sbi_ignite.exceptions import CheckpointMismatchError
from sbi_ignite.loggers import Backend, EpochRow
from sbi_ignite.settings import TrainConfig


class TrainerRecords:
    """An sbi trainer's own records of its training, saved and continued with it.

    Args:
        trainer: One of sbi's trainers.
        batches: Batches of training and of validation data, which follow the split of a run that is
            resumed.
    """

    _NAMES = (
        "epoch",
        "_val_loss",
        "_best_val_loss",
        "_epochs_since_last_improvement",
        "train_indices",
        "val_indices",
    )

    def __init__(self, trainer: Any, batches: Sequence[Batches]) -> None:
        self._trainer, self._batches = trainer, tuple(batches)

    def state_dict(self) -> dict[str, Any]:
        """Return split, counters and sbi's summary."""
        own = {name: getattr(self._trainer, name, None) for name in self._NAMES}
        return {**own, "summary": {n: list(v) for n, v in self._trainer._summary.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Write the records back into the trainer; its summary stays the same dict.

        Raises:
            CheckpointMismatchError: If the loaders cannot follow the split of the run.
        """
        self._follow_split(state)
        for name in self._NAMES:
            setattr(self._trainer, name, state[name])
        for name, values in state["summary"].items():
            self._trainer._summary[name] = list(values)

    def _follow_split(self, state: Mapping[str, Any]) -> None:
        """Train and validate on the rows of the run, however this script has split them."""
        names = ("train_indices", "val_indices")
        for name, batches in zip(names, self._batches, strict=True):
            rows, now = state[name], getattr(self._trainer, name, None)
            if rows is None or now is None or torch.equal(_as_rows(rows), _as_rows(now)):
                continue
            if not batches.select(_as_rows(rows)):
                raise CheckpointMismatchError(
                    f"The split differs: this script has chosen other {name} than the run, and "
                    f"{batches.name} cannot be given those of the run. Seed the script "
                    "(torch.manual_seed) before train()."
                )


def _as_rows(indices: Any) -> Tensor:
    return torch.as_tensor(indices).cpu()


class TrainersTracker(Backend):
    """A trainer's sbi tracker, told about every epoch while training runs.

    It receives what sbi's own `_summarize` sends after training, under the same names and steps.

    Args:
        trainer: One of sbi's trainers.
    """

    name = "tracker"
    _METRICS = ("validation_loss", "training_loss", "epoch_durations_sec")

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self._trainer = trainer

    @property
    def tracker(self) -> Any:
        """The trainer's tracker."""
        return self._trainer._tracker

    def log_epoch(self, row: EpochRow) -> None:
        """Pass on sbi's own numbers for the epoch, which for vector fields are averages."""
        if row.replayed or not is_sbis_own(self._trainer, "_summarize"):
            return
        for name in self._METRICS:
            value = self._trainer._summary[name][-1]
            # sbi counts all epochs in its summary from 0, including those of an interrupted call.
            step = len(self._trainer._summary[name]) - 1
            self._trainer._tracker.log_metric(name=name, value=value, step=step)
        self._trainer._tracker.flush()


def report_end(trainer: Any, call: Call) -> None:
    """Complete sbi's records after training: messages, summary lists, tracker.

    Args:
        trainer: The trainer.
        call: The call that was carried out.
    """
    config, epoch = call.settings.train, trainer.epoch
    if config.sbi_compat:
        _report_convergence(trainer, epoch, config.max_epochs)
    else:
        say_how_it_ended(trainer, call)
    close_books(trainer, config)


def say_how_it_ended(trainer: Any, call: Call) -> None:
    """Print, in the typed form, why and where training ended, if progress is to be shown."""
    if not trainer._show_progress_bars or call.logs_to_screen:
        return
    summary = trainer.training_summary
    last = ", ".join(f"{kind} loss {loss:.4f}" for kind, loss in summary.last_losses.items())
    print(
        "\r",
        f"Training ended after {trainer.epoch} epochs ({summary.ended_by}). Last {last}; "
        f"best {summary.best_kind} loss {summary.best_validation_loss:.4f} at epoch "
        f"{summary.best_epoch}.",
        end="",
    )


def close_books(trainer: Any, config: TrainConfig) -> None:
    """Write the totals of a call into sbi's summary and tracker."""
    trainer._summary["epochs_trained"].append(trainer.epoch)
    trainer._summary["best_validation_loss"].append(trainer._best_val_loss)
    _track_totals(trainer)
    if config.show_train_summary:
        print(trainer._describe_round(trainer._round, trainer._summary))


def _track_totals(trainer: Any) -> None:
    """Tell the tracker how the round ended; `TrainersTracker` has sent it the epochs."""
    if not is_sbis_own(trainer, "_summarize"):
        trainer._summarize(round_=trainer._round)
        return
    for name in ("epochs_trained", "best_validation_loss"):
        value = trainer._summary[name][-1]
        trainer._tracker.log_metric(name=name, value=value, step=trainer._round + 1)
    trainer._tracker.flush()


def _report_convergence(trainer: Any, epoch: int, max_epochs: int) -> None:
    """Print or warn as sbi does, with the warning attributed to the user's line."""
    if not is_sbis_own(trainer, "_report_convergence_at_end"):
        trainer._report_convergence_at_end(epoch, max_epochs)
    elif epoch <= max_epochs:
        print("\r", f"Neural network successfully converged after {epoch} epochs.", end="")
    else:
        warn_budget_spent(max_epochs)


def warn_budget_spent(max_epochs: int) -> None:
    """Warn, in sbi's words, that the budget of epochs ran out."""
    warnings.warn(
        f"Maximum number of epochs `max_num_epochs={max_epochs}` reached, "
        "but network has not yet fully converged. Consider increasing it.",
        stacklevel=_stacklevel_of_user(),
    )


def _stacklevel_of_user() -> int:
    """Return the stacklevel of the first frame that belongs to neither sbi nor this package."""
    inside = tuple(f"{Path(str(p)).parent}/" for p in (sbi.__file__, Path(__file__).parents[0]))
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    return level
