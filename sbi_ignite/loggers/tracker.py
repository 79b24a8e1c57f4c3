"""Log to an object that follows sbi's `Tracker` protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sbi_ignite.loggers.base import (
    Backend,
    EpochFigure,
    EpochRow,
    RunInfo,
    origins,
    parameters,
    results,
)

if TYPE_CHECKING:
    from sbi_ignite.summary import TrainingSummary


class SbiTracker(Backend):
    """Tells an sbi `Tracker` everything while training runs.

    Args:
        tracker: The user's object; it is flushed, never closed.
        offset: Added to the steps; sbi's own loop counts epochs from 0, which is -1 here.
        only_metrics: Leave out parameters, results and figure.
    """

    name: str = "tracker"
    shows_figures = True

    def __init__(
        self,
        tracker: Any,
        *,
        offset: int = 0,
        only_metrics: bool = False,
    ) -> None:
        super().__init__()
        self.tracker = tracker
        self._offset, self._only_metrics = offset, only_metrics
        self._step = 0
        self._first_step = offset

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        """Pass on the settings."""
        self._first_step = info.first_step + self._offset
        if not self._only_metrics:
            came_from = {f"origin.{name}": origin for name, origin in origins(info).items()}
            self.tracker.log_params({**parameters(info), **came_from})

    def log_epoch(self, row: EpochRow) -> None:
        """Pass on the numbers and let them be written."""
        if row.replayed:
            return
        self._step = row.step + self._offset
        self.tracker.log_metrics(dict(row.values), self._step)
        self._flush()

    def log_figure(self, figure: EpochFigure) -> None:
        """Pass it on."""
        self.tracker.add_figure(figure.name, figure.figure, figure.step + self._offset)
        self._flush()

    def finish(self, summary: TrainingSummary) -> None:
        """Pass on the results and the loss curve."""
        if not self._only_metrics:
            self.tracker.log_params(results(summary, self._first_step))
            self.tracker.add_figure("loss_curve", summary.plot(), self._step)
        self._flush()

    def fail(self, status: str, message: str) -> None:
        """Pass on what happened."""
        if not self._only_metrics:
            self.tracker.log_params({"status": status, "error": message})
        self._flush()

    def _flush(self) -> None:
        if hasattr(self.tracker, "flush"):
            self.tracker.flush()


def is_tracker(candidate: object) -> bool:
    """Say whether an object follows sbi's protocol, log_dir aside."""
    methods = ("log_metric", "log_metrics", "log_params", "add_figure")
    return all(callable(getattr(candidate, name, None)) for name in methods)
