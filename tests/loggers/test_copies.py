"""A copied run directory is a run of its own in every backend; a moved one goes on as it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_ignite import NPE, CheckpointConfig, LoggingConfig, TrainConfig, load_run
from tests.loggers import read
from tests.loggers.small import AfterEpoch, trained

FILES: Any = ("jsonl", "tensorboard")


def train(directory: Path, logging: Any, epochs: int) -> None:
    """Train, or train on, and see that logging was in no trouble."""
    outcome = trained(logging, epochs, checkpoint=directory)
    assert outcome.warnings == []


def steps(folder: Path, backend: str) -> list[int]:
    """Return the epochs in a folder, in their order."""
    rows = read.jsonl(folder / "metrics.jsonl") if backend == "jsonl" else read.tensorboard(folder)
    return [step for step, _ in rows]


def upto(*numbers: int) -> list[list[int]]:
    """Return the epochs of runs that have so many."""
    return sorted(list(range(1, number + 1)) for number in numbers)


def by_run(folder: Path) -> dict[str, list[list[int]]]:
    """Return the epochs of every run of wandb (offline) and of MLflow (sqlite)."""
    ids = {path.name.removesuffix(".wandb")[4:] for path in folder.glob("wandb/*/run-*.wandb")}
    uri = f"sqlite:///{folder}/m.db"
    mlflow = [read.mlflow(uri, run) for (run,) in read.sqlite(uri, "select run_uuid from runs")]
    wandb = [read.wandb(folder, run) for run in ids]
    return {
        "wandb": sorted([step for step, _ in rows] for rows in wandb),
        "mlflow": sorted([step for step, _ in rows] for rows in mlflow),
    }


def trackers(folder: Path) -> list[LoggingConfig]:
    return [
        LoggingConfig("wandb", mode="offline"),
        LoggingConfig("mlflow", tracking_uri=f"sqlite:///{folder}/m.db"),
    ]


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("original", ["original", "deep/below/original"])
def test_a_copy_logs_to_itself_and_leaves_the_original_alone(original: str, tmp_path: Path) -> None:
    """Both go on, one by a relative path; each has its own epochs in its own files."""
    train(Path(original), FILES, 3)
    shutil.copytree(original, "branch")
    train(Path(original).absolute(), FILES, 9)
    train(Path("branch"), FILES, 5)
    train(Path(original), FILES, 10)
    for backend in FILES:
        assert steps(tmp_path / original / "logs", backend) == list(range(1, 11))
        assert steps(tmp_path / "branch" / "logs", backend) == list(range(1, 6))
    assert load_run("branch").manifest["copied_from"] == str(Path(original).resolve())
    assert load_run(original).manifest["copied_from"] is None


@pytest.mark.parametrize("backend", FILES)
def test_a_copy_with_a_log_dir_elsewhere_has_a_curve_of_its_own(
    backend: Any, tmp_path: Path
) -> None:
    """The whole of it, from the first epoch on; the original's goes on as it was."""
    config = LoggingConfig(backend, log_dir="logs")
    train(Path("original"), config, 3)
    shutil.copytree("original", "branch")
    for directory, epochs in ("branch", 5), ("original", 9), ("branch", 6):
        train(Path(directory), config, epochs)
    (own,) = [folder for folder in (tmp_path / "logs").iterdir() if folder.is_dir()]
    assert steps(tmp_path / "logs", backend) == list(range(1, 10))
    assert steps(own, backend) == list(range(1, 7))


@pytest.mark.parametrize("backend", FILES)
@pytest.mark.parametrize("log_dir", [None, "logs"])
def test_a_moved_run_goes_on_in_its_log(backend: Any, log_dir: Any, tmp_path: Path) -> None:
    """Inside it the log has moved along; elsewhere it stays where it was."""
    config = LoggingConfig(backend, log_dir=log_dir)
    train(Path("before"), config, 3)
    Path("now").mkdir()
    shutil.move("before", "now/here")
    train(Path("now/here"), config, 5)
    place = tmp_path / (log_dir or "now/here/logs")
    assert steps(place, backend) == [1, 2, 3, 4, 5]
    assert not Path("before").exists()
    assert not [path for path in place.iterdir() if path.is_dir()]
    run = load_run("now/here")
    assert run.summary is not None
    assert run.summary.run_directory == "now/here"


