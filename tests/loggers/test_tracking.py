"""What an MLflow server, wandb's files and TensorBoard show of a run besides its numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sbi_ignite import LoggingConfig
from tests.loggers import read
from tests.loggers.small import ROOT, AfterEpoch, run_script, trained, wait_until


def _break() -> None:
    raise ZeroDivisionError("the user's callback")


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_a_run_on_an_mlflow_server_is_complete(server: str, tmp_path: Path) -> None:
    """Parameters, metrics, tags, figure and run.json; FINISHED."""
    config = LoggingConfig(
        "mlflow", tracking_uri=server, experiment_name="whole", run_name="mine", tags={"who": "me"}
    )
    outcome = trained(config)
    assert outcome.warnings == []
    client = read.client_of(server)
    (run,) = read.mlflow_runs(server, "whole")
    rows = read.mlflow(server, run.info.run_id)
    assert [row["validation_loss"] for _, row in rows] == list(outcome.summary.validation_loss)
    assert [step for step, _ in rows] == [1, 2, 3, 4]
    assert (run.info.status, run.info.run_name, run.data.tags["who"]) == ("FINISHED", "mine", "me")
    assert run.data.params["train.learning_rate"] == "0.01"
    assert run.data.params["origin.train.learning_rate"].startswith("call")
    assert run.data.params["versions.sbi"].startswith("0.27")
    assert run.data.tags["stop_reason"] == "max_epochs"
    assert run.data.metrics["best_epoch"] == outcome.summary.best_epoch
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"loss_curve.png", "run.json"}
    record = json.loads(Path(client.download_artifacts(run.info.run_id, "run.json")).read_text())
    assert record["settings"]["train"]["max_epochs"]["value"] == 4


_USERS_RUN = """
import mlflow, wandb
from sbi_ignite import LoggingConfig
import sbi_ignite.loggers.group
from tests.loggers.small import trained
sbi_ignite.loggers.group.MAX_WAIT_SECONDS = 90
mlflow.set_tracking_uri("sqlite:///theirs.db")
mine = wandb.init(mode="offline", project="theirs")
with mlflow.start_run() as run:
    outcome = trained([LoggingConfig("mlflow"), LoggingConfig("wandb", mode="offline")])
    assert outcome.warnings == [], outcome.warnings
    assert mlflow.active_run().info.run_id == run.info.run_id
    mlflow.log_metric("theirs", 1.0)
    client = mlflow.MlflowClient()
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    assert set(client.get_run(run.info.run_id).data.metrics) == {"theirs"}
    others = [r for r in client.search_runs(["0"]) if r.info.run_id != run.info.run_id]
    assert [r.data.tags["stop_reason"] for r in others] == ["max_epochs"]
    assert [r.data.tags["mlflow.parentRunId"] for r in others] == [run.info.run_id]
