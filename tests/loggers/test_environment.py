"""What a backend's own environment says counts before our defaults and after the call."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sbi_ignite import LoggingConfig
from sbi_ignite.loggers import make_loggers
from sbi_ignite.loggers.mlflow import is_local, same_store
from tests.loggers import read
from tests.loggers.small import ROOT, Play, run_script, trained, wait_until

pytestmark = pytest.mark.usefixtures("patient")

# --- wandb

_WANDB = {
    "WANDB_MODE": "offline",
    "WANDB_NAME": "named outside",
    "WANDB_TAGS": "a,b",
    "WANDB_RUN_ID": "given1",
    "WANDB_PROJECT": "their-project",
    "WANDB_ENTITY": "their-team",
    "WANDB_RUN_GROUP": "their-group",
    "WANDB_JOB_TYPE": "their-job",
    "WANDB_NOTES": "their notes",
}


def _run_of(folder: Path) -> Any:
    """Return the one run of wandb in a folder."""
    (run,) = {run.run_id: run for run in read.wandb_records(folder, "run")}.values()
    return run


def test_variables_of_wandb_count_before_our_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one that names, marks or places a run, without a word in the call."""
    for name, value in {**_WANDB, "WANDB_DIR": str(tmp_path / "there")}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "there").mkdir()
    assert trained("wandb").warnings == []
    run = _run_of(tmp_path / "there")
    assert (run.display_name, list(run.tags), run.run_id) == ("named outside", ["a", "b"], "given1")
    assert (run.project, run.entity, run.run_group) == (
        "their-project",
        "their-team",
        "their-group",
    )
    assert (run.job_type, run.notes) == ("their-job", "their notes")
    assert [step for step, _ in read.wandb(tmp_path / "there", "given1")] == [1, 2, 3, 4]


@pytest.mark.parametrize("through", ["call", "SBI_IGNITE_ variables"])
def test_the_call_counts_before_variables_of_wandb(
    through: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own variables stand for the call."""
    given = through.split()[0]  # a process takes an id once
    for name, value in {**_WANDB, "WANDB_MODE": "online", "WANDB_RUN_ID": given}.items():
        monkeypatch.setenv(name, value)
    fields = {"mode": "offline", "project": "mine", "entity": "me", "run_name": "n", "tags": ["t"]}
    if through == "call":
        outcome = trained(LoggingConfig("wandb", **fields))  # type: ignore[arg-type] # as named
    else:
        for name, value in {"backend": "wandb", **fields}.items():
            text = value if isinstance(value, str) else json.dumps(value)
            monkeypatch.setenv(f"SBI_IGNITE_LOGGING__{name.upper()}", text)
        outcome = trained(None)
    assert outcome.warnings == []
    run = _run_of(tmp_path)
    assert (run.project, run.entity, run.display_name) == ("mine", "me", "n")
    assert list(run.tags) == ["t"]
    assert (run.run_id, run.run_group) == (given, "their-group")


def test_a_disabled_wandb_is_left_in_peace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WANDB_MODE=disabled: no file, no warning."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert trained("wandb").warnings == []
    assert not list(tmp_path.glob("wandb/*run-2*"))


def _agent_says(monkeypatch: pytest.MonkeyPatch, run_id: str) -> None:
    """Set what the agent of a sweep sets."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", run_id)


