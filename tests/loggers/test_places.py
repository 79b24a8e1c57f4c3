"""Fresh runs never share a file or a curve; resumed ones and later rounds go on in their own."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_ignite import NPE, CheckpointConfig, LoggingConfig, TrainConfig
from sbi_ignite.loggers import make_loggers
from tests import forking
from tests.loggers import read
from tests.loggers.small import AfterEpoch, Play, trained

FILES: Any = ("jsonl", "tensorboard")
FIRST = {"jsonl": "metrics.jsonl", "tensorboard": "*tfevents*"}


def folders(place: Path, backend: str) -> list[Path]:
    """Return the folders with files of a backend, the first run's first."""
    found = {path.parent for path in place.rglob(FIRST[backend])}
    # A run directory has a metrics.jsonl of its own, beside run.json.
    return sorted(folder for folder in found if not (folder / "run.json").exists())


def steps(folder: Path, backend: str) -> list[int]:
    """Return the epochs that a folder holds, in their order, repeated ones included."""
    rows = read.jsonl(folder / "metrics.jsonl") if backend == "jsonl" else read.tensorboard(folder)
    return [step for step, _ in rows]


def _stop() -> None:
    raise ZeroDivisionError("a crash")


@pytest.mark.parametrize("run_name", [None, "mine"])
@pytest.mark.parametrize("backend", FILES)
def test_two_trainings_with_one_log_dir_are_two_runs(
    backend: Any, run_name: str | None, tmp_path: Path
) -> None:
    """The first goes where it was asked to, the second and third below, and each is whole."""
    for epochs in (3, 2, 4):
        outcome = trained(LoggingConfig(backend, log_dir=tmp_path, run_name=run_name), epochs)
        assert outcome.warnings == []
    found = folders(tmp_path, backend)
    named = backend == "tensorboard" and run_name is not None
    assert found[0] == (tmp_path / "mine" if named else tmp_path)
    assert sorted(steps(folder, backend) for folder in found) == [
        [1, 2],
        [1, 2, 3],
        [1, 2, 3, 4],
    ]
    if run_name is not None:
        assert all(folder.name.startswith("mine") for folder in found[1:])


