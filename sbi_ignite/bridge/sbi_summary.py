"""Keep the records that an sbi trainer has of its training: counters, summary, tracker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sbi_ignite.bridge.arguments import Call
from sbi_ignite.bridge.convergence import sbis_rule
from sbi_ignite.bridge.lines import SbiTrainer, private
from sbi_ignite.data.source import Batches
from sbi_ignite.exceptions import CheckpointMismatchError
from sbi_ignite.loggers import EPOCH_METRICS, Backend, EpochFigure, EpochRow
from sbi_ignite.settings import TrainConfig


class TrainerRecords:
    """An sbi trainer's own records of its training, saved and continued with it.

    Args:
        trainer: One of sbi's trainers.
        batches: Batches of training and of validation data, which follow the split of a run that is
            resumed.
    """

    def __init__(self, trainer: Any, batches: Sequence[Batches]) -> None:
        self._trainer, self._batches = trainer, tuple(batches)

    def state_dict(self) -> dict[str, Any]:
        """Return split, counters and sbi's summary."""
        own = private(self._trainer)
        return {**own.records(), "summary": {n: list(v) for n, v in own.summary.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Write the records back into the trainer; its summary stays the same dict.

        Raises:
            CheckpointMismatchError: If the loaders cannot follow the split of the run.
        """
        self._follow_split(state)
        own = private(self._trainer)
        own.set_records(state)
        for name, values in state["summary"].items():
            own.summary[name] = list(values)

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


_KNOWN = frozenset((*EPOCH_METRICS, "best_training_loss"))


class TrainersTracker(Backend):
    """A trainer's sbi tracker, told about every epoch while training runs.

    It receives what sbi itself sends after training, under the same names and steps.

    Args:
        trainer: One of sbi's trainers.
    """

    name = "tracker"
    shows_figures = True
    _METRICS = ("validation_loss", "training_loss", "epoch_durations_sec")

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self._trainer = trainer

    @property
    def tracker(self) -> Any:
        """The trainer's tracker."""
        return private(self._trainer).tracker

    def log_epoch(self, row: EpochRow) -> None:
        """Pass on sbi's own numbers for the epoch, which for vector fields are averages."""
        own = private(self._trainer)
        if row.replayed or not own.summarizes_as_sbi:
            return
        for name in self._METRICS:
            # sbi counts all epochs in its summary from 0, including those of an interrupted call.
            own.track(name, own.summary[name][-1], step=len(own.summary[name]) - 1)
        step = len(own.summary["training_loss"]) - 1
        for name in row.values.keys() - _KNOWN:  # what callbacks have logged
            own.track(name, row.values[name], step=step)
        own.flush_tracker()

    def log_figure(self, figure: EpochFigure) -> None:
        """Pass on what a callback has drawn."""
        own = private(self._trainer)
        self.tracker.add_figure(figure.name, figure.figure, len(own.summary["training_loss"]) - 1)
        own.flush_tracker()


def report_end(trainer: Any, call: Call) -> None:
    """Complete sbi's records after training: messages, summary lists, tracker.

    Args:
        trainer: The trainer.
        call: The call that was carried out.
    """
    config = call.settings.train
    if call.world.rank:
        pass  # the first process says it
    elif config.sbi_compat:
        rule = sbis_rule(call)
        private(trainer).report_convergence(rule and rule.patience, config.max_epochs)
    else:
        say_how_it_ended(trainer, call)
    close_books(trainer, config, says=call.world.rank == 0)


@contextmanager
def interruption_shown(trainer: Any, call: Call) -> Iterator[None]:
    """Show what was trained until Ctrl-C, as at other ends, in the typed form.

    In sbi's form nothing is printed, as sbi does; its records stay as sbi leaves them, too.

    Args:
        trainer: The trainer.
        call: The call that is carried out inside the block.
    """
    earlier = trainer.training_summary
    try:
        yield
    except KeyboardInterrupt:
        summary, shows = trainer.training_summary, not call.settings.train.sbi_compat
        if summary is not earlier and shows and not call.world.rank:
            say_how_it_ended(trainer, call)
            if call.settings.train.show_train_summary:
                print(summary)
        raise


def say_how_it_ended(trainer: Any, call: Call) -> None:
    """Print why and where training ended, if progress is to be shown."""
    if not private(trainer).shows_progress or call.logs_to_screen:
        return
    summary = trainer.training_summary
    if not trainer.epoch:
        said = f"Training ended before the end of its first epoch ({summary.ended_by})."
        print("\r", said)
        return
    last = ", ".join(f"{kind} loss {loss:.4f}" for kind, loss in summary.last_losses.items())
    print(
        "\r",
        f"Training ended after {trainer.epoch} epochs ({summary.ended_by}). Last {last}; "
        f"best {summary.best_kind} loss {summary.best_validation_loss:.4f} at epoch "
        f"{summary.best_epoch}.",
    )


def close_books(trainer: Any, config: TrainConfig, says: bool = True) -> None:
    """Write the totals of a call into sbi's summary and, in the first process, tell others.

    Args:
        trainer: The trainer.
        config: The settings of the call.
        says: Whether to write to sbi's tracker and to print.
    """
    own = private(trainer)
    own.summary["epochs_trained"].append(trainer.epoch)
    own.summary["best_validation_loss"].append(own.best_loss)
    if not says:
        return
    _track_totals(own)
    if config.show_train_summary:
        print(own.describe_round())


def _track_totals(own: SbiTrainer) -> None:
    """Tell the tracker how the round ended; `TrainersTracker` has sent it the epochs."""
    if not own.summarizes_as_sbi:
        own.summarize()
        return
    for name in ("epochs_trained", "best_validation_loss"):
        own.track(name, own.summary[name][-1], step=own.round_index + 1)
    own.flush_tracker()
