"""A run directory keeps checkpoints, best weights, words and numbers safely."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
import torch

from sbi_ignite.exceptions import CheckpointError, SbiIgniteWarning
from sbi_ignite.runs import files
from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.files import Header, encode_tensors, write_whole
from sbi_ignite.runs.snapshot import Snapshot
from tests.runs.conftest import same, states_at


def names(path: Path, pattern: str = "checkpoint-*") -> list[str]:
    return sorted(file.name for file in path.glob(pattern))


def test_the_newest_checkpoint_comes_back_exactly(run_at):
    """States, best weights included, are those of the last checkpoint."""
    with RunDirectory.open(run_at()) as directory:
        checkpoint = directory.latest()
    assert (checkpoint.epoch, checkpoint.iteration) == (3, 3)
    assert same(checkpoint.states, states_at(3))


def test_an_empty_directory_has_nothing(tmp_path):
    """Neither checkpoint nor manifest, best weights or summary are made up."""
    with RunDirectory.open(tmp_path / "new" / "run") as directory:
        assert directory.latest() is None
        assert directory.read_manifest() is None
        assert directory.read_best() is None
        assert directory.read_summary() is None


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_only_the_newest_are_kept(tmp_path, keep_last):
    """After ten checkpoints the last `keep_last` are there, with the best weights they need."""
    with RunDirectory.open(tmp_path, keep_last) as directory:
        for iteration in range(1, 11):
            directory.write(iteration, iteration, Snapshot.of(states_at(iteration)))
        kept = range(11 - keep_last, 11)
        assert names(tmp_path) == [f"checkpoint-{i:09d}.pt" for i in kept]
        for iteration in reversed(kept):
            assert same(directory.latest().states, states_at(iteration))
            if iteration > kept[0]:
                (tmp_path / f"checkpoint-{iteration:09d}.pt").unlink()


def test_best_weights_that_nobody_needs_are_removed(tmp_path):
    """Beside best.pt there is at most one older file of best weights per kept checkpoint."""
    with RunDirectory.open(tmp_path) as directory:
        for iteration in range(20):
            directory.write(iteration, iteration, Snapshot.of(states_at(iteration)))
            assert len(names(tmp_path, "best*.pt")) <= 2
        weights = directory.read_best()["weights"]
    assert same(weights, states_at(19)["best_weights"]["weights"])


def test_unchanged_best_weights_are_written_once(tmp_path):
    """best.pt is left alone while the best epoch stays, whether or not the states are copies."""
    states = states_at(4)
    with RunDirectory.open(tmp_path) as directory:
        directory.write(4, 4, Snapshot.of(states))
        written = (tmp_path / "best.pt").stat().st_mtime_ns
        best = states["best_weights"]
        directory.write(5, 5, Snapshot.of({**states_at(5), "best_weights": best}))
        directory.write(6, 6, Snapshot.of({**states_at(6), "best_weights": states_at(4)[
            "best_weights"]}))  # fmt: skip
        assert (tmp_path / "best.pt").stat().st_mtime_ns == written
        assert same(directory.latest().states["best_weights"], best)


def test_the_best_weights_stand_in_one_file(tmp_path):
    """A checkpoint does not repeat them, and they come back with it, the signs of zeros too."""
    weights = {"w": torch.zeros(10_000).neg(), "b": torch.ones(3)}
    states = {"best_weights": {"epoch": 1, "loss": 0.5, "weights": weights}}
    with RunDirectory.open(tmp_path) as directory:
        directory.write(1, 1, Snapshot.of(states))
        back = directory.latest().states
    assert same(back, states)
    assert torch.signbit(back["best_weights"]["weights"]["w"]).all()
    assert next(tmp_path.glob("checkpoint-*.pt")).stat().st_size < 10_000


def test_best_weights_that_somebody_removed_are_written_again(tmp_path):
    """A checkpoint is never left with a reference to nothing; one warning says what happened."""
    before = states_at(4)
    first = Snapshot.of(before)
    later = Snapshot.of({**states_at(5), "best_weights": before["best_weights"]}, first)
    with RunDirectory.open(tmp_path) as directory:
        directory.write(4, 4, first)
        (tmp_path / "best.pt").unlink()
        with pytest.warns(SbiIgniteWarning, match="nothing could be saved"):
            directory.write(5, 5, later)
        assert directory.write(6, 6, later)
        assert same(directory.latest().states["best_weights"], before["best_weights"])


def test_a_background_write_keeps_the_values_of_its_moment(tmp_path):
    """Steps that follow at once do not get into the file that is being written."""
    states = states_at(1)
    with RunDirectory.open(tmp_path) as directory:
        directory.write_in_background(1, 1, Snapshot.of(states))
        states["model"]["weight"] += 100
        states["best_weights"]["weights"]["weight"] += 100
        assert same(directory.latest().states, states_at(1))


@pytest.mark.parametrize("name", ["my runs/with spaces", "läufe/实验-1/🔥", "a'b\"c$HOME"])
def test_any_name_of_a_folder_will_do(tmp_path, name):
    """Spaces, quotes and letters of any script in the path change nothing."""
    with RunDirectory.open(tmp_path / name) as directory:
        directory.write(1, 1, Snapshot.of(states_at(1)))
        directory.write_manifest({"method": name})
        assert same(directory.latest().states, states_at(1))
        assert directory.read_manifest()["method"] == name


def test_leftovers_of_killed_writers_are_removed(run_at):
    """Temporary files go when the directory is opened."""
    path = run_at()
    leftover = path / ".checkpoint-000000004.pt.123.tmp"
    leftover.write_bytes(b"half")
    RunDirectory.open(path).close()
    assert not leftover.exists()


@pytest.mark.parametrize("unusable", ["below a file", "proc"])
def test_a_directory_that_cannot_be_written_is_refused_at_once(tmp_path, unusable):
    """The error comes when the directory is opened and names it."""
    (tmp_path / "file").touch()
    path = {"below a file": tmp_path / "file" / "run", "proc": Path("/proc/self/run")}[unusable]
    with pytest.raises(CheckpointError, match="cannot be used as a run directory"):
        RunDirectory.open(path)


def test_a_read_only_directory_is_refused_at_once(tmp_path, monkeypatch):
    """Where files cannot be made, opening says so (simulated: tests may run as root)."""

    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        RunDirectory.open(tmp_path)
    monkeypatch.undo()
    RunDirectory.open(tmp_path).close()


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_costs_a_warning_and_no_checkpoint(tmp_path, monkeypatch, background):
    """The earlier checkpoint stays, one warning comes, and saving goes on when there is room."""
    with RunDirectory.open(tmp_path) as directory:
        directory.write(1, 1, Snapshot.of(states_at(1)))

        def full(*args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)

        def save_three_times():
            for number in (2, 3, 4):
                snapshot = Snapshot.of(states_at(number))
                if background:
                    directory.write_in_background(number, number, snapshot)
                else:
                    assert not directory.write(number, number, snapshot)
            directory.wait()

        with pytest.warns(SbiIgniteWarning, match="No space left on device") as caught:
            save_three_times()
        assert len(caught) == 1
        assert same(directory.latest().states, states_at(1))
        assert not list(tmp_path.glob(".*.tmp"))
        monkeypatch.undo()
        assert directory.write(5, 5, Snapshot.of(states_at(5)))
        assert same(directory.latest().states, states_at(5))


def test_best_weights_after_a_full_disk_are_the_right_ones(tmp_path, monkeypatch):
    """When best.pt could not be written, the next checkpoint does not take the old one for it."""
    with RunDirectory.open(tmp_path) as directory:
        directory.write(1, 1, Snapshot.of(states_at(1)))
        states = states_at(8)
        monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.warns(SbiIgniteWarning, match="full"):
            directory.write(8, 8, Snapshot.of(states))
        monkeypatch.undo()
        directory.write(9, 9, Snapshot.of({**states_at(9), "best_weights": states["best_weights"]}))
        assert same(directory.latest().states["best_weights"], states["best_weights"])


def test_after_falling_back_new_checkpoints_replace_the_damaged_one(run_at):
    """A resumed run's checkpoints are not pruned in favour of a damaged newer file."""
    path = run_at(iterations=(1, 2, 9))
    (path / "checkpoint-000000009.pt").write_bytes(b"")
    with RunDirectory.open(path) as directory:
        with pytest.warns(SbiIgniteWarning, match=r"checkpoint-000000009\.pt is damaged"):
            assert directory.latest().iteration == 2
        directory.write(3, 3, Snapshot.of(states_at(3)))
        assert names(path) == ["checkpoint-000000002.pt", "checkpoint-000000003.pt"]
        assert same(directory.latest().states, states_at(3))


