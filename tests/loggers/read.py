"""Read back what a backend has written, step by step."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

from sbi_ignite.loggers import EPOCH_METRICS as WITH_VALIDATION

EPOCH_METRICS = (*WITH_VALIDATION, "best_training_loss")

Rows = list[tuple[int, dict[str, float]]]
"""Steps in the order in which they are held, repeated ones included, with their metrics."""


def jsonl(path: Path) -> Rows:
    """Read a file of JSON lines."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["epoch"], _metrics(line)) for line in lines if "epoch" in line]


def jsonl_iterations(path: Path) -> list[Any]:
    """Read (iteration, learning rate, loss)."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [_iteration(line) for line in lines if "iteration" in line]


def tensorboard(folder: Path, prefix: str = "") -> Rows:
    """Read event files as TensorBoard does, purged steps left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.removeprefix(prefix) in EPOCH_METRICS]
    points = {tag.removeprefix(prefix): events.Scalars(tag) for tag in tags}
    return _by_step({n: [(p.step, p.value) for p in ps] for n, ps in points.items()})


def tensorboard_tags(folder: Path) -> list[str]:
    """Return the names of all scalars, and of what the page of hyperparameters compares."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, parse_experiment_plugin_data

    events = EventAccumulator(str(folder)).Reload()
    plugins = events.summary_metadata.get(EXPERIMENT_TAG)
    compared = [] if plugins is None else parse_experiment_plugin_data(plugins.plugin_data.content)
    infos = getattr(compared, "metric_infos", [])
    return [*events.Tags()["scalars"], *(info.name.tag for info in infos)]


def tensorboard_iterations(folder: Path) -> list[Any]:
    """Read (iteration, learning rate, loss)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "iterations"), size_guidance={"scalars": 0}).Reload()
    rates, losses = (events.Scalars(name) for name in ("iteration_learning_rate", "iteration_loss"))
    return [(a.step, a.value, b.value) for a, b in zip(rates, losses, strict=True)]


def mlflow(uri: str, run_id: str) -> Rows:
    """Read a run from a server, or from a sqlite file without MLflow's slow import."""
    if uri.startswith("sqlite:///"):
        query = "select key, step, value from metrics where run_uuid = ? order by step"
        points: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for name, step, value in sqlite(uri, query, run_id):
            points[name].append((step, value))
        return _by_step({n: points[n] for n in EPOCH_METRICS if n in points})
    client = client_of(uri)
    history = {name: client.get_metric_history(run_id, name) for name in EPOCH_METRICS}
    return _by_step({n: sorted((m.step, m.value) for m in ms) for n, ms in history.items()})


def mlflow_parameters(uri: str, run_id: str) -> dict[str, str]:
    """Read the parameters of a run in a sqlite store."""
    return dict(sqlite(uri, "select key, value from params where run_uuid = ?", run_id))


def mlflow_iterations(uri: str) -> list[Any]:
    """Read (iteration, learning rate, loss) of the only run in a sqlite store."""
    query = "select step, value from metrics where key = ? order by step"
    rates = sqlite(uri, query, "iteration_learning_rate")
    losses = dict(sqlite(uri, query, "iteration_loss"))
    return [(step, rate, losses[step]) for step, rate in rates]


def sqlite(uri: str, query: str, *values: Any) -> list[Any]:
    """Ask a sqlite store."""
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as store:
        return store.execute(query, values).fetchall()


def client_of(uri: str) -> Any:
    """Return a client; importing MLflow warns about other packages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        return MlflowClient(uri)


def only_mlflow_run_id(uri: str) -> str:
    """Return the id of the one run in a sqlite store."""
    ((run_id,),) = sqlite(uri, "select run_uuid from runs")
    return run_id


def mlflow_runs(uri: str, experiment: str) -> list[Any]:
    """Return the runs of an experiment on a server."""
    client = client_of(uri)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else list(client.search_runs([found.experiment_id]))


def wandb(folder: Path, run_id: str = "*") -> Rows:
    """Read the offline files of a run, in the order in which they were written."""
    rows = wandb_rows(folder, run_id)
    return [(row["epoch"], _metrics(row)) for row in rows if "training_loss" in row]


def wandb_iterations(folder: Path) -> list[Any]:
    """Read (iteration, learning rate, loss)."""
    return [_iteration(row) for row in wandb_rows(folder, "*") if "iteration_loss" in row]


def wandb_rows(folder: Path, run_id: str = "*") -> list[dict[str, Any]]:
    """Return everything that was logged to a run's offline files, call by call."""
    from sbi_ignite.loggers.wandb import logged_rows

    paths = folder.glob(f"wandb/*run-2*-{run_id}/run-*.wandb")
    by_age = sorted(paths, key=lambda path: path.stat().st_mtime)
    return [row for path in by_age for row in logged_rows(path)]


def _iteration(row: dict[str, Any]) -> tuple[int, float, float]:
    return row["iteration"], row["iteration_learning_rate"], row["iteration_loss"]


def wandb_records(folder: Path, kind: str) -> list[Any]:
    """Return the records of one kind in all offline files."""
    from wandb.proto import wandb_internal_pb2

    from sbi_ignite.loggers.wandb import _records

    found = []
    for path in folder.glob("wandb/*run-2*/run-*.wandb"):
        for data in _records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == kind:
                found.append(getattr(record, kind))
    return found


def _metrics(row: dict[str, Any]) -> dict[str, float]:
    return {name: row[name] for name in EPOCH_METRICS if name in row}


def _by_step(points: dict[str, list[tuple[int, float]]]) -> Rows:
    """Join metrics by step; the n-th value of a step goes into its n-th row."""
    rows: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for name, values in points.items():
        seen: dict[int, int] = defaultdict(int)
        for step, value in values:
            rows[step, seen[step]][name] = value
            seen[step] += 1
    return [(step, metrics) for (step, _), metrics in sorted(rows.items())]
