"""The example trains the same network with one process and with two."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forking
from tests.small import ROOT

SCRIPT = ROOT / "examples" / "distributed.py"
BUDGET = ("--simulations", "300", "--max-epochs", "2")


def output_of(folder: Path, *command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loss_in(output: str) -> float:
    (found,) = re.findall(r"best validation loss +(-?[\d.]+)", output)
    return float(found)


LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.mark.slow
def test_the_example_gives_one_result_with_one_process_and_with_two(tmp_path):
    alone = forking.run(str(SCRIPT), *BUDGET).stdout
    together = output_of(tmp_path, *LAUNCHER, str(SCRIPT), *BUDGET)
    assert "2 processes" in together
    assert loss_in(together) == pytest.approx(loss_in(alone), abs=1e-3)


@pytest.mark.slow
def test_the_example_trains_on_rows_that_no_process_holds_all_of(tmp_path):
    together = output_of(tmp_path, *LAUNCHER, str(SCRIPT), *BUDGET, "--shards", "own")
    assert "2 processes" in together