assert wandb.run is mine
mine.log({"theirs": 2})
mine.finish()
print("theirs")
"""


@pytest.mark.slow
def test_the_users_own_runs_stay_theirs() -> None:
    """Neither taken over nor ended; their tracking address is taken where none is given."""
    done = run_script(_USERS_RUN)
    assert done.stdout.endswith("theirs\n"), done.stdout + done.stderr


@pytest.mark.usefixtures("patient")
def test_a_run_of_wandb_is_complete(tmp_path: Path) -> None:
    """Config with settings and versions, summary with results, the figure, exit code 0."""
    config = LoggingConfig("wandb", mode="offline", project="p", run_name="mine", tags=["a"])
    outcome = trained(config)
    assert outcome.warnings == []
    (run,) = read.wandb_records(tmp_path, "run")[:1]
    given = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (run.project, run.display_name, list(run.tags)) == ("p", "mine", ["a"])
    assert given["train.learning_rate"] == 0.01
    assert given["versions.sbi"].startswith("0.27")
    assert given["origin"]["train.learning_rate"].startswith("call")
    updates = read.wandb_records(tmp_path, "summary")
    summary = {i.key: json.loads(i.value_json) for s in updates for i in s.update if i.key}
    assert summary["stop_reason"] == "max_epochs"
    assert summary["best_validation_loss"] == outcome.summary.best_validation_loss
    assert [r.exit_code for r in read.wandb_records(tmp_path, "exit")] == [0]
    assert list(tmp_path.glob("wandb/*run-2*/files/media/images/loss_curve_*.png"))


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_a_failed_run_of_wandb_says_so(tmp_path: Path) -> None:
    """What was logged before is readable, and the exit code is not 0."""
    config = LoggingConfig("wandb", mode="offline")
    with pytest.raises(ZeroDivisionError):
        trained(config, do=AfterEpoch(2, _break))
    assert [r.exit_code for r in read.wandb_records(tmp_path, "exit")] == [1]
    assert [step for step, _ in read.wandb(tmp_path)] == [1, 2]


def test_tensorboard_compares_runs_and_shows_the_figure(tmp_path: Path) -> None:
    """hparams, the table of settings, the results and the loss curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    trained(LoggingConfig("tensorboard", log_dir=tmp_path, tags=["a"]))
    events = EventAccumulator(str(tmp_path)).Reload()
    metadata = events.PluginTagToContent("hparams")
    assert set(metadata) == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }
    content: Any = vars(plugin_data_pb2)["HParamsPluginData"]
    session = content.FromString(metadata["_hparams_/session_start_info"]).session_start_info
    assert session.hparams["train.learning_rate"].number_value == 0.01
    assert session.hparams["tag.a"].string_value == ""
    (image,) = events.Images("loss_curve")
    assert image.step == 4
    assert image.encoded_image_string.startswith(b"\x89PNG")
    (settings,) = events.Tensors("settings/text_summary")
    assert b"| train.learning_rate | 0.01 | call" in settings.tensor_proto.string_val[0]
    (result,) = events.Tensors("result/text_summary")
    assert b"| stop_reason | max_epochs |" in result.tensor_proto.string_val[0]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_files_of_a_run_that_ended_early_say_why(error: Any, tmp_path: Path) -> None:
    """Failed after an error, killed when somebody ended it; the epochs before are there."""

    def end() -> None:
        raise error("early")

    config = LoggingConfig("jsonl", log_dir=tmp_path)
    with pytest.raises(error):
        trained(config, do=AfterEpoch(2, end))
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["status"] == ("failed" if error is ZeroDivisionError else "killed")
    assert last["message"] == f"{error.__name__}: early"
    assert len(read.jsonl(tmp_path / "metrics.jsonl")) == 2


_KILL_ME = """
import os, signal, time
from pathlib import Path
from sbi_ignite import LoggingConfig
from tests.loggers.small import AfterEpoch, trained
def die():
    os.kill(os.getpid(), signal.SIGKILL)
mlflow = LoggingConfig("mlflow", tracking_uri="sqlite:///m.db")
trained([mlflow, LoggingConfig("wandb", mode="offline")], do=AfterEpoch(4, die))
"""


@pytest.mark.slow
def test_a_killed_training_leaves_whole_runs(tmp_path: Path) -> None:
    """SIGKILL: what was logged before is delivered, and the runs are closed as killed."""
    assert run_script(_KILL_ME).returncode == -signal.SIGKILL
    uri = f"sqlite:///{tmp_path}/m.db"
    wait_until(lambda: _status(uri) == "KILLED")
    assert [s for s, _ in read.mlflow(uri, read.only_mlflow_run_id(uri))] == [1, 2, 3]
    wait_until(lambda: [r.exit_code for r in read.wandb_records(tmp_path, "exit")] == [255])
    assert [s for s, _ in read.wandb(tmp_path)] == [1, 2, 3]


def _status(uri: str) -> str | None:
    try:
        rows = read.sqlite(uri, "select status from runs")
    except Exception:  # the store is being made
        return None
    return rows[0][0] if rows else None


