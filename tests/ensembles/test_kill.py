"""Ensembles survive the death of their processes, and directories belong to one of them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sbi_ignite import (
    Callback,
    CheckpointConfig,
    CheckpointError,
    CheckpointMismatchError,
    SbiIgniteWarning,
    load_run,
)
from tests import forking
from tests.ensembles.programs import EPOCHS
from tests.ensembles.small import CONFIG, ensemble, maker
from tests.small import same

pytestmark = pytest.mark.timeout(900)


def start(
    directory: Path, out: Path, n_jobs: int, seconds: float, stacked: bool = False
) -> forking.Program:
    """Start the program with so many seconds an epoch."""
    command = ("-W", "ignore", "-m", "tests.ensembles.programs")
    return forking.start(
        *command,
        *(str(directory), str(out), str(n_jobs)),
        quiet=True,
        SECONDS_AN_EPOCH=str(seconds),
        STACKED="yes" * stacked,
        JOBLIB_TEMP_FOLDER=str(out.parent / "shared"),
    )


def until(there: Callable[[], Any], seconds: float = 300) -> Any:
    """Wait until something is found, and return it."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found = there()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("nothing happened")


def notes(out: Path) -> list[Path]:
    """Return the epochs that members have noted, oldest first."""
    return sorted(out.with_suffix(".notes").glob("*-*"), key=lambda file: file.stat().st_mtime)


def calm(folder: Path) -> dict[str, Any]:
    """Return what an undisturbed ensemble gives."""
    assert start(folder / "calm", folder / "calm.pt", 1, 0.0).wait(600) == 0
    return torch.load(folder / "calm.pt", weights_only=True)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(map(same, one["weights"], other["weights"]))


def in_its_middle(resumed: list[int]) -> bool:
    """Return whether a member has gone on between its first and its last epoch."""
    return any(0 < epoch < EPOCHS for epoch in resumed)


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_killed_ensemble_continues_where_each_member_stood(tmp_path, n_jobs):
    out = tmp_path / "killed.pt"
    process = start(tmp_path / "killed", out, n_jobs, 0.3)
    until(lambda: len(notes(out)) > 15 or process.poll() is not None)  # one member is complete
    workers = {int(note.read_text()) for note in notes(out)} - {process.pid}
    process.kill()
    process.wait()
    try:  # workers notice that they are alone, save, and end
        until(lambda: not any(map(alive, workers)), 60)
    finally:
        for pid in filter(alive, workers):
            os.kill(pid, signal.SIGKILL)
    assert start(tmp_path / "killed", out, n_jobs, 0.0).wait(600) == 0
    found = torch.load(out, weights_only=True)
    assert equal(found, calm(tmp_path))
    assert in_its_middle(found["resumed"])
    assert not list((tmp_path / "shared").glob("sbi-ignite-ensemble-*"))


@pytest.mark.slow
def test_a_killed_worker_costs_no_member(tmp_path):
    out = tmp_path / "killed.pt"
    process = start(tmp_path / "killed", out, 2, 0.3)
    first = until(lambda: notes(out)[4:5])[0]
    worker = int(first.read_text())
    assert worker != process.pid
    os.kill(worker, signal.SIGKILL)
    assert process.wait(600) == 0
    found = torch.load(out, weights_only=True)
    assert equal(found, calm(tmp_path))
    assert in_its_middle(found["resumed"])


@pytest.mark.slow
def test_a_member_whose_worker_always_dies_is_reported(monkeypatch):
    from tests.ensembles.test_summary import seeds

    # A second attempt is like the first, and each starts two workers.
    monkeypatch.setattr("sbi_ignite.ensembles.workers._TRIES_ALONE", 1)
    with pytest.warns(SbiIgniteWarning, match=r"member 1 has failed.*Its worker died"):
        found = ensemble(members=3, n_jobs=2, callbacks=[Suicide(seeds(1))])
    assert [member.index for member in found.summary.failed] == [1]
    assert all(map(same, found.trainers, ensemble(members=3, only=[0, 2]).trainers))


class Suicide:
    """Kills its own process in some members."""

    def __init__(self, seeds: list[int]) -> None:
        self.seeds = seeds

    def on_epoch_end(self, state: Any) -> None:
        """Die."""
        if torch.initial_seed() in self.seeds:
            os.kill(os.getpid(), signal.SIGKILL)


# --- the directory


def test_complete_members_are_returned_at_once_and_members_can_be_added(tmp_path):
    directory = tmp_path / "ens"
    first = ensemble(checkpoint=directory)
    again = ensemble(checkpoint=directory, members=3)
    assert [s.resumed_from_epoch for s in again.summary.summaries] == [3, 3, 0]
    assert all(map(same, first.trainers, again.trainers))
    assert load_run(directory / "member-2").status == "complete"
    record = json.loads((directory / "ensemble.json").read_text())
    assert (record["members"], record["seed"], record["method"]) == (3, 5, "NPE_C")


def test_the_seed_of_a_continued_ensemble_is_that_of_the_directory(tmp_path):
    first = ensemble(checkpoint=tmp_path, seed=None)
    again = ensemble(checkpoint=tmp_path, seed=None)
    assert again.summary.seed == first.summary.seed
    assert all(map(same, first.trainers, again.trainers))