def test_a_malicious_checkpoint_is_refused_and_executes_nothing(run_at, tmp_path):
    """A pickle with a right checksum is passed over like any damaged file."""
    path, trace = run_at(), tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {trace}",))

    with RunDirectory.open(path) as directory:
        header = Header("checkpoint", directory.run, 4, 4)
        _, chunks = encode_tensors(header, {"text": Evil(), "tensors": {}})
        write_whole(path / "checkpoint-000000004.pt", chunks)
        with pytest.warns(SbiIgniteWarning, match="weights_only=True"):
            assert directory.latest().iteration == 3
        for file in path.glob("checkpoint-00000000[123].pt"):
            file.unlink()
        with pytest.raises(CheckpointError, match="no checkpoint can be read"):
            directory.latest()
    assert not trace.exists()


def test_an_unknown_format_version_is_a_clear_error(tmp_path, monkeypatch):
    """The error names the version and says what to do; the same holds for run.json."""
    monkeypatch.setattr(files, "VERSION", 99)
    with RunDirectory.open(tmp_path) as directory:
        directory.write(1, 1, Snapshot.of(states_at(1)))
        manifest = (tmp_path / "run.json").read_bytes()
        monkeypatch.undo()
        known = rf"version 99.*reads version {files.VERSION} only"
        with pytest.raises(CheckpointError, match=known):
            directory.latest()
        directory.write_manifest({})
        with pytest.raises(CheckpointError, match=r"version 99.*that wrote it"):
            directory.latest()
        (tmp_path / "run.json").write_bytes(manifest)
        with pytest.raises(CheckpointError, match=r"run\.json.*version 99"):
            directory.read_manifest()