@pytest.mark.slow
def test_a_training_resumed_under_an_agents_id_has_every_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the same id the run goes on; under another, this one gets the whole curve."""
    _agent_says(monkeypatch, "trial1")
    first = Play(make_loggers(["wandb"])).epochs(4)
    first.loggers.fail(KeyboardInterrupt())
    identity = first.loggers.state_dict()
    Play(make_loggers(["wandb"]), epochs_done=3, identity=identity).epochs(3).end()
    assert [step for step, _ in read.wandb(tmp_path, "trial1")] == [1, 2, 3, 4, 5, 6]

    _agent_says(monkeypatch, "trial2")
    Play(make_loggers(["wandb"]), epochs_done=3, identity=identity).epochs(1).end()
    assert [step for step, _ in read.wandb(tmp_path, "trial2")] == [1, 2, 3, 4]
    assert {run.run_id for run in read.wandb_records(tmp_path, "run")} == {"trial1", "trial2"}
    assert {run.sweep_id for run in read.wandb_records(tmp_path, "run")} == {"sweep1"}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["wandb", "mlflow"])
def test_a_later_round_stays_in_the_run_of_the_first(
    backend: str, store: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the environment has come to name another run, which could not have the first."""
    uri, (given, other) = store
    monkeypatch.setenv("WANDB_MODE", "offline")
    first = Play(make_loggers([backend])).epochs(2)
    first.end()
    identity = first.loggers.state_dict()
    _agent_says(monkeypatch, "trial5")
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    later = {"first_step": 2, "round_index": 1, "identity": identity}
    Play(make_loggers([backend]), **later).epochs(2).end()
    if backend == "wandb":
        (own,) = {run.run_id for run in read.wandb_records(tmp_path, "run")}
        steps = [step for step, _ in read.wandb(tmp_path, own)]
    else:
        (own,) = _runs(uri).keys() - {given, other}
        steps = _steps(uri, own)
    assert own != "trial5"
    assert steps == [1, 2, 3, 4]


@pytest.mark.slow
def test_only_one_fresh_training_takes_an_agents_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of a process has a run of its own in the first one's group, also resumed."""
    _agent_says(monkeypatch, "trial3")
    Play(make_loggers(["wandb"])).epochs(2).end()
    second = Play(make_loggers(["wandb"])).epochs(2)
    second.loggers.fail(KeyboardInterrupt())
    identity = second.loggers.state_dict()
    own = identity["wandb"]["id"]
    assert own != "trial3"
    Play(make_loggers(["wandb"]), epochs_done=2, identity=identity).epochs(1).end()
    assert [step for step, _ in read.wandb(tmp_path, "trial3")] == [1, 2]
    assert [step for step, _ in read.wandb(tmp_path, own)] == [1, 2, 3]
    groups = [r.run_group for r in read.wandb_records(tmp_path, "run") if r.run_id == own]
    assert "trial3" in groups


_FRESH = """
from sbi_ignite.loggers import make_loggers
import sbi_ignite.loggers.group
from tests.loggers.small import Play
sbi_ignite.loggers.group.MAX_WAIT_SECONDS = 90
Play(make_loggers(["wandb"])).epochs(2).end()
"""


@pytest.mark.slow
def test_processes_that_share_a_given_id_share_no_curve(tmp_path: Path) -> None:
    """Two at once, as workers do, then a third, as a job that starts again without checkpoints."""
    variables = {"WANDB_MODE": "offline", "WANDB_RUN_ID": "shared1", "WANDB_RESUME": "allow"}
    environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", _FRESH]
    processes = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(200) for process in processes] == [0, 0]
    assert run_script(_FRESH, **variables).returncode == 0
    runs = {run.run_id: run.run_group for run in read.wandb_records(tmp_path, "run")}
    assert len(runs) == 3
    assert [group for run_id, group in runs.items() if run_id != "shared1"] == ["shared1"] * 2
    for run_id in runs:
        assert [step for step, _ in read.wandb(tmp_path, run_id)] == [1, 2]


_BESIDE_THEIRS = """
import wandb
theirs = wandb.init(project="theirs")
import sbi_ignite.loggers.group
from tests.loggers.small import trained
sbi_ignite.loggers.group.MAX_WAIT_SECONDS = 90
assert trained("wandb").warnings == []
assert wandb.run is theirs
theirs.log({"accuracy": 1})
theirs.finish()
"""


@pytest.mark.slow
def test_a_run_beside_the_users_open_run_joins_its_group(tmp_path: Path) -> None:
    """In a sweep whose script opens the agent's run itself: theirs stays theirs alone."""
    done = run_script(
        _BESIDE_THEIRS, WANDB_MODE="offline", WANDB_RUN_ID="trial4", WANDB_SWEEP_ID="sweep1"
    )
    assert done.returncode == 0, done.stderr
    runs = {run.run_id: run for run in read.wandb_records(tmp_path, "run")}
    theirs, (ours,) = runs.pop("trial4"), runs.values()
    assert (ours.project, ours.run_group, ours.sweep_id) == (theirs.project, "trial4", "")
    assert read.wandb(tmp_path, "trial4") == []
    assert [step for step, _ in read.wandb(tmp_path, ours.run_id)] == [1, 2, 3, 4]


