"""Every member has curves of its own, and trackers show which belong together."""

from __future__ import annotations

import joblib
import pytest

from sbi_ignite import LoggingConfig
from sbi_ignite.loggers.wandb import logged_rows
from tests.ensembles.small import ensemble
from tests.loggers import read

N_JOBS = min(2, joblib.cpu_count())


def test_every_member_has_its_own_curves_and_one_group(tmp_path, monkeypatch):
    """Folders for tensorboard and lines of JSON, runs of one group for wandb; in workers."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_RUN_ID", "ofthejob")  # can hold one curve only
    logging = [
        LoggingConfig("tensorboard", log_dir=tmp_path / "board"),
        LoggingConfig("jsonl", log_dir=tmp_path / "lines"),
        LoggingConfig("wandb", mode="offline", run_name="exp"),
    ]
    found = ensemble(logging=logging, n_jobs=N_JOBS)
    for member, summary in enumerate(found.summary.summaries):
        for rows in (
            read.tensorboard(tmp_path / "board" / f"member-{member}"),
            read.jsonl(tmp_path / "lines" / f"member-{member}" / "metrics.jsonl"),
        ):
            assert [step for step, _ in rows] == [1, 2, 3]
            losses = [values["validation_loss"] for _, values in rows]
            assert losses == pytest.approx(summary.validation_loss, rel=1e-6)
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    for file in files:
        epochs = [row["epoch"] for row in logged_rows(file) if "training_loss" in row]
        assert epochs == [1, 2, 3]
        assert b"ofthejob" in file.read_bytes()  # the group
    names = {
        name for f in files for name in (b"exp-member-0", b"exp-member-1") if name in f.read_bytes()
    }
    assert len(names) == 2


def test_with_run_directories_logs_are_in_those_of_the_members(tmp_path):
    ensemble(logging="jsonl", checkpoint=tmp_path)
    for member in (0, 1):
        assert len(read.jsonl(tmp_path / f"member-{member}" / "logs" / "metrics.jsonl")) == 3


@pytest.mark.slow
def test_mlflow_has_a_parent_with_a_child_per_member(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    asked = {
        "logging": LoggingConfig("mlflow", tracking_uri=uri, experiment_name="ens"),
        "checkpoint": tmp_path / "runs",
        "n_jobs": N_JOBS,
    }
    for members in (2, 3):
        found = ensemble(members=members, **asked)
        runs = dict(read.sqlite(uri, "select run_uuid, name from runs"))
        query = "select run_uuid, value from tags where key = 'mlflow.parentRunId'"
        children = dict(read.sqlite(uri, query))
        assert len(children) == members
        (parent,) = set(children.values())  # a continued ensemble keeps it
        assert set(runs) == {parent, *children}
        names = {runs[child].rpartition("-member-")[2] for child in children}
        assert names == {str(member) for member in range(members)}
        states = {state for (state,) in read.sqlite(uri, "select status from runs")}
        assert states == {"FINISHED"}
    query = "select value from tags where run_uuid = ? and key = 'stop_message'"
    assert read.sqlite(uri, query, parent) == [("best of 3 members",)]
    best = min(found.summary.losses)
    query = "select value from metrics where run_uuid = ? and key = 'best_epoch'"
    assert len(read.sqlite(uri, query, parent)) >= 1
    assert best == pytest.approx(min(found.summary.losses))


def test_members_print_lines_only_if_the_call_asks_for_it(capfd, monkeypatch):
    monkeypatch.setenv("SBI_IGNITE_LOGGING__BACKEND", "stdout")
    ensemble(members=1)
    assert capfd.readouterr().out == ""
    ensemble(members=1, logging="stdout")
    assert "validation loss" in capfd.readouterr().out


def test_sbis_own_tracker_has_a_folder_per_member(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from tests.ensembles.small import maker

    ensemble(maker(tracker=None))
    folders = {file.parent.name for file in tmp_path.rglob("events.out.*") if "member" in str(file)}
    assert folders == {"member-0", "member-1"}
