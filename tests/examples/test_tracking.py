"""The examples of tracking run offline and leave runs that can be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import forking
from tests.loggers import read
from tests.loggers.small import ROOT, wait_until


def _run(example: str, *arguments: str) -> str:
    others = dict.fromkeys(name for name in os.environ if name.startswith(("WANDB", "MLFLOW")))
    done = forking.run(
        str(ROOT / "examples" / example), *arguments, "--simulations", "100", **others
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_track_wandb(tmp_path: Path) -> None:
    """Every epoch is in the offline file, at the latest some seconds after the script."""
    assert "epochs trained" in _run("track_wandb.py", "--epochs", "3", "--picture", "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    wait_until(lambda: [record.exit_code for record in read.wandb_records(tmp_path, "exit")])
    assert [step for step, _ in read.wandb(tmp_path)] == [1, 2, 3]


@pytest.mark.slow
def test_track_mlflow(tmp_path: Path) -> None:
    """Two runs in one experiment."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    _run("track_mlflow.py", "--epochs", "2", "--tracking-uri", uri, "--picture", "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    query = "select status from runs"
    wait_until(lambda: read.sqlite(uri, query) == [("FINISHED",), ("FINISHED",)], 120)
    steps = read.sqlite(uri, "select step from metrics where key = 'validation_loss'")
    assert sorted(steps) == [(1,), (1,), (2,), (2,)]
