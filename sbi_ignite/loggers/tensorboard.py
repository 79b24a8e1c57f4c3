"""Write the numbers of a training to event files for TensorBoard."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sbi_ignite.loggers.base import (
    Backend,
    EpochFigure,
    EpochRow,
    RunInfo,
    origins,
    parameters,
    results,
    status_of,
)
from sbi_ignite.loggers.clock import now
from sbi_ignite.loggers.places import Finder, Place

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sbi_ignite.summary import TrainingSummary

COMPARED = ("best_validation_loss", "validation_loss", "training_loss")
"""The columns that TensorBoard's page of hyperparameters compares."""

COMPARED_UNVALIDATED = ("best_training_loss", "training_loss")
"""Those of a training without validation data."""
_FIGURE = "loss_curve"
_WRITER = "sbi_ignite run "
_FIRST = f"events.out.tfevents.{0:020d}.0"
"""The first event file in a folder that is a run's own; only one process can create it."""


class TensorBoard(Backend):
    """Writes scalars, settings, hyperparameters and the loss curve as TensorBoard events.

    torch's and ignite's writers hand events to a thread that prints a traceback when the disk is
    full and do not say when an event is on disk; this one writes each epoch before it goes on.

    Args:
        log_dir: Where the event files go (with `run_name`: in a folder of that name below it), in a
            folder of the run's own where there are other event files; None: `logs` in the run
            directory, or `sbi-logs/RUN_NAME`.
        run_name: See `Backend`, likewise the others.
        tags: Become hyperparameters.
        every_n_iterations: Steps between two points of the folder `iterations`, a run of its own
            since its axis is another one.
    """

    name: str = "tensorboard"
    package = "tensorboard"
    shows_figures = True

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
        self._place: Place | None = None
        self._epochs: EventFile | None = None
        self._iterations: EventFile | None = None
        self._first_step = self._last_step = 0
        self._steps: set[int] = set()

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        """Open a new event file that voids the steps beyond the last one kept.

        A training with nothing left to train, whose end is there, is not written again.
        """
        from torch.utils.tensorboard.summary import hparams, text

        self._first_step = info.first_step
        self._place = _FINDER.find(info, identity, self._log_dir, self.run_name)
        self.log_dir = self._place.folder
        if self._log_dir is None and info.run_directory is None:
            self.run_name = self._place.name
        self._last_step = info.last_step_kept
        held = Held.of(self.log_dir) if self._place.continued else Held()
        self._steps = {s for s in held.steps if not info.trains or s <= self._last_step}
        if not info.trains and self._last_step in held.ends:
            return
        claimed = self._place.id is not None and not self._place.continued
        purge = info.last_step_kept + 1 if info.trains else None
        self._epochs = (
            EventFile(self.log_dir / _FIRST, purge, self._place.id)
            if claimed
            else EventFile(_next_file(self.log_dir), purge)
        )
        if self.every_n_iterations is not None:
            purge = info.last_iteration_kept + 1 if info.trains else None
            self._iterations = EventFile(_next_file(self.log_dir / "iterations"), purge)
        values = {**parameters(info), **{f"tag.{name}": v for name, v in self.tags.items()}}
        known = {name: _hparam(value) for name, value in values.items() if value is not None}
        compared = COMPARED if info.validated else COMPARED_UNVALIDATED
        begin, session, self._session_end = hparams(known, dict.fromkeys(compared, 0.0))
        self._epochs.add(begin, info.last_step_kept)
        self._epochs.add(session, info.last_step_kept)
        self._epochs.add(text("settings", _table(values, origins(info))), info.last_step_kept)
        self._epochs.flush()

    def log_epoch(self, row: EpochRow) -> None:
        """Write the points of an epoch that are not there yet."""
        if row.step not in self._steps and self._epochs is not None:
            self._steps.add(row.step)
            self._last_step = max(row.step, self._last_step)
            self._epochs.add(_scalars(row.values), row.step)
            self._epochs.flush()

    def log_figure(self, figure: EpochFigure) -> None:
        """Write it as an image of its epoch."""
        if self._epochs is not None:
            self._epochs.add(_png_image(figure.name, figure.png()), figure.step)
            self._epochs.flush()

    def log_iteration(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write the points of the iteration."""
        if self._iterations is not None:
            self._iterations.add(_scalars(values), iteration)
            self._iterations.flush()

    def finish(self, summary: TrainingSummary) -> None:
        """Write results and loss curve, and close."""
        self._close(
            {**results(summary, self._first_step), "status": status_of(summary)}, summary.plot()
        )

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
        """Return where the event files are, and the run's id in the first of them."""
        if self._place is None:
            return {}
        return {"path": str(self._place.folder), "id": self._place.id}

    def _close(self, values: Mapping[str, Any], figure: Figure | None) -> None:
        from torch.utils.tensorboard.summary import text

        if self._epochs is None:
            return
        self._epochs.add(text("result", _table(values, {})), self._last_step)
        if figure is not None:
            self._epochs.add(_image(_FIGURE, figure), self._last_step)
        self._epochs.add(self._session_end, self._last_step)
        self._epochs.flush()
        self.abandon()


class EventFile:
    """One event file, written in the caller's thread.

    Args:
        path: The file; its folder is made if it is missing.
        purge_step: From this step on, what earlier files of the folder hold is void; None voids
            nothing.
        run_id: Kept in the file, from which `run_id_in` reads it.
    """

    def __init__(self, path: Path, purge_step: int | None, run_id: str | None = None) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._proto: Any = event_pb2  # its classes are made at import, unseen by type checkers
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)
        self._buffer = io.BytesIO()
        self._records = RecordWriter(self._buffer)
        writer = {} if run_id is None else {"source_metadata": {"writer": f"{_WRITER}{run_id}"}}
        self._write(file_version="brain.Event:2", **writer)
        if purge_step is not None:
            # Readers without TensorBoard's data server treat the first mark of a folder as the
            # start of the run and void nothing; they obey the second.
            for _ in range(2):
                self._mark(purge_step)
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

    def _mark(self, step: int) -> None:
        log = self._proto.SessionLog
        self._write(session_log=log(status=log.START), step=step)

    def _write(self, **fields: Any) -> None:
        event = self._proto.Event(wall_time=now(), **fields)
        self._records.write(event.SerializeToString())