def test_the_first_line_of_a_checkpoint_is_for_people(run_at):
    """`head -1` tells format, version, epoch, iteration and checksum."""
    line = (run_at() / "checkpoint-000000003.pt").read_bytes().partition(b"\n")[0]
    header = json.loads(line)
    assert (header["version"], header["epoch"], header["iteration"]) == (files.VERSION, 3, 3)


def test_json_is_strict_and_readable(tmp_path):
    """NaN becomes null and infinities become texts, in the manifest and in the metrics."""
    with RunDirectory.open(tmp_path) as directory:
        directory.write_manifest({"status": "running", "name": "θ", "worst": math.inf})
        directory.append_metrics({"epoch": 1, "validation_loss": math.nan, "x": -math.inf})
    text = (tmp_path / "run.json").read_text("utf-8")
    assert '"name": "θ"' in text
    assert text.count("\n") > 4

    def refuse(name):
        raise AssertionError(name)

    assert json.loads(text, parse_constant=refuse)["worst"] == "Infinity"
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"epoch": 1, "validation_loss": None, "x": "-Infinity"}


def test_the_manifest_remembers_the_run_and_when_it_began(tmp_path):
    """Identity and creation stay when the manifest is written again, also by another process."""
    with RunDirectory.open(tmp_path) as directory:
        directory.write_manifest({"status": "running"})
        first = directory.read_manifest()
    with RunDirectory.open(tmp_path) as directory:
        directory.update_manifest(status="complete")
        second = directory.read_manifest()
    assert second["status"] == "complete"
    assert (second["run"], second["created"]) == (first["run"], first["created"])


