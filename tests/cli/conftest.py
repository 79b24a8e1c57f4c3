"""Runs of every kind, for the commands to look at."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sbi_ignite import TrainConfig
from sbi_ignite.cli.app import call
from tests import forking
from tests.small import ready, second_round

FOREVER = """
import os, sys, time
from sbi_ignite import TrainConfig, EarlyStopping, Callback
from tests.small import ready
class Wait(Callback):
    def on_epoch_end(self, state):
        while state.epoch == 3 and not os.path.exists(sys.argv[1] + ".go"):
            time.sleep(0.05)
ready("NPE_C", 100).train(
    TrainConfig(batch_size=50, max_epochs=int(sys.argv[2])), early_stopping=EarlyStopping.never(),
    checkpoint=sys.argv[1], callbacks=[Wait()],
)
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train once: a run, one with two rounds, and one without validation data."""
    folder = tmp_path_factory.mktemp("trained") / "runs"
    torch.manual_seed(0)
    ready("NPE_C", 100).train(TrainConfig(max_epochs=4, batch_size=50), checkpoint=folder / "one")
    trainer = ready("NPE_C", 100)
    trainer.train(TrainConfig(max_epochs=3, batch_size=50), checkpoint=folder / "rounds")
    second_round(trainer).train(
        TrainConfig(max_epochs=2, batch_size=50), checkpoint=folder / "rounds"
    )
    ready("FMPE", 100).train(TrainConfig(max_epochs=2, batch_size=50), checkpoint=folder / "fmpe")
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the runs that a test may spoil."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@contextlib.contextmanager
def training(directory: Path, epochs: int = 100_000) -> Iterator[forking.Program]:
    """Train in another process, from when it has finished an epoch; it is killed at the end.

    In its third epoch, it waits for a file beside the directory whose name ends in ".go".
    """
    process = forking.start("-W", "ignore", "-c", FOREVER, str(directory), str(epochs), quiet=True)
    try:
        until = time.monotonic() + 120
        metrics = directory / "metrics.jsonl"
        while not metrics.exists() or not metrics.stat().st_size:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


class Answer:
    """What a command printed in this process, and its exit code."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def rows(self) -> list[list[str]]:
        """The cells of a plain table, without those of its head."""
        import re

        return [re.split(" {2,}", line) for line in self.out.splitlines()[1:]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]):
    """Carry out a command in this process."""

    def carry_out(*arguments: object) -> Answer:
        capsys.readouterr()
        code = call([*map(str, arguments)])
        printed = capsys.readouterr()
        return Answer(code, printed.out, printed.err)

    return carry_out