@dataclass(frozen=True)
class Held:
    """What the event files of a folder hold, void steps left out.

    Attributes:
        steps: Epochs that have points.
        ends: Epochs after which a training ended regularly.
    """

    steps: frozenset[int] = frozenset()
    ends: frozenset[int] = frozenset()

    @classmethod
    def of(cls, folder: Path) -> Held:
        """Read a folder's event files in the order in which readers take them."""
        steps: set[int] = set()
        ends: set[int] = set()
        for path in _event_files(folder):
            for event in _events(path):
                if event.HasField("session_log"):
                    steps = {step for step in steps if step < event.step}
                    ends = {step for step in ends if step < event.step}
                tags = {value.tag for value in event.summary.value}
                if "training_loss" in tags:
                    steps.add(event.step)
                if _FIGURE in tags:
                    ends.add(event.step)
        return cls(frozenset(steps), frozenset(ends))


def run_id_in(folder: Path) -> str | None:
    """Return the id of the run that wrote a folder's first event file, None if it holds none."""
    for path in _event_files(folder)[:1]:
        for event in _events(path):
            writer = event.source_metadata.writer
            return writer.removeprefix(_WRITER) if writer.startswith(_WRITER) else None
    return None


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*tfevents*"))


def _events(path: Path) -> Iterator[Any]:
    """Yield the events of a file, up to one that was cut off when its writer ended.

    A record is a length (8 bytes), its checksum (4), an event and its checksum (4).
    """
    from tensorboard.compat.proto import event_pb2

    message: Any = vars(event_pb2)["Event"]  # made at import, unseen by type checkers
    data, position = path.read_bytes(), 0
    while position + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        begin, end = position + 12, position + 12 + length
        if end + 4 > len(data):
            return
        yield message.FromString(data[begin:end])
        position = end + 4


def _next_file(folder: Path) -> Path:
    """Return a path whose name sorts after those of earlier files, as readers take them."""
    taken = (path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*"))
    latest = max((int(number) for number in taken if number.isdecimal()), default=0)
    return folder / f"events.out.tfevents.{max(int(now() * 1e9), latest + 1):020d}.{os.getpid()}"


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


def _image(tag: str, figure: Figure) -> Any:
    """Return a figure as a summary."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return _png_image(tag, buffer.getvalue())


def _png_image(tag: str, png: bytes) -> Any:
    """Return the bytes of a PNG file as a summary."""
    message = _summary_class()
    width, height = struct.unpack_from(">II", png, 16)  # from its header
    image = message.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return message(value=[message.Value(tag=tag, image=image)])


def _summary_class() -> Any:
    """Return the class of summaries, which is made at import, unseen by type checkers."""
    from tensorboard.compat.proto import summary_pb2

    return vars(summary_pb2)["Summary"]


def _hparam(value: Any) -> Any:
    """Return a value as one of the types that hyperparameters can have."""
    return value if isinstance(value, bool | int | float | str) else str(value)


def _table(values: Mapping[str, Any], came_from: Mapping[str, str]) -> str:
    """Return values as a table in markdown, which TensorBoard shows as one."""
    rows = [f"| {name} | {value} | {came_from.get(name, '')} |" for name, value in values.items()]
    return "\n".join(["| name | value | origin |", "|---|---|---|", *rows])


_FINDER = Finder(
    _FIRST, taken=lambda folder: bool(_event_files(folder)), id_in=run_id_in, by_name=True
)
