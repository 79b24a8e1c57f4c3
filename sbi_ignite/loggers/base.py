"""The interface of all loggers: what a backend is told about a run, and when.

Imports nothing but the standard library, so that a backend process starts quickly.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import time
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from sbi_ignite.summary import TrainingSummary

EPOCH_METRICS = (
    "training_loss",
    "validation_loss",
    "best_validation_loss",
    "learning_rate",
    "epoch_durations_sec",
    "gradient_norm",
    "patience_left",
)
"""What every backend gets once an epoch, under these names, beside what callbacks log.

`patience_left` only if a stopping rule counts epochs. Without validation data there is
`best_training_loss` instead of the two validation losses.
"""

ITERATION_METRICS = ("iteration_loss", "iteration_learning_rate")
"""What every backend gets every n iterations, if asked, over iterations instead of epochs."""

_NO_PARAMETERS = ("settings", "status", "inexact_resumes", "torch_seed")
"""What a manifest says besides parameters: the settings again, and the course of the run.
Nor a seed that nobody may have set."""


@dataclass(frozen=True)
class RunInfo:
    """What is known about a training before its first step.

    Attributes:
        method: Name of the trainer or of the model's class.
        round_index: Round of a sequential method, from 0.
        config: `Resolved.to_dict()`: every setting with its value, origin and where that is.
        manifest: Versions, seed, shape of the data, ... as plain data.
        run_directory: Where the run's files are; None without checkpoints.
        first_step: Epochs of earlier rounds, so that rounds share one axis.
        epochs_done: Epochs of this round that the interrupted run had finished and saved.
        max_epochs: Most epochs that this round may train.
        validated: Whether there is validation data.
        show_progress: Whether a progress bar is welcome.
        identity: What `Loggers.state_dict()` returned in the run that this one continues.
        first_iteration: Optimizer steps of earlier rounds.
        iterations_done: Optimizer steps of this round that the interrupted run had finished;
            `Loggers` fills it in.
        trains: Whether there are epochs left to train; if not, nothing that was logged is void.
    """

    method: str = ""
    round_index: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    run_directory: Path | None = None
    first_step: int = 0
    epochs_done: int = 0
    max_epochs: int = 2**31 - 1
    validated: bool = True
    show_progress: bool = True
    identity: Mapping[str, Any] = field(default_factory=dict)
    first_iteration: int = 0
    iterations_done: int = 0
    trains: bool = True

    @property
    def last_iteration_kept(self) -> int:
        """The last iteration of the run that this one continues."""
        return self.first_iteration + self.iterations_done

    @property
    def last_step_kept(self) -> int:
        """The last step of the run that this one continues; what it logged beyond is void."""
        return self.first_step + self.epochs_done

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        directory = None if self.run_directory is None else str(self.run_directory)
        return {**plain, "run_directory": directory}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> RunInfo:
        """Return what `to_dict` was made from."""
        directory = plain["run_directory"]
        return cls(**{**plain, "run_directory": None if directory is None else Path(directory)})


@dataclass(frozen=True)
class EpochRow:
    """The numbers of one finished epoch.

    Attributes:
        step: The epoch's place on the axis that all rounds share, counted from 1.
        values: One value for each of `EPOCH_METRICS` that is known.
        time: When it was first logged, in seconds since 1970.
        replayed: Whether an interrupted run has, or should have, logged it already.
    """

    step: int
    values: Mapping[str, float]
    time: float = 0.0
    replayed: bool = False

    @property
    def best_loss(self) -> float:
        """Validation or training loss of the best weights so far; NaN if unknown."""
        names = ("best_validation_loss", "best_training_loss")
        return next((self.values[name] for name in names if name in self.values), math.nan)


@dataclass(frozen=True)
class EpochFigure:
    """A figure that a callback has logged.

    Attributes:
        step: Its epoch's place on the axis that all rounds share, counted from 1.
        name: Its name, which may have slashes.
        figure: A figure of matplotlib's, or the bytes of a PNG file.
        time: When it was logged, in seconds since 1970.
    """

    step: int
    name: str
    figure: Any
    time: float = 0.0

    @property
    def file_name(self) -> str:
        """Its name as that of a file, without the ending."""
        return self.name.strip("./ ").replace("/", "-").replace(" ", "_") or "figure"

    def png(self) -> bytes:
        """Return the bytes of a PNG file."""
        if isinstance(self.figure, bytes):
            return self.figure
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


class Backend:
    """One destination for numbers. Any method may raise: the group then warns once and drops it.

    Args:
        run_name: Name of the run; None makes one from the method and the time.
        tags: Names, or names with values, that mark the run.
        every_n_iterations: Optimizer steps between two calls of `log_iteration`; None: no calls.
    """

    name: str = "backend"
    package: ClassVar[str | None] = None
    """The optional package that it needs, also the name of the extra that installs it."""
    in_own_process: ClassVar[bool] = False
    """Whether its library may hang, fail, draw random numbers or hold up the exit."""
    shows_progress: bool = False
    shows_figures: bool = False
    """Whether `log_figure` does anything."""

    waited: float = 0.0
    """Seconds that training has waited inside calls of this backend."""

    afterwards: str = ""
    """What happens to the rest when waiting ends, as the end of a sentence."""

    trouble: str | None = None
    """What is going wrong while the backend keeps trying; None while all is well."""

    moved_at: float = -math.inf
    """When local work of the backend was last seen to move, on the monotonic clock."""

    doing: str = "finish its work"
    """What that work is, as the end of "waiting for it to ..."."""

    local: bool = False
    """Whether the backend needs this machine only; asked in a backend process only."""

    def __init__(
        self,
        *,
        run_name: str | None = None,
        tags: Any = None,
        every_n_iterations: int | None = None,
    ) -> None:
        self.run_name, self.tags = run_name, tags_as_dict(tags)
        self.every_n_iterations = every_n_iterations

    @classmethod
    def place(
        cls, fields: Mapping[str, Any], run_directory: str | os.PathLike[str] | None
    ) -> tuple[tuple[Hashable, ...], str, str]:
        """Return where a backend with these fields writes, which no two of a training may share.

        Here: the folder, if it takes a `log_dir`; else there is one place only.

        Args:
            fields: What `LoggingConfig` has for this backend.
            run_directory: Where the run's files are; None without checkpoints.

        Returns:
            What tells the place from others, its name, and how to ask for another; "" if there is
            no other.
        """
        if "log_dir" not in fields:
            return (), cls.name, ""
        if fields["log_dir"] is None and run_directory is not None:
            folder = Path(run_directory) / "logs"
            return (folder.resolve(), None), f"{cls.name} in {folder}", "a log_dir"
        folder = Path(fields["log_dir"] or "sbi-logs")
        other = "another log_dir or run_name"
        return (folder.resolve(), fields["run_name"]), f"{cls.name} in {folder}", other

    def grant(self, seconds: float) -> None:
        """Set how long, in total, training may wait inside calls; called before `start`."""

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        """Take in what is known before the first step.

        Args:
            info: The run.
            identity: What `state_dict` of this backend returned in the run that this one continues,
                {} in a fresh one.
        """

    def log_epoch(self, row: EpochRow) -> None:
        """Take in the numbers of an epoch."""

    def log_figure(self, figure: EpochFigure) -> None:
        """Take in a figure; called after the numbers of its epoch."""

    def log_iteration(self, iteration: int, values: Mapping[str, float]) -> None:
        """Take in the running numbers inside an epoch.

        Args:
            iteration: Optimizer steps, counted over all rounds.
            values: One value for each of `ITERATION_METRICS`.
        """

    def finish(self, summary: TrainingSummary) -> None:
        """Take in the summary and begin to close."""

    def fail(self, status: str, message: str) -> None:
        """Note that training ended with an error and begin to close.

        Args:
            status: "failed", or "killed" if it was ended on purpose.
            message: The error in a line.
        """

    def settled(self) -> bool:
        """Say whether everything taken in has been delivered; never waits."""
        return True

    def abandon(self) -> None:
        """Drop whatever is still running; called once, at the end or after a failure."""

    def say(self, line: str) -> None:
        """Tell the user; a backend process replaces this with its own way."""

    def still_moving(self) -> None:
        """Note that work goes on; a backend process replaces this with its own way."""

    def worth_retrying(self, error: Exception) -> bool:
        """Say whether a call that raised may succeed later; asked in a backend process only."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return, as plain data, what a later run needs to continue this one."""
        return {}