def test_no_file_holds_a_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, patient: None
) -> None:
    """Keys and passwords in the environment and in addresses stay out of every file and store."""
    secrets = {
        "WANDB_API_KEY": "deadbeef" * 5,
        "MLFLOW_TRACKING_PASSWORD": "s3cr3tpassw0rd",
        "MLFLOW_TRACKING_TOKEN": "t0kent0kent0ken",
    }
    for name, secret in secrets.items():
        monkeypatch.setenv(name, secret)
    password, store = secrets["MLFLOW_TRACKING_PASSWORD"], f"sqlite:///{tmp_path}/m.db"
    outcome = trained(
        [
            LoggingConfig("wandb", mode="offline"),
            LoggingConfig("jsonl", log_dir=tmp_path / "j"),
            LoggingConfig("tensorboard", log_dir=tmp_path / "tb"),
            LoggingConfig("mlflow", tracking_uri=store),
            # Nobody listens there; the others are told that it was asked for.
            LoggingConfig("mlflow", tracking_uri=f"http://me:{password}@127.0.0.1:9"),
        ],
        checkpoint=str(tmp_path / "run"),
    )
    assert password not in str(outcome.warnings)
    wait_until(lambda: [r.exit_code for r in read.wandb_records(tmp_path, "exit")] == [0])
    # Everybody has written: these are the places that are searched.
    written = ["run/run.json", "run/best.pt", "j/metrics.jsonl", "m.db"]
    assert all((tmp_path / name).stat().st_size for name in written)
    for pattern in ("tb/events.*", "wandb/*/*.wandb", "mlruns/**/run.json", "mlruns/**/*.png"):
        assert list(tmp_path.glob(pattern)), pattern
    addresses = read.sqlite(store, "select value from params where key like '%tracking_uri'")
    assert any("127.0.0.1:9" in value for (value,) in addresses)
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for secret in secrets.values():
            assert secret.encode() not in data, path


_START = """
import os, sys
from sbi_ignite.loggers.base import RunInfo
from sbi_ignite.loggers.mlflow import Mlflow
Mlflow(tracking_uri="sqlite:///m.db").start(RunInfo(method="NPE"), {"id": sys.argv[1]})
os._exit(0)
"""


@pytest.mark.slow
def test_processes_that_start_together_make_one_store(tmp_path: Path) -> None:
    """As the jobs of an array do, or a training that begins while the last is being delivered."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", _START]
    processes = [subprocess.Popen([*command, name], env=environment) for name in "abc"]
    assert [process.wait(200) for process in processes] == [0, 0, 0]
    assert len(read.sqlite(f"sqlite:///{tmp_path}/m.db", "select run_uuid from runs")) == 3


_SBI_SCRIPT = """
import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform
torch.manual_seed(0)
prior = BoxUniform(-torch.ones(2), torch.ones(2))
theta = prior.sample((100,))
NPE(prior, show_progress_bars=False).append_simulations(theta, theta).train(max_num_epochs=3)
"""


@pytest.mark.slow
def test_an_unchanged_sbi_script_logs_to_mlflow(server: str, tmp_path: Path) -> None:
    """Variables alone make it a tracked run."""
    script = tmp_path / "script.py"
    script.write_text(_SBI_SCRIPT)
    variables = {
        "SBI_IGNITE_LOGGING__BACKEND": "mlflow",
        "SBI_IGNITE_LOGGING__TRACKING_URI": server,
        "SBI_IGNITE_LOGGING__EXPERIMENT_NAME": "unchanged",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "sbi_ignite", str(script)]
    subprocess.run(command, env={**os.environ, **variables}, check=True, timeout=200)
    run = wait_until(lambda: _finished(server, "unchanged"))
    assert [s for s, _ in read.mlflow(server, run.info.run_id)] == [1, 2, 3, 4]
    assert run.data.params["origin.logging.backend"] == "environment SBI_IGNITE_LOGGING__BACKEND"


def _finished(uri: str, experiment: str) -> Any:
    runs = read.mlflow_runs(uri, experiment)
    return runs[0] if runs and runs[0].info.status == "FINISHED" else None
