"""What does logging cost? One value per epoch, NPE with a maf on 10,000 simulations, each backend.

    python benchmarks/logging_overhead.py [--epochs 20] [--repeats 3] [--json FILE] [NAME ...]

Times `.train()` as a user sees it, the wait at the end included, beside the same call without
logging, in alternation. MLflow logs to a real server on this machine that the script starts and
ends; wandb logs offline, through the same process that would send. "inside" is what happens between
the first and the last step: the time of the epochs alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform

from sbi_ignite import NPE, EarlyStopping, LoggingConfig, TrainConfig


def main() -> None:
    """Measure, print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="backends; default: all")
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        all_names = ("memory", "jsonl", "stdout", "tensorboard", "wandb", "mlflow")
        names = arguments.names or all_names
        results = {}
        train = trainer(arguments.simulations, arguments.epochs)
        train(None)
        with server_if("mlflow" in names, Path(folder)) as uri:
            for name in names:
                results[name] = compare(train, config_of(name, uri), arguments.repeats)
                show(name, results[name])
    if arguments.json is not None:
        record = {**vars(arguments), "json": None, "results": results}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


def trainer(simulations: int, epochs: int) -> Callable[[Any], tuple[float, float]]:
    """Return what trains and says how many seconds the call and its epochs took."""
    torch.manual_seed(0)
    prior = BoxUniform(-2 * torch.ones(4), 2 * torch.ones(4))
    theta = prior.sample((simulations,))
    x = theta + 0.3 * torch.randn_like(theta)

    def train(logging: Any) -> tuple[float, float]:
        inference = NPE(prior, posterior_nn("maf"), show_progress_bars=False)
        inference.append_simulations(theta, x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            began = time.perf_counter()
            inference.train(
                TrainConfig(max_epochs=epochs, seed=1),
                logging=logging,
                early_stopping=EarlyStopping.never(),
            )
            seconds = time.perf_counter() - began
        return seconds, sum(inference.training_summary.epoch_durations_sec)

    return train


def compare(
    train: Callable[[Any], tuple[float, float]], logging: Any, repeats: int
) -> dict[str, Any]:
    """Train with and without logging in alternation; medians in seconds, overheads in percent."""
    runs: dict[str, list[tuple[float, float]]] = {"plain": [], "logged": []}
    for _ in range(repeats):
        runs["plain"].append(train(None))
        runs["logged"].append(train(logging))
    found: dict[str, Any] = {"runs": runs}
    for i, what in enumerate(("call", "inside")):
        plain, logged = (min(run[i] for run in runs[kind]) for kind in ("plain", "logged"))
        found[what] = {
            "plain": plain,
            "logged": logged,
            "percent": 100 * (logged / plain - 1),
            "median_percent": 100
            * (statistics.median(b[i] / a[i] for a, b in zip(*runs.values(), strict=True)) - 1),
        }
    return found


def show(name: str, result: dict[str, Any]) -> None:
    """Print a line of the table."""
    cells = [
        f"{what}: {r['plain']:7.2f} s -> {r['logged']:7.2f} s ({r['percent']:+5.1f} %)"
        for what, r in ((what, result[what]) for what in ("call", "inside"))
    ]
    print(f"{name:<12} {'   '.join(cells)}", flush=True)


def config_of(name: str, uri: str | None) -> LoggingConfig:
    """Return how to log to a backend here."""
    if name == "wandb":
        return LoggingConfig("wandb", mode="offline")
    if name == "mlflow":
        return LoggingConfig("mlflow", tracking_uri=uri)
    return LoggingConfig(name)  # type: ignore[arg-type] # checked by LoggingConfig


@contextmanager
def server_if(wanted: bool, folder: Path) -> Iterator[str | None]:
    """Start an MLflow server, if one is wanted, and end it."""
    if not wanted:
        yield None
        return
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, **quiet)
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(url: str) -> None:
    """Wait until a server answers."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(url)


if __name__ == "__main__":
    main()
