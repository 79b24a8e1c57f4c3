"""What user code may read from a running training, and ask of it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sbi_ignite.exceptions import ArgumentError

if TYPE_CHECKING:
    import torch

    from sbi_ignite.summary import TrainingSummary

STOP_REASONS = (
    "patience",
    "lr_threshold",
    "max_epochs",
    "time_limit",
    "signal",
    "rule",
    "callback",
    "pruned",
)


@dataclass
class History:
    """What was measured, one value per finished epoch in every list.

    Attributes:
        training_loss: Mean loss over the rows of the epoch, in nats for density estimators.
        validation_loss: Mean loss over the validation rows after the epoch.
        learning_rate: Rate of the first parameter group during the epoch's last step.
        gradient_norm: Mean total gradient norm before clipping; NaN where it could not be measured.
        epoch_durations_sec: Seconds of training and validation.
        best_validation_loss: Loss of the best weights at the end of the epoch; their training loss
            if there is no validation data. NaN for epochs from older checkpoints.
        patience_left: `TrainingState.patience_left` at the end of the epoch; NaN for None.
        metrics: What callbacks logged: for each name the values by epoch, counted from 1.
        stage: Number of the stage that the epoch belongs to, from 1; NaN without stages.

    Example:
        >>> history = History()
        >>> history.append(training_loss=0.7, validation_loss=0.5)
        >>> history.validation_loss
        [0.5]
    """

    training_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    epoch_durations_sec: list[float] = field(default_factory=list)
    best_validation_loss: list[float] = field(default_factory=list)
    patience_left: list[float] = field(default_factory=list)
    metrics: dict[str, dict[int, float]] = field(default_factory=dict)
    stage: list[float] = field(default_factory=list)

    def append(self, **values: float) -> None:
        """Add an epoch.

        Args:
            **values: Values by the names of the lists; what is missing is NaN.
        """
        for name, column in self._columns().items():
            column.append(values.get(name, math.nan))

    def _columns(self) -> dict[str, list[float]]:
        return {name: value for name, value in vars(self).items() if name != "metrics"}

    def note(self, **values: float) -> None:
        """Set values of the newest epoch; does nothing before the first.

        Args:
            **values: Values by the names of their lists.
        """
        for name, value in values.items():
            column = getattr(self, name)
            if column:
                column[-1] = value

    def log(self, values: Mapping[str, float]) -> None:
        """Add what a callback measured after the newest epoch; does nothing before the first.

        Args:
            values: Values by name.
        """
        epoch = len(self.training_loss)
        for name, value in values.items() if epoch else ():
            self.metrics.setdefault(name, {})[epoch] = value

    def row(self, index: int, validated: bool = True) -> dict[str, float]:
        """Return the values of one epoch under the names by which they are logged.

        Unknown values are left out: `patience_left` if no rule counts epochs, the best loss of
        epochs from older checkpoints. Without validation data there is no validation loss, and the
        best loss is named `best_training_loss`. The stage is not logged.

        Args:
            index: Number of the epoch, from 0.
            validated: Whether there is validation data.

        Example:
            >>> history = History()
            >>> history.append(training_loss=0.5, best_validation_loss=0.5, patience_left=3)
            >>> [*history.row(0, validated=False)][0], history.row(0)["patience_left"]
            ('training_loss', 3)
        """
        row = {name: values[index] for name, values in self._columns().items()}
        best, left = row.pop("best_validation_loss"), row.pop("patience_left")
        del row["stage"]
        if not validated:
            del row["validation_loss"]
        if not math.isnan(best):
            row["best_validation_loss" if validated else "best_training_loss"] = best
        if not math.isnan(left):
            row["patience_left"] = int(left)
        measured = {n: by_epoch.get(index + 1) for n, by_epoch in self.metrics.items()}
        return {**row, **{name: value for name, value in measured.items() if value is not None}}

    @property
    def stages(self) -> tuple[int, ...]:
        """The stage of each epoch, from 1; 0 where it is unknown, () for a training without any."""
        known = [0 if math.isnan(number) else int(number) for number in self.stage]
        return tuple(known) if any(known) else ()

    def state_dict(self) -> dict[str, Any]:
        """Return the lists as plain data."""
        columns = {name: list(values) for name, values in self._columns().items()}
        return {**columns, "metrics": {n: dict(values) for n, values in self.metrics.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; older checkpoints lack the last columns."""
        unknown = [math.nan] * len(state["training_loss"])
        for column in dataclasses.fields(self):
            if column.name != "metrics":
                setattr(self, column.name, list(state.get(column.name, unknown)))
        self.metrics = {n: dict(values) for n, values in state.get("metrics", {}).items()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state)


