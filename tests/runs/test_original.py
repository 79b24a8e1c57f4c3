"""A copied run directory is told from a moved one, and a complete run is read without a lock."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from sbi_ignite import TrainConfig, run_training
from sbi_ignite.exceptions import CheckpointError
from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.files import read_json, write_json
from sbi_ignite.runs.remembered import recall, remember
from tests.runs.test_disks import on_disk


def identity(path: Path | str) -> str:
    """Open a run directory, write its run.json, and return the run's identity."""
    with RunDirectory.open(path) as directory:
        directory.write_manifest(directory.read_manifest() or {"status": "running"})
        return directory.identity


def as_of_version_0_1(path: Path, called: str, number: int = 0) -> None:
    """Take from run.json what that version did not write."""
    manifest = read_json(path / "run.json") or {}
    for name in ("identity", "home", "copied_from"):
        del manifest[name]
    settings = {"checkpoint": {"directory": {"value": called, "origin": "call", "where": ""}}}
    write_json(path / "run.json", {**manifest, "settings": settings, "round": number})


def test_a_moved_run_is_the_same_and_a_copied_one_another(tmp_path):
    """Whichever of the two is opened first; a copy of a copy is a third."""
    original = identity(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy = identity(tmp_path / "b")
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    assert len({original, copy, identity(tmp_path / "c")}) == 3
    assert (identity(tmp_path / "a"), identity(tmp_path / "b")) == (original, copy)
    shutil.move(tmp_path / "b", tmp_path / "d")
    assert identity(tmp_path / "d") == copy
    shutil.copytree(tmp_path / "d", tmp_path / "e")
    shutil.rmtree(tmp_path / "d")
    assert identity(tmp_path / "e") == copy  # the only one that is left


def test_a_run_moved_away_from_where_another_began_is_the_same(tmp_path):
    """What is now at the old place is another run."""
    first = identity(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "old")
    second = identity(tmp_path / "a")
    assert first != second
    assert identity(tmp_path / "old") == first


@pytest.mark.parametrize("number", [0, 1])
def test_a_copy_made_with_version_0_1_is_another_run(tmp_path, monkeypatch, number):
    """Its run.json names the directory as the user did, relative to where the script runs."""
    monkeypatch.chdir(tmp_path)
    name = f"a/round-{number}" if number else "a"
    original = identity(name)
    as_of_version_0_1(Path(name), "a", number)
    shutil.copytree("a", "b")
    shutil.copytree("a", "moved")
    assert identity(name.replace("a", "b")) != original
    assert identity(name) == original
    shutil.rmtree("a")
    assert identity(name.replace("a", "moved")) == original


TWO_MOUNTS = """
    import os, subprocess, sys
    from pathlib import Path
    from tests.runs.test_original import identity
    first, second = Path(sys.argv[1], "first"), Path(sys.argv[1], "second")
    for path in (first, second):
        path.mkdir()
    before = identity(first / "run")
    subprocess.run(["mount", "--bind", first, second], check=True)
    print(identity(second / "run") == before, identity(first / "run") == before)
"""


def test_two_mounts_of_a_disk_show_the_same_run(tmp_path):
    """On a node that has both paths, neither is a copy of the other."""
    assert on_disk(tmp_path / "disk", "size=1m", TWO_MOUNTS) == "True True\n"


def squared_error(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(dim=1)


def train(path: Path, epochs: int) -> Any:
    """Train a small network."""
    torch.manual_seed(0)
    x = torch.randn(40, 2)
    data = [(rows, rows.sum(dim=1, keepdim=True)) for rows in x.split(20)]
    config = TrainConfig(max_epochs=epochs)
    return run_training(config, torch.nn.Linear(2, 1), squared_error, data, checkpoint=str(path))


def test_a_complete_run_that_was_moved_knows_so_when_it_is_copied(tmp_path):
    """To read it once where it is now is enough."""
    train(tmp_path / "a", 2)
    shutil.move(tmp_path / "a", tmp_path / "b")
    train(tmp_path / "b", 2)
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    assert identity(tmp_path / "c") != identity(tmp_path / "b")


HOLD = """
    import sys
    from sbi_ignite.runs.directory import RunDirectory
    with RunDirectory.open(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def held(tmp_path):
    """Let another process hold a run directory."""
    first, _ = train(tmp_path / "run", 2)
    other = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(HOLD), tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield tmp_path / "run", first
    finally:
        other.communicate("\n", timeout=60)


def test_a_complete_run_that_another_process_holds_is_returned(held):
    """Several tasks may read the same finished run at the same time; only one may train on."""
    path, first = held
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    again, summary = train(path, 2)
    assert torch.equal(again.weight, first.weight)
    assert summary.resumed_from_epoch == 2
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before
    with pytest.raises(CheckpointError, match=r"in use by process \d+.*complete and can be read"):
        train(path, 3)
    with RunDirectory.open(path) as directory:
        for change in (directory.set_aside, lambda: directory.set_metrics([])):
            with pytest.raises(CheckpointError, match="in use by process"):
                change()


def test_a_complete_run_is_read_without_a_write(tmp_path):
    """No file of it changes when its script is started again."""
    train(tmp_path, 2)
    lock = tmp_path / ".lock"
    before = {f: f.stat().st_mtime_ns for f in tmp_path.iterdir() if f != lock}
    train(tmp_path, 2)
    assert {f: f.stat().st_mtime_ns for f in tmp_path.iterdir() if f != lock} == before


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
def test_a_complete_run_that_lacks_a_file_gets_it_back(tmp_path, name):
    """Its script, started again, writes it anew."""
    train(tmp_path, 2)
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    train(tmp_path, 2)
    if name == "metrics.jsonl":
        assert (tmp_path / name).read_bytes() == before
    with RunDirectory.open(tmp_path) as directory:
        assert directory.is_whole()


STATES = {"iterations": 7, "wandb": {"id": "w"}}


def test_what_loggers_remember_moves_with_the_directory(tmp_path):
    """Places inside as they lie there, places outside where they are; a copy has the first only."""
    for folder in ("run/logs", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    run, outside = tmp_path / "run", str(tmp_path / "elsewhere")
    inside = {"path": str(run / "logs"), "id": None}
    states = {**STATES, "jsonl": inside, "tensorboard": {"path": outside, "id": "t"}}
    told = remember(states, run, "me")
    assert recall(told, run, "me", "me") == states
    shutil.copytree(run, tmp_path / "deep" / "run")
    moved = recall(told, tmp_path / "deep" / "run", "me", "me")
    here = {"path": str(tmp_path / "deep" / "run" / "logs"), "id": None}
    assert moved == {**states, "jsonl": here}
    assert recall(told, tmp_path / "deep" / "run", "me", "other") == {
        "iterations": 7,
        "jsonl": here,
    }


def test_what_loggers_of_version_0_1_remember_is_found_where_it_was_moved_to(tmp_path):
    """Its paths are absolute."""
    (tmp_path / "now" / "logs").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    logs, now = tmp_path / "before" / "logs", tmp_path / "now"
    old = {**STATES, "jsonl": {"path": str(logs / "metrics.jsonl")}}
    old |= {"tensorboard": {"log_dir": str(logs)}}
    here = {"path": str(now / "logs"), "id": None}
    assert recall(old, now, "me", "me") == {**STATES, "jsonl": here, "tensorboard": here}
    # Of a later round, whose log is that of the first.
    assert recall(old, now / "round-1", "me", "me") == {
        **STATES,
        "jsonl": here,
        "tensorboard": here,
    }
    elsewhere = {"tensorboard": {"log_dir": str(tmp_path / "outside")}}
    found = {"tensorboard": {"path": str(tmp_path / "outside"), "id": None}}
    assert recall(elsewhere, now, "me", "me") == found
    assert recall(elsewhere, now, "me", "a copy") == {}
    # Where another run lies now, its log is not this one's.
    logs.mkdir(parents=True)
    (logs.parent / "run.json").touch()
    shutil.rmtree(now / "logs")
    assert recall(old, now, "me", "me") == STATES
