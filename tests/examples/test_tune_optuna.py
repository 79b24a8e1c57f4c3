"""The example of tuning does what its head says, also when a process dies."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from sbi_ignite import load_run
from tests import forking
from tests.small import ROOT

EXAMPLE = ROOT / "examples" / "tune_optuna.py"


def start(folder: Path, **variables: str) -> forking.Program:
    """Start the example with a small budget."""
    budget = {"NUM_SIMULATIONS": "300", "MAX_EPOCHS": "2", "NUM_TRIALS": "2", "MEMBERS": "2"}
    return forking.start(str(EXAMPLE), cwd=folder, **{**budget, **variables})


def output(process: forking.Program) -> str:
    told, errors = process.communicate(timeout=250)
    assert process.returncode == 0, errors[-2000:]
    return told


def test_trials_are_listed_and_the_best_one_becomes_an_ensemble(tmp_path):
    told = output(start(tmp_path))
    assert len(re.findall(r"^trial \d: complete -?\d+\.\d+ {'network'", told, re.MULTILINE)) == 2
    assert "EnsembleSummary: 2 members of NPE_C" in told
    assert "posterior standard deviations between two members" in told
    assert load_run(tmp_path / "runs" / "tune" / "trial-0").status == "complete"


@pytest.mark.slow
def test_a_killed_trial_is_taken_up_and_its_training_resumes(tmp_path):
    beat = {"HEARTBEAT": "1", "MEMBERS": "0", "NUM_SIMULATIONS": "3000"}
    first = start(tmp_path, NUM_TRIALS="1", MAX_EPOCHS="200", **beat)
    run = tmp_path / "runs" / "tune" / "trial-0"
    limit = time.monotonic() + 200
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
        assert time.monotonic() < limit
        time.sleep(0.02)
    first.kill()
    first.communicate()
    before = len(metrics.read_text().splitlines())
    time.sleep(5)  # three heartbeats
    told = output(start(tmp_path, NUM_TRIALS="1", MAX_EPOCHS="200", **beat))
    assert re.findall(r"^trial (\d): (\w+)", told, re.MULTILINE) == [
        ("0", "fail"),
        ("1", "complete"),
    ]
    found = load_run(run)
    assert found.status == "complete"
    assert found.summary is not None
    assert found.summary.resumed_from_epoch >= before - 1 > 0