# --- mlflow

_MAKE_STORE = """
from mlflow import MlflowClient
client = MlflowClient("sqlite:///m.db")
client.create_experiment("theirs")
for _ in range(2):
    print(client.create_run("0").info.run_id)
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Make a store with two empty runs once; copies of it are quicker."""
    folder = tmp_path_factory.mktemp("template")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _MAKE_STORE],
        **{"cwd": folder, "capture_output": True, "text": True, "check": True},
    )
    return folder / "m.db", done.stdout.split()


@pytest.fixture
def store(
    template: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, list[str]]:
    """Give the address of a store and the ids of two empty runs, as the environment's store."""
    shutil.copy(template[0], tmp_path / "m.db")
    uri = f"sqlite:///{tmp_path}/m.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri, template[1]


def _runs(uri: str) -> dict[str, tuple[str, str]]:
    """Return status and name of every run of a store."""
    found = read.sqlite(uri, "select run_uuid, status, name from runs")
    return {run_id: (status, name) for run_id, status, name in found}


def _tags(uri: str, run_id: str) -> dict[str, str]:
    return dict(read.sqlite(uri, "select key, value from tags where run_uuid = ?", run_id))


def _steps(uri: str, run_id: str) -> list[int]:
    return [step for step, _ in read.mlflow(uri, run_id)]