def test_members_trained_in_jobs_of_their_own_are_found_by_a_call_for_all(tmp_path):
    for member in (1, 0):
        ensemble(checkpoint=tmp_path, only=member)
    found = ensemble(checkpoint=tmp_path)
    assert [s.resumed_from_epoch for s in found.summary.summaries] == [3, 3]
    assert all(map(same, found.trainers, ensemble().trainers))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"seed": 6}, "its seed is 5, here 6"),
        ({"bootstrap": True}, "its bootstrap is False, here True"),
        ({"make": maker("NLE_A")}, "its method is 'NPE_C', here 'NLE_A'"),
    ],
)
def test_another_ensemble_in_the_directory_is_refused(tmp_path, asked, words):
    ensemble(checkpoint=tmp_path)
    with pytest.raises(CheckpointMismatchError, match=words):
        ensemble(checkpoint=tmp_path, **asked)
    ensemble(checkpoint=CheckpointConfig(tmp_path, resume="never"), **asked)


def test_two_ensembles_at_once_in_one_directory_are_refused(tmp_path):
    from sbi_ignite.runs.lock import Lock

    tmp_path.joinpath("ens").mkdir()
    lock = Lock(tmp_path / "ens" / ".lock")
    try:
        with pytest.raises(CheckpointError, match=f"is in use by process {os.getpid()}"):
            ensemble(checkpoint=tmp_path / "ens")
    finally:
        lock.release()
    assert len(ensemble(checkpoint=tmp_path / "ens")) == 2


class Second(Callback):
    """Starts an ensemble in the same directory by another process, at the end of some members.

    Args:
        directory: The directory, beside which is written what the process was told.
        seeds: The seeds of these members.
    """

    def __init__(self, directory: Path, seeds: list[int]) -> None:
        self.directory, self.seeds = directory, seeds

    def on_epoch_end(self, state: Any) -> None:
        """Start it."""
        if state.epoch < CONFIG.max_epochs or torch.initial_seed() not in self.seeds:
            return
        ran = f"ensemble(checkpoint='{self.directory}')"
        told = forking.run("-c", f"from tests.ensembles.small import ensemble; {ran}").stderr
        self.directory.with_suffix(".told").write_text(told)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_second_process_is_refused_as_long_as_a_member_trains(tmp_path, stacked):
    from tests.ensembles.test_summary import seeds

    directory = tmp_path / "ens"
    second = Second(directory, seeds(1))
    found = ensemble(checkpoint=directory, stacked=stacked, callbacks=[second])
    told = directory.with_suffix(".told").read_text()
    assert f"CheckpointError: {directory} is in use by process {os.getpid()}" in told
    assert all(map(same, found.trainers, ensemble(stacked=stacked).trainers))


def test_nothing_to_continue_is_an_error_if_it_must_be_continued(tmp_path):
    with pytest.raises(CheckpointError, match="there is no ensemble to continue"):
        ensemble(checkpoint=CheckpointConfig(tmp_path, resume="must"))
    ensemble(checkpoint=tmp_path, members=1)
    must = CheckpointConfig(tmp_path, resume="must")
    assert len(ensemble(checkpoint=must)) == 2


def test_a_directory_from_the_environment_has_room_for_several_ensembles(tmp_path, monkeypatch):
    monkeypatch.setenv("SBI_IGNITE_CHECKPOINT__DIRECTORY", str(tmp_path))
    ensemble(maker("NPE_C"))
    ensemble(maker("NLE_A"))
    assert {path.name for path in tmp_path.iterdir()} == {"ensemble", "ensemble-1"}
    assert load_run(tmp_path / "ensemble-1" / "member-1").manifest["method"] == "NLE_A"


def test_a_second_round_is_saved_below_each_member(tmp_path):
    def two_rounds():
        torch.manual_seed(0)
        found = ensemble(checkpoint=tmp_path)
        posterior = found.build_posterior().set_default_x(torch.zeros(1, 2))
        theta = posterior.sample((60,), show_progress_bars=False)
        x = theta + 0.3 * torch.randn_like(theta)
        found.append_simulations(theta, x, proposal=posterior)
        return found.train(CONFIG, checkpoint=tmp_path)

    first, again = two_rounds(), two_rounds()
    assert load_run(tmp_path / "member-1" / "round-1").status == "complete"
    assert [s.resumed_from_epoch for s in again.summary.summaries] == [3, 3]
    assert all(map(same, first.trainers, again.trainers))


def test_a_full_disk_costs_a_warning_and_no_member(tmp_path):
    """A file-size limit stands for the full disk: writing fails as it would there."""
    script = FULL.format(directory=str(tmp_path / "ens"))
    done = forking.run("-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 True"
    assert "nothing could be saved" in done.stderr


FULL = """
import resource, signal
from sbi_ignite import CheckpointConfig
from tests import forking
from tests.ensembles.small import ensemble
from tests.small import same
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
expected = ensemble()
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
found = ensemble(checkpoint="{directory}")
print(len(found), all(map(same, found.trainers, expected.trainers)))
"""
