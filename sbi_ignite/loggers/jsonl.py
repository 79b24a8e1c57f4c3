"""Write the numbers of a training to a text file with one JSON object per line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
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
from sbi_ignite.loggers.places import Finder, Place

if TYPE_CHECKING:
    from sbi_ignite.summary import TrainingSummary


class JsonLines(Backend):
    """Writes `metrics.jsonl`: settings first, then a line per epoch, the summary last.

    Epoch lines have "epoch" and the metrics, so that `pandas.read_json(path, lines=True)` gives a
    table; the other lines have "settings", "iteration" or "summary" instead. Numbers that are not
    finite are null. Beside the file lie the loss curve, `loss.png`, and the newest of the figures
    that callbacks log, by their names.

    Args:
        log_dir: Where the file goes, in a folder of the run's own where another run has written
            there; None: `logs` in the run directory, or `sbi-logs/RUN_NAME`.
        run_name: See `Backend`, likewise the others.
        tags: Kept with the settings.
        every_n_iterations: Steps between two lines with "iteration".
    """

    name: str = "jsonl"
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
        self.path: Path | None = None
        self._place: Place | None = None
        self._steps: set[int] = set()
        self._is_whole = False
        self._first_step = 0

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        """Open the file, cut off what lies beyond the last step kept, write the settings.

        A training with nothing left to train, whose summary is there, is not written again.
        """
        self._first_step = info.first_step
        self._place = _FINDER.find(info, identity, self._log_dir, self.run_name)
        self.path = self._place.folder / _FILE
        if self._log_dir is None and info.run_directory is None:
            self.run_name = self._place.name
        lines = _lines(self.path) if self._place.continued else []
        self._is_whole = not info.trains and _has_summary(lines, info)
        if self._place.continued and not self._is_whole:
            lines = self._rewrite(lines, info)
        self._steps = {line["epoch"] for line in lines if "epoch" in line}
        if self._is_whole:
            return
        self._place.folder.mkdir(parents=True, exist_ok=True)
        self._write(
            {
                "settings": parameters(info),
                "origins": origins(info),
                "run_name": self.run_name,
                "tags": self.tags,
                "round": info.round_index,
                "id": self._place.id,
            }
        )

    def log_epoch(self, row: EpochRow) -> None:
        """Append a line that is not there yet."""
        if row.step not in self._steps:
            self._steps.add(row.step)
            self._write({"epoch": row.step, **row.values})

    def log_figure(self, figure: EpochFigure) -> None:
        """Write it to a file beside; that of a later epoch replaces it."""
        if self.path is not None and not self._is_whole:
            self.path.with_name(f"{figure.file_name}.png").write_bytes(figure.png())

    def log_iteration(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        self._write({"iteration": iteration, **values})

    def finish(self, summary: TrainingSummary) -> None:
        """Append the results and draw the loss curve."""
        if self._is_whole:
            return
        self._write({"summary": results(summary, self._first_step), "status": status_of(summary)})
        if self.path is not None:
            summary.plot().savefig(self.path.with_name("loss.png"))

    def fail(self, status: str, message: str) -> None:
        """Append what happened."""
        self._write({"status": status, "message": message})

    def state_dict(self) -> dict[str, Any]:
        """Return where the file is, and the run's id in it."""
        if self._place is None:
            return {}
        return {"path": str(self._place.folder), "id": self._place.id}

    def _rewrite(self, lines: list[dict[str, Any]], info: RunInfo) -> list[dict[str, Any]]:
        """Rewrite the file without cut-off lines and, before training, without void steps."""
        path = self.path
        if path is None:
            return []
        if info.trains:
            lines = [
                line
                for line in lines
                if line.get("epoch", 0) <= info.last_step_kept
                and line.get("iteration", 0) <= info.last_iteration_kept
            ]
        draft = path.with_name(path.name + ".part")
        draft.write_text("".join(json.dumps(line) + "\n" for line in lines))
        draft.replace(path)
        return lines

    def _write(self, line: Mapping[str, Any]) -> None:
        """Append a line at once, so that a reader or a crash finds whole lines."""
        if self.path is None:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(_finite(line)) + "\n")


def _finite(value: Any) -> Any:
    """Return a value with null for every number that JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file, without a line that was cut off."""
    if not path.exists():
        return []
    return [line for line in map(_parsed, path.read_text().splitlines()) if line]


def _parsed(line: str) -> dict[str, Any] | None:
    """Return a line's object, None for a line that was cut off."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _has_summary(lines: list[dict[str, Any]], info: RunInfo) -> bool:
    """Say whether the training of this round was logged to its end."""
    current = -1
    for line in lines:
        current = line.get("round", current)
        epochs = line.get("summary", {}).get("epochs_trained")
        if current == info.round_index and epochs == info.epochs_done:
            return True
    return False


def _id_in(folder: Path) -> str | None:
    """Return the id of the run that a file begins with."""
    with (folder / _FILE).open() as file:
        return (_parsed(file.readline()) or {}).get("id")


_FILE = "metrics.jsonl"
_FINDER = Finder(_FILE, lambda folder: (folder / _FILE).exists(), _id_in, by_name=False)