@pytest.mark.slow
def test_the_run_that_mlflows_environment_names_is_taken_and_ended(
    store: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first fresh training, resumed too; a second one becomes its child."""
    uri, (given, other) = store
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    name = _runs(uri)[given][1]
    first = Play(make_loggers(["mlflow"])).epochs(3)
    first.loggers.fail(KeyboardInterrupt())
    identity = first.loggers.state_dict()
    assert _runs(uri) == {given: ("KILLED", name), other: _runs(uri)[other]}

    monkeypatch.delenv("MLFLOW_RUN_ID")
    Play(make_loggers(["mlflow"]), epochs_done=2, identity=identity).epochs(3).end()
    assert _steps(uri, given) == [1, 2, 3, 4, 5]
    assert _runs(uri)[given] == ("FINISHED", name)
    assert len(_runs(uri)) == 2

    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    Play(make_loggers(["mlflow"])).epochs(2).end()
    (child,) = _runs(uri).keys() - {given, other}
    assert _tags(uri, child)["mlflow.parentRunId"] == given
    assert (_steps(uri, child), _steps(uri, given)) == ([1, 2], [1, 2, 3, 4, 5])

    monkeypatch.setenv("MLFLOW_RUN_ID", other)  # as `mlflow run` does when it is started again
    Play(make_loggers(["mlflow"]), epochs_done=2, identity=identity).epochs(1).end()
    assert _steps(uri, other) == [1, 2, 3]
    assert _runs(uri)[other][0] == "FINISHED"


@pytest.mark.slow
def test_variables_of_mlflow_count_before_our_defaults_and_after_the_call(
    store: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store, experiment, and tags in MLFLOW_RUN_CONTEXT; a run that is not there is no harm."""
    uri, known = store
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", '{"cluster": "c1", "who": "them"}')
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    trained(LoggingConfig("mlflow", run_name="mine", tags={"who": "me"}))
    (ours,) = _runs(uri).keys() - set(known)
    tags = _tags(uri, ours)
    assert (tags["cluster"], tags["who"]) == ("c1", "me")
    assert "mlflow.parentRunId" not in tags
    assert _runs(uri)[ours] == ("FINISHED", "mine")
    query = "select e.name from experiments e join runs using (experiment_id) where run_uuid = ?"
    assert read.sqlite(uri, query, ours) == [("theirs",)]

    monkeypatch.setenv("MLFLOW_RUN_ID", known[0])
    trained(LoggingConfig("mlflow", experiment_name="called"))
    (elsewhere,) = _runs(uri).keys() - {*known, ours}
    assert read.sqlite(uri, query, elsewhere) == [("called",)]
    assert _tags(uri, elsewhere)["mlflow.parentRunId"] == known[0]
    assert _runs(uri)[known[0]][0] == "RUNNING"


_PROJECT = """
name: trial
entry_points:
  main:
    parameters:
      epochs: {type: float, default: 3}
    command: "%s train.py {epochs}"
"""

_TRAIN = """
import sys
import sbi_ignite.loggers.group
from tests.loggers.small import trained
sbi_ignite.loggers.group.MAX_WAIT_SECONDS = 90
for epochs in (int(float(sys.argv[1])), 2):
    outcome = trained("mlflow", epochs=epochs)
    assert outcome.warnings == [], outcome.warnings
"""


@pytest.mark.slow
def test_a_training_under_mlflow_run_logs_to_the_projects_run(tmp_path: Path) -> None:
    """A real project: parameters of both in one run, which ends; a second training is its child."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "MLproject").write_text(_PROJECT % sys.executable)
    (project / "train.py").write_text(_TRAIN)
    uri = f"sqlite:///{tmp_path}/m.db"
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "run", str(project)]
    options = ["--env-manager", "local", "--experiment-name", "trials", "--run-name", "named"]
    variables = {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **variables, "GIT_PYTHON_REFRESH": "quiet"}
    done = subprocess.run(
        [*command, *options, "-P", "epochs=3"],
        **{"env": environment, "capture_output": True, "text": True, "timeout": 280},
    )
    assert done.returncode == 0, done.stderr
    wait_until(lambda: {status for status, _ in _runs(uri).values()} == {"FINISHED"})
    (given,) = [run_id for run_id, (_, name) in _runs(uri).items() if name == "named"]
    (child,) = _runs(uri).keys() - {given}
    assert (_steps(uri, given), _steps(uri, child)) == ([1, 2, 3], [1, 2])
    query = "select key, value from params where run_uuid = ?"
    params = dict(read.sqlite(uri, query, given))
    assert (params["epochs"], params["train.max_epochs"]) == ("3", "3")
    assert _tags(uri, child)["mlflow.parentRunId"] == given
    experiments = read.sqlite(uri, "select distinct experiment_id from runs")
    assert len(experiments) == 1


_NESTED = """
import mlflow
import sbi_ignite.loggers.group
from sbi_ignite import LoggingConfig
from tests.loggers.small import trained
sbi_ignite.loggers.group.MAX_WAIT_SECONDS = 90
mlflow.set_experiment("nested")
with mlflow.start_run(run_name="parent") as parent:
    assert trained("mlflow").warnings == []
    assert mlflow.active_run().info.run_id == parent.info.run_id
    assert mlflow.get_run(parent.info.run_id).info.status == "RUNNING"
"""


@pytest.mark.slow
def test_a_run_inside_the_users_active_run_is_its_child(server: str) -> None:
    """On a real server, in the parent's experiment; the parent is neither used nor ended."""
    done = run_script(_NESTED, MLFLOW_TRACKING_URI=server)
    assert done.returncode == 0, done.stderr
    runs = {run.info.run_name: run for run in read.mlflow_runs(server, "nested")}
    parent = runs.pop("parent")
    (child,) = runs.values()
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.data.metrics, parent.info.status) == ({}, "FINISHED")
    assert [step for step, _ in read.mlflow(server, child.info.run_id)] == [1, 2, 3, 4]


def test_stores_are_told_apart_whichever_way_they_are_written(tmp_path: Path) -> None:
    """Ids in the environment are used with the environment's store only."""
    assert same_store("sqlite:///m.db", f"sqlite:///{tmp_path}/m.db")
    assert same_store("http://host:5000/", "http://host:5000")
    assert not same_store("sqlite:///m.db", "sqlite:///n.db")
    assert [is_local(uri) for uri in ("", "sqlite:///m.db", "mlruns", "file:///a", "C:\\m")] == [
        True
    ] * 5
    assert not any(map(is_local, ("http://h", "https://h", "databricks", "postgresql://h/d")))