@pytest.mark.parametrize("backend", FILES)
def test_a_whole_project_that_is_moved_goes_on(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another node sees the disk under another path: the log beside the run is found."""
    Path("project").mkdir()
    monkeypatch.chdir("project")
    config = LoggingConfig(backend, log_dir="logs")
    for epochs in (2, 3):  # the second takes a folder of its own
        train(Path(f"run-{epochs}"), config, epochs)
    monkeypatch.chdir(tmp_path)
    shutil.move("project", "elsewhere")
    monkeypatch.chdir("elsewhere")
    train(Path("run-3"), config, 6)
    train(Path("run-2"), config, 4)
    (own,) = [folder for folder in Path("logs").iterdir() if folder.is_dir()]
    assert steps(Path("logs"), backend) == [1, 2, 3, 4]
    assert steps(own, backend) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("first", ["moved", "branch"])
@pytest.mark.parametrize("backend", FILES)
def test_a_copy_whose_original_was_moved_has_a_curve_of_its_own(
    backend: Any, first: str, tmp_path: Path
) -> None:
    """Whichever of the two goes on first keeps the one that they shared."""
    config = LoggingConfig(backend, log_dir="logs")
    train(Path("original"), config, 3)
    shutil.copytree("original", "branch")
    shutil.move("original", "moved")
    second = "branch" if first == "moved" else "moved"
    for directory, epochs in (first, 5), (second, 8), (first, 9), (second, 10):
        train(Path(directory), config, epochs)
    (own,) = [folder for folder in (tmp_path / "logs").iterdir() if folder.is_dir()]
    assert steps(tmp_path / "logs", backend) == list(range(1, 10))
    assert steps(own, backend) == list(range(1, 11))
    assert load_run(second).manifest["copied_from"] == str(Path(first).resolve())
    assert load_run(first).manifest["copied_from"] is None


@pytest.mark.parametrize("backend", FILES)
def test_a_link_to_a_run_directory_is_no_copy(backend: Any, tmp_path: Path) -> None:
    """The same directory under two names is one run."""
    config = LoggingConfig(backend, log_dir="logs")
    train(Path("run"), config, 3)
    Path("link").symlink_to("run")
    train(Path("link"), config, 5)
    train(Path("run"), config, 7)
    assert steps(tmp_path / "logs", backend) == list(range(1, 8))
    assert load_run("run").manifest["copied_from"] is None


@pytest.mark.parametrize("backend", FILES)
def test_a_copy_that_crashed_in_its_first_epoch_stays_a_run_of_its_own(
    backend: Any, tmp_path: Path
) -> None:
    """It is not taken for the original because it knows by then where it is."""
    config = LoggingConfig(backend, log_dir="logs")
    train(Path("original"), config, 3)
    shutil.copytree("original", "branch")

    def crash() -> None:
        raise ZeroDivisionError("a crash")

    checkpoint = CheckpointConfig("branch", every_epochs=10)
    with pytest.raises(ZeroDivisionError):
        trained(config, 6, AfterEpoch(4, crash), checkpoint=checkpoint)
    train(Path("branch"), config, 5)
    held = [steps(folder, backend) for folder in {Path("logs"), *Path("logs").glob("*-*")}]
    assert sorted(held) == upto(3, 5)


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_a_copy_is_a_run_of_its_own_in_wandb_and_mlflow(tmp_path: Path) -> None:
    """With all its epochs, once; the original goes on with its own, the copy of the copy too."""
    train(Path("original"), trackers(tmp_path), 2)
    shutil.copytree("original", "branch")
    for directory, epochs in ("branch", 4), ("original", 6), ("branch", 5):
        train(Path(directory), trackers(tmp_path), epochs)
    assert by_run(tmp_path) == {"wandb": upto(5, 6), "mlflow": upto(5, 6)}
    shutil.copytree("branch", "twig")
    train(Path("twig"), trackers(tmp_path), 7)
    assert by_run(tmp_path) == {"wandb": upto(5, 6, 7), "mlflow": upto(5, 6, 7)}


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_a_moved_run_goes_on_in_wandb_and_mlflow(tmp_path: Path) -> None:
    """There is one run, with every epoch once."""
    train(Path("before"), trackers(tmp_path), 2)
    shutil.move("before", "after")
    train(Path("after"), trackers(tmp_path), 4)
    assert by_run(tmp_path) == {"wandb": upto(4), "mlflow": upto(4)}


def _two_rounds(directory: Path, logging: Any, epochs: int) -> None:
    torch.manual_seed(3)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    inference: Any = NPE(prior, show_progress_bars=False)
    proposal: Any = prior
    for budget in (2, epochs):
        theta = proposal.sample((60,))
        inference.append_simulations(theta, theta + 0.2 * torch.randn_like(theta), proposal)
        inference.train(
            TrainConfig(max_epochs=budget, batch_size=30), checkpoint=directory, logging=logging
        )
        proposal = inference.build_posterior().set_default_x(torch.zeros(1, 2))


def test_a_copy_of_several_rounds_logs_to_itself(tmp_path: Path) -> None:
    """Later rounds have directories of their own, and go on in the log of the first."""
    _two_rounds(Path("original"), FILES, 2)
    shutil.copytree("original", "branch")
    _two_rounds(Path("branch"), FILES, 4)
    _two_rounds(Path("original"), FILES, 5)
    shutil.move("original", "moved")
    _two_rounds(Path("moved"), FILES, 6)
    for backend in FILES:
        assert steps(tmp_path / "branch" / "logs", backend) == list(range(1, 7))
        assert steps(tmp_path / "moved" / "logs", backend) == list(range(1, 9))
    assert not Path("original").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_a_copy_of_several_rounds_is_one_run_of_its_own(tmp_path: Path) -> None:
    """In wandb and MLflow both rounds of the copy are in one run."""
    _two_rounds(Path("original"), trackers(tmp_path), 1)
    shutil.copytree("original", "branch")
    _two_rounds(Path("branch"), trackers(tmp_path), 3)
    assert by_run(tmp_path) == {"wandb": upto(3, 5), "mlflow": upto(3, 5)}
