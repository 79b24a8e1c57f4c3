"""What does logging cost, backend by backend, at one value per epoch?

NPE with a maf on 10,000 simulations, trained until its rule stops it. Timed is `.train()` as a user
calls it, the wait at the end included, beside the same call without logging, in turns. MLflow logs
to a real server on this machine that the script starts and ends; wandb logs offline, through the
processes that would send.

    python -m benchmarks.logging_overhead [--rounds 3] [--epochs N] [NAME ...]

A neighbour who works on the same machine stretches the wall times, and the processes beside a
training need a core of their own. Whole calls differ by several percent from one to the next, as
the row "nothing" shows, for which both calls are unlogged. So other columns look closer: the wall
time that the training's own thread spends inside logging, the wait at the end included, as a share
of the call, and CPU time, of that thread in logging and of the processes that it starts (without
wandb's core, which outlives its parent).
"""

from __future__ import annotations

import functools
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform

from benchmarks.measuring import (
    Result,
    Spread,
    Table,
    Timing,
    alternate,
    conclude,
    options_of,
    parse,
    version,
)
from sbi_ignite import NPE, EarlyStopping, LoggingConfig, TrainConfig
from sbi_ignite.loggers import Loggers

CONTROL = "nothing"
"""Name of the comparison of two unlogged calls."""
NAMES = (CONTROL, "memory", "jsonl", "stdout", "tensorboard", "wandb", "mlflow")
BOUND_PERCENT = 2.0

HEADER = (
    "backend",
    "unlogged (s)",
    "added to the call (%)",
    "added to the epochs (%)",
    "wait at the end (ms)",
    "CPU in the training's thread (ms)",
    "held up in all (%)",
    "CPU of other processes (ms)",
)


@dataclass(frozen=True)
class Run:
    """Seconds of one call of `.train()`.

    Attributes:
        call: Wall time.
        epochs: Wall time of its epochs alone.
        thread: CPU time of the training's thread.
        logging: CPU time of that thread inside `Loggers`.
        held: Wall time of that thread inside `Loggers`.
        end: The part of it at the end.
        others: CPU time of processes that it started and that have ended.
        epochs_trained: Number of epochs.
    """

    call: float
    epochs: float
    thread: float
    logging: float
    held: float
    end: float
    others: float
    epochs_trained: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = options_of(__doc__, rounds=3)
    parser.add_argument("names", nargs="*", help=f"backends (default: {' '.join(NAMES)})")
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, help="train so many; default: until the rule stops")
    options = parse(parser, arguments)
    names = options.names or NAMES
    here = Path.cwd()
    runs: dict[str, dict[str, list[Run]]] = {}
    with tempfile.TemporaryDirectory() as folder, quiet():
        os.chdir(folder)
        train = trainer(options.simulations, options.epochs)
        train(None)
        with server_if("mlflow" in names, Path(folder)) as uri:
            for name in names:
                asked = None if name == CONTROL else config_of(name, uri)
                runs[name] = compare(train, asked, options.rounds)
                print(f"{name}: {added(runs[name], 'call'):+.1f} %", file=sys.stderr, flush=True)
        os.chdir(here)
    conclude(result_of(runs), options)


# --- measuring


def trainer(simulations: int, epochs: int | None) -> Callable[[Any], Run]:
    """Return what trains with a logger and tells how long that took."""
    torch.manual_seed(0)
    prior = BoxUniform(-2 * torch.ones(4), 2 * torch.ones(4))
    theta = prior.sample((simulations,))
    x = theta + 0.3 * torch.randn_like(theta)
    config = TrainConfig(seed=1) if epochs is None else TrainConfig(seed=1, max_epochs=epochs)
    rule = EarlyStopping.never() if epochs else EarlyStopping.validation_loss(patience=20)

    def train(logging: Any) -> Run:
        inference = NPE(prior, posterior_nn("maf"), show_progress_bars=False)
        inference.append_simulations(theta, x)
        with time_in_loggers() as inside, warnings.catch_warnings():
            warnings.simplefilter("error")
            others, wall, thread = _children(), time.perf_counter(), time.thread_time()
            inference.train(config, logging=logging, early_stopping=rule)
            call, thread = time.perf_counter() - wall, time.thread_time() - thread
        summary = inference.training_summary
        time.sleep(1.0 if logging else 0.0)  # for processes that are about to end
        return Run(
            call=call,
            epochs=sum(summary.epoch_durations_sec),
            thread=thread,
            logging=inside["cpu"],
            held=inside["wall"],
            end=inside["end"],
            others=_children() - others,
            epochs_trained=summary.epochs_trained,
        )

    return train


