"""Read run directories without locking them.

Nothing here unpickles: tensors come from `torch.load(weights_only=True)`, all else is JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sbi_ignite.exceptions import CheckpointError
from sbi_ignite.runs.directory import metrics_checksum, read_manifest, read_summary
from sbi_ignite.summary import TrainingSummary


@dataclass(frozen=True)
class Run:
    """What a run directory holds.

    Attributes:
        path: The directory.
        manifest: run.json: method, settings with origins, versions, seed, fingerprints, status.
        metrics: One row per finished epoch.
        summary: The summary, None while the run is not complete.
        rounds: The runs in round-0/, round-1/, … below the directory.

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
        """One of "running" (also when killed), "complete", "interrupted" and "failed"."""
        if not self.manifest and self.rounds:
            return self.rounds[-1].status
        return str(self.manifest.get("status", "running"))


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
    manifest = read_manifest(path)
    if manifest is None and not rounds:
        raise CheckpointError(f"{path} holds no run: there is no run.json in it.")
    manifest = manifest or {}
    plain = read_summary(path, manifest.get("run"))
    if plain is not None and plain.pop("metrics_checksum") != metrics_checksum(path):
        raise CheckpointError(
            f"{path / 'metrics.jsonl'} is not what the run wrote. Its script, started again, "
            "writes it anew."
        )
    summary = None if plain is None else summary_from(plain)
    if summary is not None and summary.run_directory is not None:
        summary = dataclasses.replace(summary, run_directory=str(path))  # it may have been moved
    return Run(path, manifest, _read_metrics(path / "metrics.jsonl"), summary, rounds)


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