def test_metrics_can_be_set_as_a_whole(tmp_path):
    """After a resume the file is exactly the given history."""
    with RunDirectory.open(tmp_path) as directory:
        for epoch in (1, 2, 3):
            directory.append_metrics({"epoch": epoch})
        directory.set_metrics([{"epoch": 1}])
        directory.append_metrics({"epoch": 2})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


def test_setting_aside_loses_nothing_and_starts_anew(run_at):
    """All files of the old run are in a folder; twice gives two folders."""
    path = run_at()
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.name != ".lock"}
    with RunDirectory.open(path) as directory:
        old = directory.run
        folder = directory.set_aside()
        assert directory.latest() is None
        assert directory.read_manifest() is None
        assert directory.run != old
        directory.write(1, 1, Snapshot.of(states_at(1)))
        assert directory.set_aside().name == "replaced-2"
        assert directory.set_aside() is None
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_checkpoints_without_manifest_are_an_error(run_at):
    """Nobody can tell to which run they belong; the error says what to do."""
    path = run_at()
    (path / "run.json").unlink()
    with RunDirectory.open(path) as directory:
        with pytest.raises(CheckpointError, match=r'run\.json is missing.*resume="never"'):
            directory.latest()
        with pytest.raises(CheckpointError, match="is missing"):
            directory.read_manifest()


def test_files_are_not_larger_than_four_times_the_weights(tmp_path):
    """A checkpoint of a network with Adam's states, and the best weights, stay within the limit."""
    from sbi.neural_nets import posterior_nn

    from sbi_ignite.random_state import random_states

    net = posterior_nn("maf")(torch.randn(50, 5), torch.randn(50, 10))
    optimizer = torch.optim.Adam(net.parameters())
    net.loss(torch.randn(20, 5), torch.randn(20, 10)).mean().backward()
    optimizer.step()
    weights = net.state_dict()
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    states = {
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "best_weights": {"weights": weights, "epoch": 1},
        "random": random_states(),
        "history": [0.1] * 500,
    }
    with RunDirectory.open(tmp_path) as directory:
        directory.write(1, 1, Snapshot.of(states))
    assert (tmp_path / "checkpoint-000000001.pt").stat().st_size < 4 * size
    assert (tmp_path / "best.pt").stat().st_size < 1.1 * size


def test_a_summary_or_manifest_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    """Hours of training do not end in an error because the last file found no room."""

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RunDirectory.open(tmp_path) as directory:
        directory.write_manifest({})
        monkeypatch.setattr(os, "fsync", full)
        with pytest.warns(SbiIgniteWarning, match="No space left"):
            assert not directory.write_summary({"method": "NPE_C"})
        # One warning says it all, and run.json is as it was.
        directory.write_manifest({"status": "complete"})
        assert "status" not in directory.read_manifest()
        monkeypatch.undo()
        assert directory.write_summary({"method": "NPE_C"})
        assert directory.read_summary()["method"] == "NPE_C"


def test_a_manifest_that_found_no_room_is_written_before_anything_else(tmp_path, monkeypatch):
    """Whatever is written first when there is room again, nothing of run.json is lost."""

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    firsts = {
        "metrics": lambda directory: directory.append_metrics({"epoch": 1}),
        "history": lambda directory: directory.set_metrics([{"epoch": 1}]),
        "summary": lambda directory: directory.write_summary({"method": "NPE_C"}),
        "checkpoint": lambda directory: directory.write(1, 1, Snapshot.of(states_at(1))),
        "error": lambda directory: directory.update_manifest(status="failed"),
    }
    for name, write in firsts.items():
        path = tmp_path / name
        with RunDirectory.open(path) as directory:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                with pytest.warns(SbiIgniteWarning, match="No space"):
                    directory.write_manifest({"method": "NPE_C"})
                with pytest.raises(OSError, match="No space"):
                    directory.append_metrics({"epoch": 1})
            assert [file.name for file in path.iterdir() if file.suffix != ".lock"] == [".lock"]
            write(directory)
            assert directory.read_manifest()["method"] == "NPE_C"