@contextmanager
def time_in_loggers() -> Iterator[dict[str, float]]:
    """Add up CPU and wall time of this thread inside `Loggers`, and the wall time at the end."""
    originals = {n: getattr(Loggers, n) for n in ("start", "finish", "_log_epochs")}
    spent, depth = {"cpu": 0.0, "wall": 0.0, "end": 0.0}, [0]

    def measured(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any) -> Any:
            depth[0] += 1
            cpu, wall = time.thread_time(), time.perf_counter()
            try:
                return method(*args)
            finally:
                depth[0] -= 1
                if depth[0] == 0:  # they call one another
                    spent["cpu"] += time.thread_time() - cpu
                    spent["wall"] += time.perf_counter() - wall
                if name == "finish":
                    spent["end"] += time.perf_counter() - wall

        return call

    for name, method in originals.items():
        setattr(Loggers, name, measured(name, method))
    try:
        yield spent
    finally:
        for name, method in originals.items():
            setattr(Loggers, name, method)


def compare(train: Callable[[Any], Run], logging: Any, rounds: int) -> dict[str, list[Run]]:
    """Train with and without a logger in alternation."""
    runs: dict[str, list[Run]] = {"unlogged": [], "logged": []}

    def way(kind: str, asked: Any) -> Callable[[], Timing]:
        def work() -> Timing:
            runs[kind].append(train(asked))
            return Timing(runs[kind][-1].call, runs[kind][-1].thread)

        return work

    alternate({"unlogged": way("unlogged", None), "logged": way("logged", logging)}, rounds)
    return runs


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def quiet() -> Iterator[None]:
    """Send what is printed, by the backend `stdout` above all, into a file, as on a cluster."""
    out = sys.stdout
    with tempfile.TemporaryFile("w") as sys.stdout:
        try:
            yield
        finally:
            sys.stdout = out


# --- reporting


def result_of(runs: dict[str, dict[str, list[Run]]]) -> Result:
    """Return the table."""
    rows = [row_of(name, found) for name, found in runs.items()]
    first = next(iter(runs.values()))["unlogged"][0]
    most = max((held_up(found).median, name) for name, found in runs.items())
    kept = "kept" if most[0] <= BOUND_PERCENT else "not kept"
    return Result(
        script="logging_overhead",
        question="What does logging cost, backend by backend, at one value per epoch?",
        tables=[Table(HEADER, rows, note="Medians of the rounds, with their range.")],
        notes=[
            f"{first.epochs_trained} epochs a call; every pair trains to the same weights.",
            f"Bound of {BOUND_PERCENT:g} % of the call's wall time, for what it is held up by: "
            f"{kept} (most: {most[1]}, {most[0]:.2f} %).",
            f"wandb {version('wandb')}, mlflow {version('mlflow')}, "
            f"tensorboard {version('tensorboard')}; load of the machine at the end "
            f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.",
            "Without a logger, sbi's own TensorBoard tracker writes; it does so in both ways.",
        ],
        numbers={
            name: {kind: [vars(run) for run in found[kind]] for kind in found}
            for name, found in runs.items()
        },
    )


def row_of(name: str, runs: dict[str, list[Run]]) -> tuple[str, ...]:
    """Return a line of the table."""
    logged = runs["logged"]
    # sbi's own tracker is told about epochs in every run.
    usual = statistics.median(run.logging for run in runs["unlogged"])
    spent = [run.logging - usual for run in logged]
    return (
        name,
        f"{Spread.of(run.call for run in runs['unlogged']):.2f}",
        f"{added(runs, 'call'):+.2f}",
        f"{added(runs, 'epochs'):+.2f}",
        f"{Spread.of(1e3 * run.end for run in logged):.0f}",
        f"{Spread.of(1e3 * s for s in spent):.0f}",
        f"{held_up(runs):.2f}",
        f"{Spread.of(1e3 * run.others for run in logged):.0f}",
    )


def held_up(runs: dict[str, list[Run]]) -> Spread:
    """Return how many percent of a call its thread spends in logging, sbi's own tracker aside."""
    usual = statistics.median(run.held for run in runs["unlogged"])
    return Spread.of(100 * (run.held - usual) / run.call for run in runs["logged"])


def added(runs: dict[str, list[Run]], what: str) -> Spread:
    """Return by how many percent logging lengthens something, round by round."""
    pairs = zip(runs["unlogged"], runs["logged"], strict=True)
    return Spread.of(100 * (getattr(b, what) / getattr(a, what) - 1) for a, b in pairs)


# --- where to log


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
    # Without this, seven more processes poll for jobs that nobody gives them.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quietly: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, env=environment, **quietly)
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
