"""Log to a logger of `ignite.handlers`, through a small engine of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sbi_ignite.loggers.base import Backend, EpochRow, RunInfo, parameters, results

if TYPE_CHECKING:
    from sbi_ignite.summary import TrainingSummary


class IgniteLogger(Backend):
    """Fires the events of a small engine that holds our metrics; the logger listens to that one.

    The training's own engine stays out of the logger's reach: any error in a handler would end it.
    Metric names get the tag "sbi": "sbi/validation_loss". The logger is the user's and stays open.

    Args:
        logger: A logger of `ignite.handlers`, its progress bar included.
    """

    name: str = "ignite"

    def __init__(self, logger: Any) -> None:
        super().__init__()
        from ignite.engine import Engine, Events
        from ignite.handlers import ProgressBar

        self.logger, self._step, self._event = logger, 0, Events.EPOCH_COMPLETED
        self._echo = Engine(lambda engine, batch: None)
        self._is_bar = isinstance(logger, ProgressBar)
        if self._is_bar:
            # An instance attribute, since only this one of ignite's loggers draws.
            self.shows_progress = True

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        """Attach the logger and pass on the settings where it has a place for them."""
        from ignite.engine import Events

        self._first = info.first_step
        if self._is_bar:
            self._echo.state.max_epochs = info.max_epochs
            self.logger.attach(
                self._echo,
                metric_names="all",
                event_name=Events.EPOCH_COMPLETED,
                closing_event_name=Events.COMPLETED,
            )
            return
        self.logger.attach_output_handler(
            self._echo,
            event_name=self._event,
            tag="sbi",
            metric_names="all",
            global_step_transform=lambda engine, event: self._step,
        )
        self._note(parameters(info))

    def log_epoch(self, row: EpochRow) -> None:
        """Let the small engine complete an epoch."""
        if row.replayed:
            return
        self._step = row.step
        self._echo.state.metrics = dict(row.values)
        self._echo.state.epoch = row.step - self._first
        self._echo.fire_event(self._event)

    def finish(self, summary: TrainingSummary) -> None:
        """Pass on the results."""
        self._note(
            {f"result.{name}": value for name, value in results(summary, self._first).items()}
        )
        self._close_bar()

    def fail(self, status: str, message: str) -> None:
        """Pass on what happened."""
        self._note({"result.status": status})
        self._close_bar()

    def _close_bar(self) -> None:
        from ignite.engine import Events

        if self._is_bar:
            self._echo.fire_event(Events.COMPLETED)

    def _note(self, values: Mapping[str, Any]) -> None:
        """Write parameters in the form that each of the three loggers we know takes."""
        kind = type(self.logger).__name__
        if kind == "MLflowLogger":
            self.logger.log_params({name: str(value)[:500] for name, value in values.items()})
        elif kind == "WandBLogger":
            self.logger.config.update(dict(values), allow_val_change=True)
        elif kind == "TensorboardLogger":
            lines = [f"    {name} = {value}" for name, value in values.items()]
            self.logger.writer.add_text("settings", "\n".join(lines), self._step)
            self.logger.writer.flush()


def is_ignite_logger(candidate: object) -> bool:
    """Say whether an object is one of ignite's loggers."""
    from ignite.handlers.base_logger import BaseLogger

    return isinstance(candidate, BaseLogger)