def tags_as_dict(tags: Any) -> dict[str, str]:
    """Return tags as names with values, "" where only names were given."""
    if tags is None:
        return {}
    return dict(tags) if isinstance(tags, Mapping) else {str(tag): "" for tag in tags}


def new_run_name(method: str) -> str:
    """Return a unique name with the time of the start."""
    return f"{method or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(4).hex()}"


def parameters(info: RunInfo) -> dict[str, Any]:
    """Return settings and manifest as one flat mapping of names to plain values."""
    manifest = {n: v for n, v in info.manifest.items() if n not in _NO_PARAMETERS}
    return {
        "method": info.method,
        **{name: entry["value"] for name, entry in _settings(info.config)},
        **dict(_flat(manifest)),
    }


def origins(info: RunInfo) -> dict[str, str]:
    """Return where each setting that has a value came from: "call", "environment NAME", ... ."""
    return {
        name: f"{entry['origin']} {entry['where']}".strip()
        for name, entry in _settings(info.config)
        if entry["value"] is not None or entry["origin"] != "default"
    }


def results(summary: TrainingSummary, first_step: int) -> dict[str, Any]:
    """Return the numbers of a summary by which runs are compared, as scalars.

    Epochs are those of the round; `best_step` is where the best one stands on the axis that all
    rounds share.

    Args:
        summary: The summary of a round.
        first_step: `RunInfo.first_step`.
    """
    return {
        f"best_{summary.best_kind}_loss": summary.best_validation_loss,
        "best_epoch": summary.best_epoch,
        "best_step": first_step + summary.best_epoch,
        "epochs_trained": summary.epochs_trained,
        "seconds_in_epochs": float(sum(summary.epoch_durations_sec)),
        "stop_reason": summary.stop_reason,
        "stop_message": summary.stop_message,
        "complete": summary.complete,
    }


