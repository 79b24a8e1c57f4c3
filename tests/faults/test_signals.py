"""Signals that come in pairs, or to every process of a job, cost nothing that was trained."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sbi_ignite.runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
PATIENCE = 100
"""Seconds after which something counts as hanging."""


def wait_for(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.002)


class Training:
    """A training in a process group of its own."""

    def __init__(self, server: subprocess.Popen[str], folder: Path, **arguments: Any) -> None:
        self.folder, self._server = folder, server
        for name in ("iteration", "stall", "go", "writing"):
            (folder / name).unlink(missing_ok=True)
        server.stdin.write(json.dumps({"folder": str(folder), **arguments}) + "\n")
        server.stdin.flush()
        self.process = int(server.stdout.readline())

    def wait_for_batch(self, number: int) -> None:
        file = self.folder / "iteration"
        wait_for(lambda: file.exists() and int(file.read_text()) >= number, self.output())

    def stall_the_disk(self) -> None:
        (self.folder / "stall").touch()

    def wait_until_it_writes(self) -> None:
        wait_for((self.folder / "writing").exists, self.output())

    def release_the_disk(self) -> None:
        (self.folder / "go").touch()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process, number)

    def signal_group(self, number: signal.Signals) -> None:
        os.killpg(self.process, number)

    def end(self) -> int:
        """Return the exit status once the process has ended."""
        if not select.select([self._server.stdout], [], [], PATIENCE)[0]:
            self.signal_group(signal.SIGKILL)
            pytest.fail(f"the process did not end, exit {self.end()}: {self.output()}")
        return int(self._server.stdout.readline())

    def check_end(self, number: signal.Signals, killed: bool = False) -> None:
        """Expect the end that a signal stands for, and wait for it."""
        status = self.end()
        if number == signal.SIGINT:
            # python ends by the signal itself, unless something at its end executes code.
            assert status in (-number, 1), self.output()
            assert self.output().rstrip().endswith("KeyboardInterrupt"), self.output()
        else:
            assert status == (-number if killed else 128 + number), self.output()

    def output(self) -> str:
        file = self.folder / "output"
        return file.read_text() if file.exists() else ""

    @property
    def status(self) -> str:
        return json.loads((self.folder / "run" / "run.json").read_text())["status"]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return torch.load(self.folder / "weights", weights_only=True)

    @property
    def saved_iteration(self) -> int:
        with RunDirectory.open(self.folder / "run") as directory:
            return directory.latest().iteration


class Trainings:
    """Starts trainings, and knows how those end that nobody disturbs."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server, self._folder = server, folder
        self._undisturbed: dict[str, dict[str, torch.Tensor]] = {}

    def start(self, folder: Path, **arguments: Any) -> Training:
        return Training(self._server, folder, **arguments)

    def check_resume(self, training: Training, **arguments: Any) -> None:
        """Start again and compare the weights with those of an undisturbed training, bit by bit."""
        again = self.start(training.folder, **{**arguments, "seconds": 0.0})
        assert again.end() == 0, again.output()
        assert again.status == "complete"
        name = json.dumps(arguments, sort_keys=True)
        if name not in self._undisturbed:
            folder = self._folder / str(len(self._undisturbed))
            folder.mkdir()
            calm = self.start(folder, **{**arguments, "seconds": 0.0})
            assert calm.end() == 0, calm.output()
            self._undisturbed[name] = calm.weights
        for key, value in self._undisturbed[name].items():
            assert torch.equal(value, again.weights[key]), key


@pytest.fixture(scope="module")
def trainings(tmp_path_factory) -> Iterator[Trainings]:
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "faults" / "signalled.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Trainings(server, tmp_path_factory.mktemp("undisturbed"))
    finally:
        server.stdin.close()
        server.wait(PATIENCE)
        server.stdout.close()


# --- while the last checkpoint is being written


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]
)
def test_a_second_signal_during_the_last_write_costs_no_batch(trainings, tmp_path, number):
    training = trainings.start(tmp_path)
    training.wait_for_batch(30)
    training.stall_the_disk()
    training.signal(number)
    training.wait_until_it_writes()
    training.signal(number)
    training.release_the_disk()
    training.check_end(number)
    assert training.status == "interrupted"
    assert training.saved_iteration == int((tmp_path / "iteration").read_text())
    trainings.check_resume(training)


