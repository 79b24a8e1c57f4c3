"""The job script of examples/slurm requeues itself before its time limit, and only then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sbi_ignite.runs.load import load_run

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "examples" / "slurm"


class Cluster:
    """A fake Slurm: a `scontrol` on PATH that notes its arguments, and jobs as processes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls.txt"
        scontrol = folder / "bin" / "scontrol"
        scontrol.parent.mkdir()
        scontrol.write_text(f'#!/bin/bash\necho "$@" >> "{self.calls}"\n')
        scontrol.chmod(0o755)

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "my run"

    def start(self, **variables: str) -> subprocess.Popen[str]:
        """Start the job in a process group of its own."""
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "PYTHON": sys.executable,
            "SCRIPT": str(SLURM / "train.py"),
            "SLURM_JOB_ID": "4711",
            "SBI_IGNITE_CHECKPOINT__DIRECTORY": str(self.run),
            "NUM_SIMULATIONS": "300",
            "MAX_EPOCHS": "100000",
            **variables,
        }
        return subprocess.Popen(
            ["bash", str(SLURM / "job.sh")],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_epochs(self, job: subprocess.Popen[str], number: int) -> None:
        """Wait until so many epochs stand in the metrics."""
        metrics = self.run / "metrics.jsonl"
        give_up = time.monotonic() + 120
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < number:
            if job.poll() is not None or time.monotonic() > give_up:
                output, errors = job.communicate()
                pytest.fail(f"the job did not train: {output}\n{errors}")
            time.sleep(0.05)

    def requeued(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def end(job: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return job.communicate(timeout=120)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.communicate()


FAKE_TRAINING = """
import signal, sys, time
from pathlib import Path

def end(number, frame):
    sys.exit({code} or 128 + number)

signal.signal(signal.SIGUSR1, end)
signal.signal(signal.SIGTERM, end)
Path("ready").touch()
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "code", "status", "requeued"),
    [
        (signal.SIGUSR1, 0, 0, ["requeue 4711"]),
        (signal.SIGUSR1, 1, 1, []),
        (signal.SIGTERM, 0, 143, []),
    ],
)
def test_only_a_training_that_was_cut_short_is_requeued(cluster, number, code, status, requeued):
    """The job script hands signals on, waits for the training, and looks at how it ended."""
    script = cluster.folder / "script.py"
    script.write_text(FAKE_TRAINING.format(code=code))
    job = cluster.start(SCRIPT=str(script))
    try:
        while not (cluster.folder / "ready").exists():
            assert job.poll() is None
            time.sleep(0.02)
        job.send_signal(number)
    finally:
        _, errors = end(job)
    assert job.returncode == status, errors
    assert cluster.requeued() == requeued


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_near_its_time_limit_goes_back_into_the_queue_and_continues(cluster):
    """SIGUSR1 to the job script: saved, requeued once; the next job trains on and completes."""
    job = cluster.start()
    cluster.wait_for_epochs(job, 2)
    job.send_signal(signal.SIGUSR1)
    output, errors = end(job)
    assert job.returncode == 0, errors
    assert cluster.requeued() == ["requeue 4711"]
    assert "goes back into the queue" in output
    assert load_run(cluster.run).status == "interrupted"
    epochs = len(load_run(cluster.run).metrics)

    job = cluster.start(MAX_EPOCHS=str(epochs + 2))
    output, errors = end(job)
    assert job.returncode == 0, errors
    assert "posterior mean" in output
    assert cluster.requeued() == ["requeue 4711"]
    run = load_run(cluster.run)
    assert run.status == "complete"
    assert run.summary.resumed_from_epoch == epochs
    assert [row["epoch"] for row in run.metrics] == list(range(1, len(run.metrics) + 1))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cancelled_job_is_saved_and_not_requeued(cluster):
    """`scancel` sends SIGTERM: the exit code says so, and the run can be continued by hand."""
    job = cluster.start()
    cluster.wait_for_epochs(job, 1)
    job.send_signal(signal.SIGTERM)
    end(job)
    assert job.returncode == 128 + signal.SIGTERM
    assert cluster.requeued() == []
    assert load_run(cluster.run).status == "interrupted"


def test_a_script_that_fails_is_not_requeued(cluster, tmp_path):
    """An error is reported by the exit code; a requeue would repeat it forever."""
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit(3)")
    job = cluster.start(SCRIPT=str(script))
    end(job)
    assert job.returncode == 3
    assert cluster.requeued() == []


def test_the_job_script_asks_slurm_for_what_it_relies_on():
    """The lines for Slurm are there: an early signal to the shell, and leave to requeue."""
    lines = (SLURM / "job.sh").read_text().splitlines()
    assert "#SBATCH --signal=B:USR1@120" in lines
    assert "#SBATCH --requeue" in lines
    assert [line.strip() for line in lines].count('scontrol requeue "$SLURM_JOB_ID"') == 1