def status_of(summary: TrainingSummary) -> str:
    """Return the status of a training that has ended regularly: "finished" or "pruned"."""
    return "pruned" if summary.stop_reason == "pruned" else "finished"


def run_record(info: RunInfo) -> dict[str, Any]:
    """Return the content of the artifact `run.json`: manifest and settings with origins."""
    return {"method": info.method, **info.manifest, "settings": info.config}


def warm_up_figures() -> None:
    """Do now, while training runs, the slow preparations for the first figure of a process."""
    from sbi_ignite.summary import TrainingSummary

    one = (1.0,)
    TrainingSummary("", 1, 1, 1.0, one, one, one, one, one, "").plot().savefig(io.BytesIO())


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for group, content in config.items():
        yield from _entries(group, content)


def _entries(name: str, content: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(content, Mapping) and set(content) == {"value", "origin", "where"}:
        yield name, content
    elif isinstance(content, Mapping):
        for key, item in content.items():
            yield from _entries(f"{name}.{key}", item)
    elif isinstance(content, list | tuple):
        for number, item in enumerate(content):
            yield from _entries(f"{name}.{number}" if len(content) > 1 else name, item)


def _flat(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for key, item in content.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif content is None or isinstance(content, bool | int | float | str):
        yield name, content
    else:
        yield name, str(content)
