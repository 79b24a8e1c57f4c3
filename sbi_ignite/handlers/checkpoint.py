"""Save checkpoints at the end of epochs, by the clock and on request."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from ignite.engine import Engine, Events

from sbi_ignite.callback import TrainingState
from sbi_ignite.handlers.stop_mid_epoch import CUT_SHORT, ends_epoch
from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.snapshot import Snapshot
from sbi_ignite.settings import CheckpointConfig


class NoFiles:
    """Stands for the run directory in processes that write no files."""

    def write(self, *args: Any) -> None:
        """Write nothing."""

    write_in_background = write
    set_metrics = append_metrics = report = write

    def wait(self) -> None:
        """Wait for nothing."""


class CheckpointHandler:
    """Save a training into its run directory, so that it can be continued exactly.

    Attach it last: what other handlers change at the same event must be in the file. States are
    copied in the training's thread and written in another one, at most one checkpoint at a time.

    Args:
        directory: The run directory.
        config: How often to save.
        take: Returns the training as it stands.
        state: The training's numbers.
        mid_epoch: Whether a training can be continued between two batches; if not, checkpoints
            are taken at the end of epochs only.
        background: Write in another thread; False where the process is forked while training.
        decide: Makes a decision of one process that of all, see `Together.decide`.
    """

    def __init__(
        self,
        directory: RunDirectory | NoFiles,
        config: CheckpointConfig,
        take: Callable[[], Snapshot],
        state: TrainingState,
        mid_epoch: bool = True,
        background: bool = True,
        decide: Callable[[Callable[[], bool]], Callable[[], bool]] = lambda flag: flag,
    ) -> None:
        self.directory, self.config = directory, config
        self._take, self._state = take, state
        self._mid_epoch, self._background = mid_epoch, background
        self._saved: tuple[int, int] | None = None
        self._saved_at = time.monotonic()
        self._rows = 0
        self._rows_written_well = False
        self._is_due = decide(self._time_is_up)

    def attach(self, engine: Engine) -> None:
        """Save after epochs and, between batches, by the clock and when training is cut short."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        if self._mid_epoch:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)

    def start(self) -> None:
        """Make metrics.jsonl exactly the history so far: that of the checkpoint resumed from."""
        self._write_metrics(whole=True)

    def save_now(self) -> None:
        """Save the training as it stands, unless that was done at this very iteration."""
        self._save(None)

    def _save(self, stop: Mapping[str, str] | None) -> None:
        now = (self._state.epoch, self._state.iteration)
        if self._saved == now:
            return
        write = self.directory.write_in_background if self._background else self.directory.write
        write(*now, self._take().with_words(stop=stop))
        self._saved, self._saved_at = now, time.monotonic()

    def finish(self) -> None:
        """Save what is not saved yet and wait until everything is on the disk."""
        self._write_metrics()
        self._save(self._stop())
        self.directory.wait()

    def _epoch_completed(self) -> None:
        self._write_metrics()
        due = self._state.epoch % self.config.every_epochs == 0
        if due or self._is_due() or self._state.stop_reason is not None:
            self._save(self._stop())

    def _iteration_completed(self, engine: Engine) -> None:
        if ends_epoch(engine):
            return  # saved after validation: before it, the epoch's end would be lost on resume
        if self._is_due() or self._state.stop_reason in CUT_SHORT:
            self.save_now()

    def _time_is_up(self) -> bool:
        seconds = self.config.every_seconds
        return seconds is not None and time.monotonic() - self._saved_at >= seconds

    def _stop(self) -> dict[str, str] | None:
        """Return a request to stop that no rule would make again after a resume."""
        if self._state.stop_reason not in ("rule", "callback", "pruned"):
            return None
        return {"reason": self._state.stop_reason, "message": self._state.stop_message}

    def _write_metrics(self, whole: bool = False) -> None:
        """Append the epochs that are new; write all anew if an earlier attempt failed."""
        rows = metrics_rows(self._state, 0 if whole or not self._rows_written_well else self._rows)
        try:
            if whole or not self._rows_written_well:
                self.directory.set_metrics(rows)
            else:
                for row in rows:
                    self.directory.append_metrics(row)
        except OSError as error:
            self._rows_written_well = False
            self.directory.report(error)
        else:
            self._rows_written_well = True
            self._rows = len(self._state.history.training_loss)


def metrics_rows(state: TrainingState, first: int = 0) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl from epoch number `first` (counted from 0) on."""
    history = state.history
    epochs = range(first, len(history.training_loss))
    return [
        {"epoch": i + 1, **history.row(i, state.validated), **_stage(history.stage[i])}
        for i in epochs
    ]


def _stage(number: float) -> dict[str, int]:
    """Return the entry for the stage of an epoch; none where it is unknown."""
    return {} if math.isnan(number) else {"stage": int(number)}
