"""Read run directories without locking them.

Nothing here unpickles: tensors come from `torch.load(weights_only=True)`, all else is JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sbi_ignite.exceptions import CheckpointError
from sbi_ignite.html import table
from sbi_ignite.pictures import Curves, draw_training
from sbi_ignite.runs.directory import metrics_checksum, read_manifest, read_summary
from sbi_ignite.runs.status import FINISHED
from sbi_ignite.summary import TrainingSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Run:
    """What a run directory holds.

    Attributes:
        path: The directory.
        manifest: run.json: method, settings with origins, versions, seed, fingerprints, status.
        metrics: One row per finished epoch.
        summary: The summary, None while the run is not complete.
        rounds: The runs in round-1/, round-2/, … below the directory.

    Example:
        >>> Run(Path("runs/exp1"), {"status": "interrupted"}, [], None).status
        'interrupted'
    """

    path: Path
    manifest: Mapping[str, Any] = field(repr=False)
    metrics: list[dict[str, Any]] = field(repr=False)
    summary: TrainingSummary | None = field(repr=False)
    rounds: tuple[Run, ...] = ()

    @property
    def status(self) -> str:
        """One of "running" (also when killed), "complete", "pruned", "interrupted", "failed"."""
        if not self.manifest and self.rounds:
            return self.rounds[-1].status
        return str(self.manifest.get("status", "running"))

    @property
    def method(self) -> str:
        """Name of the method, "" where it is unknown."""
        return str(self.manifest.get("method", ""))

    @property
    def curves(self) -> Curves:
        """The losses and rates of the epochs in this directory, without those of its rounds."""
        return Curves.from_rows(self.path.name, self.metrics)

    def plot(self) -> Figure:
        """Return a figure of the losses, with learning rate and gradient norm below them.

        The rounds follow each other on one axis and are shaded; where there are none, the stages
        are. What was not recorded is not drawn. It works for a training that is running, too.

        The figure belongs to no pyplot state; save it with `figure.savefig("loss.png")`. A notebook
        shows it as a cell's last value.
        """
        every = [self, *self.rounds] if self.metrics else list(self.rounds)
        # The run of the directory itself is round 0; round-1/ and so on are below it.
        named = [replace(run.curves, name=f"round {_number_of(run, self)}") for run in every]
        return draw_training(named, f"{every[0].method if every else ''}: {self._ending}")

    @property
    def _ending(self) -> str:
        last = self.rounds[-1] if self.rounds else self
        reason = last.manifest.get("stop_reason")
        return f"stopped by {reason}" if reason else last.status

    def _rows(self) -> Iterator[tuple[str, ...]]:
        yield "", "status", "epochs", "best epoch", "best loss", "stopped by", "time in epochs"
        for run in (self, *self.rounds) if self.manifest else self.rounds:
            curves = run.curves
            yield (
                f"round {_number_of(run, self)}" if self.rounds else run.method,
                run.status,
                str(curves.epochs),
                str(curves.best_epoch or "-"),
                f"{curves.best_loss:.4f}" if curves.best_epoch else "-",
                str(run.manifest.get("stop_reason") or "-"),
                f"{sum(row.get('epoch_durations_sec', 0.0) for row in run.metrics):.1f} s",
            )

    def _repr_html_(self) -> str:
        """Return a table, as notebooks show it: one row, or one per round."""
        return table(f"Run {self.path}", self._rows())


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run directory, even one in which a training is running.

    Args:
        path: The directory.

    Returns:
        Its manifest, metrics and summary, and those of its rounds.

    Raises:
        CheckpointError: If there is no run, or a file of it is damaged.

    Example:
        >>> import tempfile
        >>> from sbi_ignite.runs.directory import RunDirectory
        >>> with RunDirectory.open(tempfile.mkdtemp()) as directory:
        ...     directory.write_manifest({"status": "running"})
        ...     load_run(directory.path).status
        'running'
    """
    path = Path(path)
    if path.is_file():
        raise CheckpointError(
            f"{path}: expected the directory of a run, got a file. Pass {str(path.parent)!r}."
        )
    rounds = tuple(load_run(folder) for folder in rounds_of(path))
    if not rounds and read_manifest(path) is None:
        raise CheckpointError(f"{path} holds no run: there is no run.json in it.")
    return replace(load_without_rounds(path), rounds=rounds)


def load_without_rounds(path: Path) -> Run:
    """Read what is in a directory itself; see `load_run`.

    Args:
        path: The directory; without a run.json in it, the run has an empty manifest.

    Raises:
        CheckpointError: If a file is damaged.
    """
    manifest = read_manifest(path) or {}
    # A run that is continued still has the summary of its earlier end.
    complete = manifest.get("status") in FINISHED
    plain = read_summary(path, manifest.get("run")) if complete else None
    if plain is not None and plain.pop("metrics_checksum") != metrics_checksum(path):
        raise CheckpointError(
            f"{path / 'metrics.jsonl'} is not what the run wrote. Its script, started again, "
            "writes it anew."
        )
    summary = None if plain is None else summary_from(plain)
    if summary is not None and summary.run_directory is not None:
        summary = replace(summary, run_directory=str(path))  # it may have been moved
    return Run(path, manifest, _read_metrics(path / "metrics.jsonl"), summary)


def _number_of(run: Run, within: Run) -> int:
    """Return the number of a round; the directory itself holds round 0."""
    return 0 if run is within else int(run.path.name.removeprefix("round-"))


def summary_from(plain: Mapping[str, Any]) -> TrainingSummary:
    """Return the summary that `plain`, the content of summary.json, describes.

    Args:
        plain: `TrainingSummary.to_dict()` with None for NaN and texts for infinities.
    """
    fields = {f.name: f for f in dataclasses.fields(TrainingSummary)}
    values = {name: value for name, value in plain.items() if name in fields}
    # Files of the first release lack this entry.
    values.setdefault("validated", any(v is not None for v in values["validation_loss"]))
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(map(_number, value))
        elif fields[name].type == "float":
            values[name] = _number(value)
    values["metrics"] = {
        name: tuple((epoch, _number(value)) for epoch, value in pairs)
        for name, pairs in values.get("metrics", {}).items()
    }
    return TrainingSummary(**values)


def rounds_of(path: Path) -> list[Path]:
    """Return the folders of rounds in their order.

    Args:
        path: The run directory.
    """
    folders = [f for f in path.glob("round-*") if f.name.removeprefix("round-").isdecimal()]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("round-")))


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows; a last line that is cut off belongs to a killed writer and is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    try:
        rows = [json.loads(line) for line in lines[:-1]]
        return [{name: _number(value) for name, value in row.items()} for row in rows]
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged. Its script, started again, writes it anew."
        ) from error


def _number(value: Any) -> Any:
    """Return the number that strict JSON could not hold."""
    if value is None:
        return math.nan
    return {"Infinity": math.inf, "-Infinity": -math.inf}.get(value, value)