@pytest.mark.parametrize("backend", FILES)
def test_a_run_name_used_twice_without_a_log_dir_is_two_runs(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below `sbi-logs`, too."""
    monkeypatch.chdir(tmp_path)
    for epochs in (3, 2):
        trained(LoggingConfig(backend, run_name="mine"), epochs)
    assert [folder.name for folder in folders(tmp_path / "sbi-logs", backend)] == ["mine", "mine-2"]
    assert [len(steps(folder, backend)) for folder in folders(tmp_path, backend)] == [3, 2]


def test_event_files_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    """A folder in which another writer has a curve is taken."""
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("training_loss", 7.0, 5)
    trained(LoggingConfig("tensorboard", log_dir=tmp_path), 2)
    theirs, ours = folders(tmp_path, "tensorboard")
    assert (steps(theirs, "tensorboard"), steps(ours, "tensorboard")) == ([5], [1, 2])


_AT_ONCE = """
import os, sys
from sbi_ignite.loggers import make_loggers
from sbi_ignite import LoggingConfig
from tests.loggers.small import Play
import torch.utils.tensorboard.summary
configs = [LoggingConfig(b, log_dir=sys.argv[1]) for b in ("jsonl", "tensorboard")]
print("ready", flush=True)
while not os.path.exists("go"):
    pass
Play(make_loggers(configs)).epochs(int(sys.argv[2])).end()
"""


def test_processes_that_start_at_the_same_instant_are_runs_of_their_own(tmp_path: Path) -> None:
    """As the tasks of an array job do: each has its epochs, and nobody else's."""
    numbers = range(2, 8)
    tasks = [
        forking.start("-W", "ignore", "-c", _AT_ONCE, str(tmp_path), str(number))
        for number in numbers
    ]
    try:
        for task in tasks:
            assert task.stdout is not None
            assert task.stdout.readline() == "ready\n"
        (tmp_path / "go").touch()
        assert [task.wait(120) for task in tasks] == [0] * len(tasks)
    finally:
        for task in tasks:
            task.kill()
            task.communicate()
    for backend in FILES:
        held = sorted(steps(folder, backend) for folder in folders(tmp_path, backend))
        assert held == [list(range(1, number + 1)) for number in numbers], backend


@pytest.mark.parametrize("where", ["log_dir", "run directory"])
@pytest.mark.parametrize("backend", FILES)
def test_a_resumed_run_goes_on_in_its_own_folder_among_others(
    backend: Any, where: str, tmp_path: Path
) -> None:
    """Two crash after 5 epochs, saved at 3, and are resumed in the other order."""
    place = tmp_path / "logs" if where == "log_dir" else tmp_path
    log_dir = place if where == "log_dir" else None
    config = LoggingConfig(backend, log_dir=log_dir)

    def run(name: str, epochs: int, crash: bool) -> None:
        checkpoint = CheckpointConfig(tmp_path / name, every_epochs=3)
        do = AfterEpoch(5, _stop) if crash else None
        trained(config, epochs, do, checkpoint=checkpoint)

    for name in ("a", "b"):
        with pytest.raises(ZeroDivisionError):
            run(name, 9, crash=True)
    run("b", 7, crash=False)
    run("a", 8, crash=False)
    held = sorted(steps(folder, backend) for folder in folders(place, backend))
    assert held == [list(range(1, 8)), list(range(1, 9))]


@pytest.mark.parametrize("backend", FILES)
def test_a_fresh_start_in_a_used_run_directory_has_its_own_curve(
    backend: Any, tmp_path: Path
) -> None:
    """With `resume="never"` the old log goes aside with the run that wrote it."""
    trained(backend, 5, checkpoint=CheckpointConfig(tmp_path))
    trained(backend, 2, checkpoint=CheckpointConfig(tmp_path, resume="never"))
    assert steps(tmp_path / "logs", backend) == [1, 2]
    assert steps(tmp_path / "replaced-1" / "logs", backend) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("backend", FILES)
def test_a_log_that_was_deleted_is_written_anew(backend: Any, tmp_path: Path) -> None:
    """The history in the checkpoint has every epoch."""
    config = LoggingConfig(backend, log_dir=tmp_path / "logs")
    trained(config, 3, checkpoint=tmp_path / "run")
    shutil.rmtree(tmp_path / "logs")
    trained(config, 5, checkpoint=tmp_path / "run")
    assert steps(tmp_path / "logs", backend) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("backend", FILES)
def test_epochs_before_a_backend_was_asked_for_are_in_it(backend: Any, tmp_path: Path) -> None:
    """Logged from the second start on, and again after a start without."""
    for logging, epochs in ((), 2), (backend, 4), ((), 6), (backend, 8):
        trained(logging, epochs, checkpoint=tmp_path)
    assert steps(tmp_path / "logs", backend) == list(range(1, 9))


def _two_rounds(folder: Path, logging: Any) -> None:
    torch.manual_seed(3)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    inference: Any = NPE(prior, show_progress_bars=False)
    proposal: Any = prior
    for _ in range(2):
        theta = proposal.sample((60,))
        inference.append_simulations(theta, theta + 0.2 * torch.randn_like(theta), proposal)
        inference.train(
            TrainConfig(max_epochs=3, batch_size=30), checkpoint=folder / "run", logging=logging
        )
        proposal = inference.build_posterior().set_default_x(torch.zeros(1, 2))


@pytest.mark.parametrize("log_dir", ["log", None])
def test_a_complete_script_started_again_changes_no_log(log_dir: Any, tmp_path: Path) -> None:
    """Reading the first round voids nothing of the second, inside epochs neither."""
    place = None if log_dir is None else tmp_path / log_dir
    logging = [LoggingConfig(b, log_dir=place, every_n_iterations=1) for b in FILES]

    def held() -> dict[str, Any]:
        folder = place or tmp_path / "run" / "logs"
        assert all(folders(tmp_path, backend)[0] == folder for backend in FILES)
        return {
            "jsonl": (folder / "metrics.jsonl").read_text(),
            "steps": [steps(folder, backend) for backend in FILES],
            "iterations": [i for i, *_ in read.tensorboard_iterations(folder)],
            "files": Counter(path.name for path in folder.rglob("*")),
        }

    _two_rounds(tmp_path, logging)
    before = held()
    assert before["steps"] == [[1, 2, 3, 4, 5, 6]] * 2
    assert before["iterations"] == list(range(1, len(before["iterations"]) + 1))
    _two_rounds(tmp_path, logging)
    assert held() == before


def test_half_a_line_of_a_killed_writer_is_no_step(tmp_path: Path) -> None:
    """A resumed file holds whole lines only."""
    config = LoggingConfig("jsonl", log_dir=tmp_path)
    first = Play(make_loggers([config])).epochs(3)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    identity = first.loggers.state_dict()
    Play(make_loggers([config]), epochs_done=3, identity=identity).epochs(1).end()
    assert [json.loads(line) for line in path.read_text().splitlines()]
    assert steps(tmp_path, "jsonl") == [1, 2, 3, 4]