@dataclass
class TrainingState:
    """The training as it stands, handed to callbacks and stopping rules.

    Attributes:
        model: The network that is trained (live; its weights change with every step).
        epoch: Finished epochs, counted over all legs of a resumed training.
        iteration: Finished optimizer steps, counted likewise.
        train_loss: Training loss of the last finished epoch; NaN before the first.
        validation_loss: Validation loss after the last finished epoch; NaN without one.
        validation_error: Its standard error, by the quartiles of the rows' losses; NaN where none
            of the stages asks for it.
        best_validation_loss: Validation loss of the best weights so far, the lowest one unless they
            are a mean, see `Stage`; infinite before the first.
        best_epoch: Epoch of that loss, counted from 1; 0 before the first.
        patience_left: Epochs without improvement that the stopping rules still allow, the fewest
            of several rules; None if no rule counts them.
        learning_rate: Current rate of the first parameter group.
        learning_rate_rises: Whether the last step of the schedule raised it, as in a warm-up.
        gradient_norm: Mean gradient norm of the last finished epoch before clipping.
        validated: Whether there is validation data; if not, the training loss is watched instead.
        history: All values so far.
        stop_reason: Why training is about to stop, one of `STOP_REASONS`; None while it runs.
        stop_message: The words given with `stop`, "" without any.
        metrics: The newest value of everything that was logged with `log`, by name.
        trainer: The trainer of sbi's that trains; None in `run_training`.
        shows_figures: Whether a logger shows figures, so that drawing them is worth it.
        figures: Figures that were logged and not yet passed on, as (name, figure).

    Example:
        >>> state = TrainingState(model=None)
        >>> state.stop("the reviewer said it is enough")
        >>> state.stop_reason
        'callback'
    """

    model: torch.nn.Module | Any
    epoch: int = 0
    iteration: int = 0
    train_loss: float = math.nan
    validation_loss: float = math.nan
    validation_error: float = math.nan
    best_validation_loss: float = math.inf
    best_epoch: int = 0
    patience_left: int | None = None
    learning_rate: float = math.nan
    learning_rate_rises: bool = False
    gradient_norm: float = math.nan
    validated: bool = True
    history: History = field(default_factory=History)
    stop_reason: str | None = None
    stop_message: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    trainer: Any = field(default=None, repr=False)
    shows_figures: bool = field(default=False, repr=False)
    figures: list[tuple[str, Any]] = field(default_factory=list, repr=False)

    def log(self, values: Mapping[str, float]) -> None:
        """Log numbers beside the losses of the newest epoch, to every logger.

        They stand in `metrics`, where stopping rules find them, in `history.metrics`, in the run
        directory and in the summary, and survive a resume.

        Args:
            values: Numbers by name. A name consists of letters, digits and any of "_-. /".

        Raises:
            ArgumentError: If a name has other characters or is one of the losses and such, or a
                value is no number.

        Example:
            >>> state = TrainingState(model=None)
            >>> state.log({"coverage/90": 0.87})
            >>> state.metrics
            {'coverage/90': 0.87}
        """
        numbers = {name: _as_number(name, value) for name, value in values.items()}
        self.metrics.update(numbers)
        self.history.log(numbers)

    def log_figure(self, name: str, figure: Any) -> None:
        """Log a figure of the newest epoch, to every logger that shows figures.

        Where none does, it is dropped: ask `shows_figures` before drawing what takes long.

        Args:
            name: Its name, like those of numbers.
            figure: A figure of matplotlib's; it may be made without pyplot.

        Raises:
            ArgumentError: If the name has other characters.
        """
        _check_name(name)
        if self.shows_figures:
            self.figures.append((name, figure))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the trainer, which holds the simulations, when a trainer's memory is sent."""
        return {**vars(self), "trainer": None, "figures": []}

    def stop(self, reason: str = "callback") -> None:
        """Ask for an end after the current epoch; the first reason given is kept.

        Args:
            reason: One of `STOP_REASONS`, or any sentence, which is kept in `stop_message` under
                the reason "callback".
        """
        if self.stop_reason is not None:
            return
        self.stop_reason = reason if reason in STOP_REASONS else "callback"
        self.stop_message = "" if reason in STOP_REASONS else reason

    def note_best(self, loss: float, epoch: int) -> None:
        """Record which weights are the best.

        Args:
            loss: Their loss.
            epoch: Their epoch, counted from 1.
        """
        self.best_validation_loss, self.best_epoch = loss, epoch
        self.history.note(best_validation_loss=loss)

    def note_patience(self, left: int | None) -> None:
        """Record how many epochs without improvement the stopping rules still allow.

        Args:
            left: Epochs; None if no rule counts them.
        """
        self.patience_left = left
        self.history.note(patience_left=math.nan if left is None else float(left))

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers, without model and stop request, as plain data."""
        names = (
            "epoch",
            "iteration",
            "train_loss",
            "validation_loss",
            "best_validation_loss",
            "best_epoch",
            "patience_left",
            "learning_rate",
            "learning_rate_rises",
            "gradient_norm",
        )
        numbers = {n: getattr(self, n) for n in names}
        return {
            **numbers,
            "history": self.history.state_dict(),
            "metrics": dict(self.metrics),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name, value in state.items():
            if name == "history":
                self.history.load_state_dict(value)
            elif name == "metrics":
                self.metrics = dict(value)
            else:
                setattr(self, name, value)


_NAME = re.compile(r"[\w\-./ ]+", re.ASCII)
"""Names that all loggers take."""


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArgumentError(
            f"log: expected a name of letters, digits and any of '_-. /', got {name!r}."
        )


def _as_number(name: Any, value: Any) -> float:
    _check_name(name)
    if name in ("best_training_loss", "epoch") or name in _OWN_NAMES:
        raise ArgumentError(
            f"log: expected a name of your own, got {name!r}, which is logged already."
        )
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"log: expected a number as {name!r}, got {type(value).__name__} {value!r}."
        ) from error


_OWN_NAMES = frozenset(f.name for f in dataclasses.fields(History))


def watched_loss(state: TrainingState) -> float:
    """Return the validation loss, or the training loss where nothing is validated."""
    return state.validation_loss if state.validated else state.train_loss


class Callback:
    """Base class, and by its method names the protocol, of user callbacks.

    Every method is optional: an object of any class that has at least one of them will do.

    Example:
        >>> class Print(Callback):
        ...     def on_epoch_end(self, state):
        ...         print(state.epoch, state.validation_loss)
        >>> # inference.train(TrainConfig(), callbacks=[Print()])
    """

    def on_train_start(self, state: TrainingState) -> None:
        """Called once, before the first step of this call."""

    def on_measure(self, state: TrainingState) -> None:
        """Called after each epoch, before any stopping rule is asked, which sees what it logs."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """Called after each epoch, when its validation loss is known."""

    def on_train_end(self, summary: TrainingSummary) -> None:
        """Called once at a regular end, with the best weights in the model."""

    def on_saved(self, summary: TrainingSummary) -> None:
        """Called last, when the files of the run are complete; `train()` raises what it raises."""

    def on_exception(self, error: BaseException, state: TrainingState) -> None:
        """Called when training ends with an error, which is raised afterwards."""


CALLBACK_METHODS = (
    "on_train_start",
    "on_measure",
    "on_epoch_end",
    "on_train_end",
    "on_saved",
    "on_exception",
)
