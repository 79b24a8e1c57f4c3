"""Run a logger in a second of training, or in a mock one, and return what it logged."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from torch import Tensor, nn

from sbi_ignite import Callback, SbiIgniteWarning, TrainConfig, TrainingState, TrainingSummary
from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.loggers import Loggers, RunInfo
from sbi_ignite.training.run import run_training
from tests import forking

ROOT = Path(__file__).parents[2]


class Outcome:
    """What a training left; `delay` is what logging cost it, in seconds."""

    def __init__(self, logging: Any, epochs: int, do: Any, **kwargs: Any) -> None:
        torch.manual_seed(0)
        random.seed(0)
        x = torch.randn(60, 2)
        data = [(rows, rows.sum(dim=1, keepdim=True)) for rows in x.split(20)]
        model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.1), nn.Linear(3, 1))
        with warnings.catch_warnings(record=True) as caught, time_in_loggers() as delay:
            warnings.simplefilter("always")
            _, self.summary = run_training(
                TrainConfig(max_epochs=epochs, learning_rate=0.01, clip_max_norm=1.0),
                model,
                squared_error,
                data,
                data[:1],
                logging=logging,
                callbacks=[do] if do else [],
                **kwargs,
            )
        self.delay = delay[0]
        self.weights = [p.detach().clone() for p in model.parameters()]
        self.warnings = [str(w.message) for w in caught if w.category is SbiIgniteWarning]
        self.random_states = random.getstate(), torch.get_rng_state().tolist()

    def is_unharmed(self) -> bool:
        """Say whether it ended, bit for bit, as without a logger."""
        plain = Outcome((), self.summary.epochs_trained, None)
        return (
            all(map(torch.equal, self.weights, plain.weights))
            and self.summary.validation_loss == plain.summary.validation_loss
            and self.random_states == plain.random_states
        )


@contextmanager
def time_in_loggers() -> Iterator[list[float]]:
    """Add up the seconds that training spends inside `Loggers`, on however busy a machine."""
    names = ("start", "finish", "fail", "_log_epochs", "_log_iteration")
    total, inside = [0.0], [False]

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any) -> Any:
            if inside[0]:
                return method(*args)
            inside[0], began = True, time.perf_counter()
            try:
                return method(*args)
            finally:
                total[0] += time.perf_counter() - began
                inside[0] = False

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(Loggers, name, timed(getattr(Loggers, name)))
        yield total


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return losses of shape (batch,)."""
    return (model(batch[0]) - batch[1]).square().mean(dim=1)


def trained(logging: Any, epochs: int = 4, do: Any = None, **kwargs: Any) -> Outcome:
    """Train a small network; `do` is a callback."""
    return Outcome(logging, epochs, do, **kwargs)


class AfterEpoch(Callback):
    """Does something once, after an epoch."""

    def __init__(self, epoch: int, action: Callable[[], Any]) -> None:
        self._epoch, self._action = epoch, action

    def on_epoch_end(self, state: TrainingState) -> None:
        if state.epoch == self._epoch:
            self._action()


class Play:
    """Drives `Loggers` as a training would, with made-up numbers: epoch n has the loss 10 - n."""

    def __init__(self, loggers: Loggers, epochs_done: int = 0, **info: Any) -> None:
        self.loggers, self.state = loggers, TrainingState(model=None)
        self._engine = Engine(lambda engine, batch: None)
        self._engine.register_events(*TrainingEvents)
        self.state.epoch = epochs_done
        for epoch in range(1, epochs_done + 1):
            self._note(epoch)
        loggers.attach(self._engine, self.state)
        settings = {"train": {"seed": {"value": 3, "origin": "environment", "where": "SEED"}}}
        loggers.start(
            RunInfo(
                **{
                    "method": "NPE_C",
                    "config": settings,
                    "epochs_done": epochs_done,
                    "manifest": {"versions": {"torch": "2"}},
                    **info,
                }
            )
        )

    def epochs(self, number: int) -> Play:
        """Let some epochs pass."""
        for _ in range(number):
            self.state.epoch += 1
            self._note(self.state.epoch)
            self._engine.fire_event(TrainingEvents.VALIDATED)
        return self

    def end(self) -> TrainingSummary:
        """Finish regularly."""
        summary = self.summary()
        self.loggers.finish(summary)
        return summary

    def summary(self) -> TrainingSummary:
        """Return the summary so far."""
        known = {field.name for field in dataclasses.fields(TrainingSummary)}
        columns = vars(self.state.history)
        history = {name: tuple(columns[name]) for name in columns.keys() & known}
        history.pop("best_validation_loss")
        return TrainingSummary(
            method="NPE_C",
            epochs_trained=self.state.epoch,
            best_epoch=self.state.epoch,
            best_validation_loss=10.0 - self.state.epoch,
            stop_reason="max_epochs",
            **history,
        )

    def _note(self, epoch: int) -> None:
        self.state.history.append(
            training_loss=10.5 - epoch,
            validation_loss=10.0 - epoch,
            learning_rate=0.5,
            gradient_norm=1.0,
            epoch_durations_sec=0.25,
            best_validation_loss=10.0 - epoch,
            patience_left=7.0,
        )


# --- servers and processes


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# The server's job runner starts seven more processes, for work that no test asks of it.
SERVER_ONLY = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[str, int]]:
    """Start a real MLflow server; gives its address and the id of its process group."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder,
            env={**os.environ, **SERVER_ONLY},
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _healthy(uri), 120)
        yield uri, process.pid
    finally:
        for number in (signal.SIGCONT, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
        process.wait()


def _healthy(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for a condition and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        time.sleep(0.1)
    return value


def descendants(pid: int) -> dict[int, str]:
    """Return the processes below one, with their command lines."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rsplit(")")[-1].split()[1]
                )
                commands[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    below, found = {pid}, {}
    while below:
        below = {child for child, parent in parents.items() if parent in below}
        found |= {child: commands[child] for child in below}
    return found


def run_script(text: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, in this folder."""
    return forking.run("-c", text, **variables)