def test_sigterm_during_the_last_write_after_a_warning_signal_costs_no_batch(trainings, tmp_path):
    """SIGUSR1 as asked for in a job script, then the two SIGTERM of the time limit."""
    training = trainings.start(tmp_path)
    training.wait_for_batch(30)
    training.stall_the_disk()
    training.signal(signal.SIGUSR1)
    training.wait_until_it_writes()
    training.signal(signal.SIGTERM)
    training.signal(signal.SIGTERM)
    training.release_the_disk()
    training.check_end(signal.SIGUSR1)
    assert training.status == "interrupted"
    assert training.saved_iteration == int((tmp_path / "iteration").read_text())


@pytest.mark.parametrize(
    "workers",
    [0, pytest.param(1, marks=pytest.mark.slow)],
    ids=["in the background", "in the main thread"],
)
@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGTERM, 3), (signal.SIGINT, 2)], ids=["third", "second Ctrl-C"]
)
def test_whoever_insists_does_not_wait_for_the_disk(trainings, tmp_path, number, times, workers):
    """The disk never answers; the process ends all the same, and the checkpoint before is whole."""
    arguments = {"workers": workers}
    training = trainings.start(tmp_path, **arguments)
    training.wait_for_batch(30)
    training.stall_the_disk()
    if workers:  # the end of the epoch is written; between its batches nothing would be
        training.wait_until_it_writes()
    training.signal(number)
    training.wait_until_it_writes()
    for _ in range(times - 1):
        time.sleep(0.2)  # two that are pending at the same time are one
        training.signal(number)
    training.check_end(number, killed=True)
    assert training.saved_iteration > 0
    trainings.check_resume(training, **arguments)


# --- to the whole process group


LOADERS = {
    "forked workers": {"workers": 2},
    "forked workers that began before": {"workers": 2, "persistent": True},
    "workers for validation alone": {"workers": 1, "only_validation": True},
    "spawned workers": {"workers": 1, "context": "spawn"},
    "spawned workers that began before": {"workers": 1, "context": "spawn", "persistent": True},
}
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.mark.parametrize(
    ("loader", "number"),
    [
        *[("forked workers", number) for number in SIGNALS],
        *[
            pytest.param(loader, signal.SIGTERM, marks=pytest.mark.slow)
            for loader in ("forked workers that began before", "workers for validation alone")
        ],
    ],
)
def test_a_signal_to_all_processes_is_a_request_to_stop(trainings, tmp_path, number, loader):
    training = trainings.start(tmp_path, **LOADERS[loader])
    training.wait_for_batch(25)
    training.signal_group(number)
    training.check_end(number)
    assert training.status == "interrupted", training.output()
    trainings.check_resume(training, **LOADERS[loader])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_a_signal_to_all_processes_may_come_at_any_moment(trainings, tmp_path, number, loader):
    """Also while workers are being started, as soon as the run directory is there."""
    for i in range(2 if loader.get("context") == "spawn" else 12):
        folder = tmp_path / str(i)
        folder.mkdir()
        training = trainings.start(folder, seconds=0.01, **loader)
        wait_for((folder / "run" / "run.json").exists, training.output())
        time.sleep(0.07 * i)  # of at least a second
        training.signal_group(number)
        training.check_end(number)
        assert training.status == "interrupted"
        trainings.check_resume(training, **loader)


@pytest.mark.slow
def test_a_worker_that_nobody_asked_to_end_is_an_error(trainings, tmp_path):
    """The training has failed and can be continued."""
    training = trainings.start(tmp_path, seconds=0.05, workers=1)
    training.wait_for_batch(28)
    children = Path(f"/proc/{training.process}/task/{training.process}/children")
    if not children.exists():
        training.signal_group(signal.SIGKILL)
        training.end()
        pytest.skip("there is no /proc that names a process's children")
    for child in children.read_text().split():
        os.kill(int(child), signal.SIGKILL)
    assert training.end() == 1, training.output()
    assert training.status == "failed"
    trainings.check_resume(training, workers=1)


@pytest.mark.slow
def test_what_is_forked_during_a_training_can_be_ended(tmp_path):
    """A pool of processes that a callback starts ends when it is told to, by SIGTERM."""
    script = """
import multiprocessing, signal, sys, torch
from torch import nn
from sbi_ignite import TrainConfig, run_training

class Simulate:
    def on_epoch_end(self, state):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(signal.getsignal, [signal.SIGTERM]) == [signal.SIG_DFL]

def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(1)

x = torch.randn(100, 2)
batches = [(x, x.sum(1, keepdim=True))]
config = TrainConfig(max_epochs=2)
run_training(config, nn.Linear(2, 1), loss, batches, callbacks=[Simulate()], checkpoint=sys.argv[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
