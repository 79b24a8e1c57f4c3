"""Read run directories without locking them.

Nothing here unpickles: tensors come from `torch.load(weights_only=True)`, all else is JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from sbi_ignite.exceptions import CheckpointError, CheckpointMismatchError
from sbi_ignite.runs.directory import metrics_checksum, read_best, read_manifest, read_summary
from sbi_ignite.runs.fingerprint import fingerprint_network
from sbi_ignite.runs.networks import rebuild_network
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
    rounds = tuple(load_run(folder) for folder in _rounds(path))
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


def load_estimator(
    path: str | os.PathLike[str], build: Callable[..., nn.Module] | None = None
) -> nn.Module:
    """Rebuild the trained estimator of a run, without pickle and without the training data.

    Args:
        path: The run directory; of several rounds the last that has weights is taken.
        build: For networks that sbi's factories did not build from plain arguments: the function
            `(theta, x) -> network` that was given to the trainer. It is called with made-up batches
            of the right shapes.

    Returns:
        The estimator on the CPU with the best weights, in evaluation mode.

    Raises:
        CheckpointError: If there are no weights, or `build` is needed.
        CheckpointMismatchError: If `build` makes a different network from the run's.
    """
    path = Path(path)
    folder = next((f for f in (*reversed(_rounds(path)), path) if (f / "best.pt").exists()), path)
    manifest, best = read_manifest(folder), read_best(folder)
    if manifest is None or best is None:
        raise CheckpointError(f"{path} holds no weights yet: there is no best.pt in it.")
    description = manifest.get("estimator")
    if description is None:
        raise CheckpointError(
            f"{folder / 'run.json'} does not describe the network, because the run was not trained "
            "by one of sbi's trainers. Make the module yourself and load "
            f"RunDirectory.open({str(folder)!r}).read_best()['weights'] into it."
        )
    network = rebuild_network(description, build)
    _check_network(network, manifest, best["weights"])
    network.load_state_dict(best["weights"])
    return network.eval()


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


def _check_network(
    network: nn.Module, manifest: Mapping[str, Any], weights: Mapping[str, Any]
) -> None:
    """Refuse a network whose structure is not that of the run."""
    here = network.state_dict()
    kinds = [
        {name: (tuple(t.shape), str(t.dtype)) for name, t in state.items() if hasattr(t, "shape")}
        for state in (weights, here)
    ]
    found, saved = fingerprint_network(network), manifest.get("network")
    if kinds[0] == kinds[1] and (saved is None or saved["digest"] == found["digest"]):
        return
    wanted = saved or {"class": "a network", "parameters": "other"}
    raise CheckpointMismatchError(
        f"The network that was built ({found['class']}, {found['parameters']} parameters) is not "
        f"the one that was trained ({wanted['class']}, {wanted['parameters']} parameters). Pass as "
        "build= the function that was given to the trainer."
    )


def _rounds(path: Path) -> list[Path]:
    """Return the folders of rounds in their order."""
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
