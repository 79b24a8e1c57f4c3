"""Numbers come in; event files that TensorBoard shows go out."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sbi_ignite.loggers.base import (
    Backend,
    EpochRow,
    RunInfo,
    new_run_name,
    origins,
    parameters,
    results,
)
from sbi_ignite.loggers.clock import now

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sbi_ignite.summary import TrainingSummary

COMPARED = ("best_validation_loss", "validation_loss", "training_loss")
"""The columns that TensorBoard's page of hyperparameters compares."""

COMPARED_UNVALIDATED = ("best_training_loss", "training_loss")
"""Those of a training without validation data."""


class TensorBoard(Backend):
    """Writes scalars, settings, hyperparameters and the loss curve as TensorBoard events.

    torch's and ignite's writers hand events to a thread that prints a traceback when the disk is
    full and do not say when an event is on disk; this one writes each epoch before it goes on.

    Args:
        log_dir: Where the event files go (with `run_name`: in a folder of that name below it);
            None: `logs` in the run directory, or `sbi-logs/RUN_NAME`.
        run_name: See `Backend`, likewise the others.
        tags: Become hyperparameters.
        every_n_iterations: Steps between two points of the folder `iterations`, a run of its own
            since its axis is another one.
    """

    name: str = "tensorboard"
    package = "tensorboard"

    def __init__(
        self,
        *,
        log_dir: str | os.PathLike[str] | None = None,
        run_name: str | None = None,
        tags: Any = None,
        every_n_iterations: int | None = None,
    ) -> None:
        super().__init__(run_name=run_name, tags=tags, every_n_iterations=every_n_iterations)
        self._log_dir = log_dir
        self.log_dir: Path | None = None
        self._epochs: EventFile | None = None
        self._iterations: EventFile | None = None
        self._last_step = 0

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        """Open a new event file that voids the steps beyond the last one kept."""
        from torch.utils.tensorboard.summary import hparams, text

        self.log_dir = self._place(info, identity)
        self._last_step = info.last_step_kept
        purge = info.last_step_kept + 1 if identity or info.last_step_kept else None
        self._epochs = EventFile(self.log_dir, purge)
        if self.every_n_iterations is not None:
            purge = None if purge is None else info.last_iteration_kept + 1
            self._iterations = EventFile(self.log_dir / "iterations", purge)
        values = {**parameters(info), **{f"tag.{name}": v for name, v in self.tags.items()}}
        known = {name: _hparam(value) for name, value in values.items() if value is not None}
        compared = COMPARED if info.validated else COMPARED_UNVALIDATED
        begin, session, self._session_end = hparams(known, dict.fromkeys(compared, 0.0))
        self._epochs.add(begin, info.last_step_kept)
        self._epochs.add(session, info.last_step_kept)
        self._epochs.add(text("settings", _table(values, origins(info))), info.last_step_kept)
        self._epochs.flush()

    def log_epoch(self, row: EpochRow) -> None:
        """Write the points of the epoch."""
        if not row.replayed and self._epochs is not None:
            self._last_step = row.step
            self._epochs.add(_scalars(row.values), row.step)
            self._epochs.flush()

    def log_iteration(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write the points of the iteration."""
        if self._iterations is not None:
            self._iterations.add(_scalars(values), iteration)
            self._iterations.flush()

    def finish(self, summary: TrainingSummary) -> None:
        """Write results and loss curve, and close."""
        self._close({**results(summary), "status": "finished"}, summary.plot())

    def fail(self, status: str, message: str) -> None:
        """Write what happened, and close."""
        self._close({"status": status, "message": message}, None)

    def abandon(self) -> None:
        """Close the files."""
        for file in (self._epochs, self._iterations):
            if file is not None:
                file.close()
        self._epochs = self._iterations = None

    def state_dict(self) -> dict[str, Any]:
        """Return where the event files are."""
        return {} if self.log_dir is None else {"log_dir": str(self.log_dir)}

    def _place(self, info: RunInfo, identity: Mapping[str, Any]) -> Path:
        if "log_dir" in identity:
            return Path(identity["log_dir"])
        if self._log_dir is not None:
            return Path(self._log_dir, self.run_name or "").absolute()
        if info.run_directory is not None:
            return Path(info.run_directory).absolute() / "logs"
        self.run_name = self.run_name or new_run_name(info.method)
        return Path("sbi-logs", self.run_name).absolute()

    def _close(self, values: Mapping[str, Any], figure: Figure | None) -> None:
        from torch.utils.tensorboard.summary import text

        if self._epochs is None:
            return
        self._epochs.add(text("result", _table(values, {})), self._last_step)
        if figure is not None:
            self._epochs.add(_image("loss_curve", figure), self._last_step)
        self._epochs.add(self._session_end, self._last_step)
        self._epochs.flush()
        self.abandon()


class EventFile:
    """One event file, written in the caller's thread.

    Args:
        directory: Where it goes; made if it is missing.
        purge_step: From this step on, what earlier files of the directory hold is void.
    """

    def __init__(self, directory: Path, purge_step: int | None) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._proto: Any = event_pb2  # its classes are made at import, unseen by type checkers
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{_next_number(directory):020d}.{os.getpid()}"
        self._file = (directory / name).open("wb", buffering=0)
        self._buffer = io.BytesIO()
        self._records = RecordWriter(self._buffer)
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            log = self._proto.SessionLog
            self._write(session_log=log(status=log.START), step=purge_step)
        self.flush()

    def add(self, summary: Any, step: int) -> None:
        """Take in a summary."""
        self._write(summary=summary, step=step)

    def flush(self) -> None:
        """Write what was taken in; raises if the disk does not take all of it."""
        data = memoryview(self._buffer.getvalue())
        self._buffer.seek(0)
        self._buffer.truncate()
        while data:
            data = data[self._file.write(data) or 0 :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        event = self._proto.Event(wall_time=now(), **fields)
        self._records.write(event.SerializeToString())


def _scalars(values: Mapping[str, float]) -> Any:
    """Return points as one summary; TensorBoard holds them in single precision."""
    message = _summary_class()
    return message(
        value=[
            message.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if not math.isnan(value)
        ]
    )


def _next_number(directory: Path) -> int:
    """Return a number above those of all event files: readers go by the order of their names."""
    taken = (path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*.*"))
    latest = max((int(number) for number in taken if number.isdecimal()), default=0)
    return max(int(now() * 1e9), latest + 1)


def _image(tag: str, figure: Figure) -> Any:
    """Return a figure as a summary."""
    message = _summary_class()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    width, height = (int(inches * 100) for inches in figure.get_size_inches())
    image = message.Image(
        height=height, width=width, colorspace=4, encoded_image_string=buffer.getvalue()
    )
    return message(value=[message.Value(tag=tag, image=image)])


def _summary_class() -> Any:
    """Return the class of summaries, which is made at import, unseen by type checkers."""
    from tensorboard.compat.proto import summary_pb2

    return vars(summary_pb2)["Summary"]


def _hparam(value: Any) -> Any:
    """Return a value of one of the types that hyperparameters have."""
    return value if isinstance(value, bool | int | float | str) else str(value)


def _table(values: Mapping[str, Any], came_from: Mapping[str, str]) -> str:
    """Return values as a table in markdown, which TensorBoard shows as one."""
    rows = [f"| {name} | {value} | {came_from.get(name, '')} |" for name, value in values.items()]
    return "\n".join(["| name | value | origin |", "|---|---|---|", *rows])
