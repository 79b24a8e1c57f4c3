"""A resume that may not be bitwise goes on, and says so."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sbi_ignite import TrainConfig, run_training
from sbi_ignite.exceptions import SbiIgniteWarning
from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.load import load_run

BATCHES = [(torch.ones(4, 2), torch.ones(4, 1))] * 3


def squared_error(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean(1)


def train(place: Path, epochs: int) -> list[str]:
    """Train up to so many epochs and return what was warned about."""
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, summary = run_training(
            TrainConfig(max_epochs=epochs),
            nn.Linear(2, 1),
            squared_error,
            BATCHES,
            checkpoint=str(place),
            logging="none",
        )
    assert summary.epochs_trained == epochs
    assert all(one.category is SbiIgniteWarning for one in caught)
    return [str(one.message) for one in caught]


def test_a_resume_on_other_threads_says_so_once_and_in_the_manifest(tmp_path):
    """What changed, from where on; later resumes under the same conditions are silent."""
    assert train(tmp_path, 2) == []
    torch.set_num_threads(2)
    (told,) = train(tmp_path, 4)
    assert "threads (was 1, is 2)" in told
    assert "\n" not in told
    noted = [{"epoch": 2, "iteration": 6, "changed": {"threads": [1, 2]}}]
    assert load_run(tmp_path).manifest["inexact_resumes"] == noted
    assert train(tmp_path, 5) == []
    assert load_run(tmp_path).manifest["inexact_resumes"] == noted
    assert load_run(tmp_path).manifest["machine"]["threads"] == 2


@pytest.mark.parametrize(
    ("group", "values", "told"),
    [
        ("versions", {"torch": "2.0.0"}, "torch (was 2.0.0, is "),
        ("versions", {"numpy": "1.0.0"}, "numpy (was 1.0.0, is "),
        ("machine", {"processor": {"model": "Z80", "capability": "8 bit"}}, "(was Z80, is "),
        ("machine", {"device": "H9000"}, "device (was H9000, is cpu)"),
        ("machine", {"flags": {"mkldnn": False}}, "mkldnn (was False, is True)"),
    ],
)
def test_a_resume_elsewhere_or_with_other_versions_says_so(tmp_path, group, values, told):
    train(tmp_path, 1)
    with RunDirectory.open(tmp_path) as directory:
        manifest = directory.read_manifest()
        directory.update_manifest(**{group: {**manifest[group], **values}})
    (warning,) = train(tmp_path, 2)
    assert told in warning


def test_deterministic_algorithms_that_were_switched_on_are_noticed(tmp_path):
    train(tmp_path, 1)
    torch.use_deterministic_algorithms(True)
    try:
        (told,) = train(tmp_path, 2)
    finally:
        torch.use_deterministic_algorithms(False)
    assert "deterministic_algorithms (was False, is True)" in told


def test_a_finished_run_that_is_only_returned_needs_no_warning(tmp_path):
    train(tmp_path, 2)
    torch.set_num_threads(2)
    assert train(tmp_path, 2) == []
    assert "inexact_resumes" not in load_run(tmp_path).manifest


def test_runs_of_older_versions_that_know_no_machine_continue_without_a_word(tmp_path):
    train(tmp_path, 1)
    with RunDirectory.open(tmp_path) as directory:
        manifest = directory.read_manifest()
        del manifest["machine"], manifest["versions"]["nflows"], manifest["versions"]["zuko"]
        directory.write_manifest(manifest)
    assert train(tmp_path, 2) == []
    assert "processor" in json.loads((tmp_path / "run.json").read_text())["machine"]
