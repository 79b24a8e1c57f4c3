"""Numbers come in; a text file with one JSON object per line goes out."""

from __future__ import annotations

import json
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

if TYPE_CHECKING:
    from sbi_ignite.summary import TrainingSummary


class JsonLines(Backend):
    """Writes `metrics.jsonl`: settings first, then a line per epoch, the summary last.

    Epoch lines have "epoch" and the metrics, so that `pandas.read_json(path, lines=True)` gives a
    table; the other lines have "settings", "iteration" or "summary" instead. Numbers that are not
    finite are null. Beside the file lies the loss curve, `loss.png`.

    Args:
        log_dir: Where the file goes; None: `logs` in the run directory, or `sbi-logs/RUN_NAME`.
        run_name: See `Backend`, likewise the others.
        tags: Kept with the settings.
        every_n_iterations: Steps between two lines with "iteration".
    """

    name: str = "jsonl"

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
        self._steps: set[int] = set()

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        """Open the file, cut off what lies beyond the last step kept, write the settings."""
        self.path = self._place(info, identity)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._steps = set()
        if identity or info.last_step_kept:
            self._keep_until(info)
        else:
            self._set_aside()
        self._write(
            {
                "settings": parameters(info),
                "origins": origins(info),
                "run_name": self.run_name,
                "tags": self.tags,
                "round": info.round_index,
            }
        )

    def log_epoch(self, row: EpochRow) -> None:
        """Append a line that is not there yet."""
        if row.step not in self._steps:
            self._steps.add(row.step)
            self._write({"epoch": row.step, **row.values})

    def log_iteration(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        self._write({"iteration": iteration, **values})

    def finish(self, summary: TrainingSummary) -> None:
        """Append the results and draw the loss curve."""
        self._write({"summary": results(summary), "status": "finished"})
        if self.path is not None:
            summary.plot().savefig(self.path.with_name("loss.png"))

    def fail(self, status: str, message: str) -> None:
        """Append what happened."""
        self._write({"status": status, "message": message})

    def state_dict(self) -> dict[str, Any]:
        """Return the file's path."""
        return {} if self.path is None else {"path": str(self.path)}

    def _place(self, info: RunInfo, identity: Mapping[str, Any]) -> Path:
        if "path" in identity:
            return Path(identity["path"])
        if self._log_dir is not None:
            return Path(self._log_dir).absolute() / "metrics.jsonl"
        if info.run_directory is not None:
            return info.run_directory.absolute() / "logs" / "metrics.jsonl"
        self.run_name = self.run_name or new_run_name(info.method)
        return Path("sbi-logs", self.run_name, "metrics.jsonl").absolute()

    def _keep_until(self, info: RunInfo) -> None:
        """Rewrite the file without half a line and without steps that do not count."""
        path = self.path
        if path is None or not path.exists():
            return
        kept = [line for line in map(_parsed, path.read_text().splitlines()) if line]
        kept = [
            line
            for line in kept
            if line.get("epoch", 0) <= info.last_step_kept
            and line.get("iteration", 0) <= info.last_iteration_kept
        ]
        self._steps = {line["epoch"] for line in kept if "epoch" in line}
        draft = path.with_name(path.name + ".part")
        draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
        draft.replace(path)

    def _set_aside(self) -> None:
        """Give another run's file that is in the way a number."""
        if self.path is None or not self.path.exists():
            return
        number = 1
        while (aside := self.path.with_name(f"metrics.{number}.jsonl")).exists():
            number += 1
        self.path.replace(aside)

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


def _parsed(line: str) -> dict[str, Any] | None:
    """Return a line's object, None for a line that was cut off."""
    try:
        return json.loads(line)
    except ValueError:
        return None
