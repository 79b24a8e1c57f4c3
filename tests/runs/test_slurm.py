"""The job script of examples/slurm requeues itself before its time limit, and only then."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.load import load_run
from sbi_ignite.runs.requeue import decide
from sbi_ignite.runs.snapshot import Snapshot

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "examples" / "slurm"


class Cluster:
    """A fake Slurm: a `scontrol` on PATH that notes its arguments, and jobs as processes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls.txt"
        scontrol = folder / "bin" / "scontrol"
        scontrol.parent.mkdir()
        scontrol.write_text(f'#!/bin/bash\necho "$@" >> "{self.calls}"\nexit ${{ANSWER:-0}}\n')
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


STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path

run = Path(os.environ["SBI_IGNITE_CHECKPOINT__DIRECTORY"])

def end(number, frame):
    if {saves}:
        run.mkdir(parents=True, exist_ok=True)
        (run / "run.json").write_text(json.dumps(dict(status="interrupted")))
    code = {code}
    sys.exit(128 + number if code is None else code)

signal.signal(signal.SIGUSR1, end)
signal.signal(signal.SIGTERM, end)
Path("ready").touch()
time.sleep(600)
"""
"""A script that needs no time to import, and ends as trainings and launchers do."""


def signal_stand_in(
    cluster: Cluster,
    number: signal.Signals,
    saves: bool = True,
    code: int | None = None,
    **variables: str,
) -> tuple[int, str]:
    """Run the job with a stand-in for the training, signal it and return status and output."""
    ready = cluster.folder / "ready"
    ready.unlink(missing_ok=True)
    script = cluster.folder / "script.py"
    script.write_text(STAND_IN.format(saves=saves, code=code))
    job = cluster.start(SCRIPT=str(script), **variables)
    try:
        give_up = time.monotonic() + 120
        while not ready.exists():
            assert job.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.02)
        job.send_signal(number)
    finally:
        output, errors = end(job)
    return job.returncode, output + errors


@pytest.mark.parametrize(
    ("number", "saves", "code", "status", "requeued"),
    [
        (signal.SIGUSR1, True, None, 0, ["requeue 4711"]),
        (signal.SIGUSR1, True, 1, 0, ["requeue 4711"]),  # torchrun's status
        (signal.SIGUSR1, False, 1, 1, []),
        (signal.SIGUSR1, False, 0, 0, []),
        (signal.SIGTERM, True, None, 143, []),
    ],
)
def test_only_a_training_that_was_cut_short_is_requeued(
    cluster, number, saves, code, status, requeued
):
    """The job script hands signals on, waits for the training, and looks at what it has left."""
    found, output = signal_stand_in(cluster, number, saves, code)
    assert found == status, output
    assert cluster.requeued() == requeued


def test_a_task_of_an_array_is_requeued_alone_and_has_a_run_of_its_own(cluster):
    """One task carries the array's own number; requeueing that would start all tasks again."""
    array = {"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "4711"}
    assert signal_stand_in(cluster, signal.SIGUSR1, **array)[0] == 0
    assert cluster.requeued() == ["requeue 4711_3"]
    assert cluster.run.with_name("my run_3").exists()
    assert not cluster.run.exists()


def test_a_refused_requeue_is_said_and_keeps_the_exit_status(cluster):
    status, output = signal_stand_in(cluster, signal.SIGUSR1, ANSWER="1")
    assert status == 138
    assert "scontrol did not requeue job 4711" in output


def test_starts_without_progress_are_not_repeated_for_ever(cluster):
    """The signal comes before or after the training every time: after three such starts it ends."""
    for number in range(1, 4):
        status, output = signal_stand_in(cluster, signal.SIGUSR1, saves=False)
        assert len(cluster.requeued()) == min(number, 2), output
    assert status == 138
    assert "3 starts in a row brought no progress" in output


# --- the decision


def write_run(folder: Path, status: str, iteration: int) -> None:
    with RunDirectory.open(folder) as directory:
        directory.write_manifest({"status": status})
        directory.write(1, iteration, Snapshot.of({"iteration": iteration}))


def test_progress_begins_the_count_anew(tmp_path):
    """Two starts without a further step, one with: the job has three more tries."""
    write_run(tmp_path, "interrupted", 10)
    answers = [decide(tmp_path, "1", 138, 60.0).requeue for _ in range(3)]
    write_run(tmp_path, "interrupted", 20)
    answers += [decide(tmp_path, "1", 138, 60.0).requeue for _ in range(4)]
    assert answers == [True] * 6 + [False]


def test_a_job_that_was_submitted_anew_has_all_its_tries(tmp_path):
    write_run(tmp_path, "complete", 10)
    answers = [decide(tmp_path, "1", 138, 60.0).requeue for _ in range(4)]
    assert answers == [True, True, True, False]
    assert decide(tmp_path, "2", 138, 60.0).requeue


def test_a_later_round_is_progress(tmp_path):
    write_run(tmp_path / "round-0", "complete", 10)
    assert all(decide(tmp_path, "1", 138, 60.0).requeue for _ in range(3))
    write_run(tmp_path / "round-1", "interrupted", 3)
    assert decide(tmp_path, "1", 138, 60.0).requeue


def test_an_interruption_of_an_earlier_start_excuses_no_error(tmp_path):
    """The script fails before it trains, in a directory where a run was interrupted long ago."""
    write_run(tmp_path, "interrupted", 10)
    os.utime(tmp_path / "run.json", (1e9, 1e9))
    decision = decide(tmp_path, "1", 1, 60.0)
    assert not decision.requeue
    assert "failed with status 1" in decision.reason


@pytest.mark.parametrize(("status", "code"), [("failed", 1), ("complete", 0), ("complete", 1)])
def test_what_has_failed_or_ended_is_not_queued_again(tmp_path, status, code):
    write_run(tmp_path, status, 10)
    assert not decide(tmp_path, "1", code, 60.0).requeue


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
    assert "#SBATCH --open-mode=append" in lines


# --- a real Slurm


class Slurm:
    """Slurm's own programs, all of them on this machine and on loopback."""

    PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue")

    def __init__(self, folder: Path) -> None:
        self.folder, self._running = folder, []
        # munge insists that others may look for its socket.
        for part in ("munge", "state", "spool"):
            (folder / part).mkdir()
            (folder / part).chmod(0o711)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self.configuration = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.configuration)}

    def start(self) -> None:
        munge, user = self.folder / "munge", getpass.getuser()
        host, ports = socket.gethostname().split(".")[0], free_ports(2)
        self.configuration.write_text(
            f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
# A requeued job waits until its old credentials have expired: two minutes by default.
AuthInfo=socket={munge / "socket"},cred_expire=5
StateSaveLocation={self.folder / "state"}
SlurmdSpoolDir={self.folder / "spool"}
SlurmctldPidFile={self.folder / "slurmctld.pid"}
SlurmdPidFile={self.folder / "slurmd.pid"}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
SchedulerParameters=batch_sched_delay=0,sched_interval=1
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""
        )
        files = {name: munge / name for name in ("key", "socket", "pid", "log", "seed")}
        options = [
            f"--{name}{'' if name == 'socket' else '-file'}={file}" for name, file in files.items()
        ]
        self._begin("munged", "--foreground", "--force", "--num-threads=1", *options)
        wait_until(files["socket"].exists, "munged has no socket")
        self._begin("slurmctld", "-D", "-i")
        self._begin("slurmd", "-D")
        wait_until(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"), "no node is idle")

    def _begin(self, program: str, *options: str) -> None:
        with (self.folder / f"{program}.out").open("wb") as output:
            command = [found(program), *options]
            process = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        self._running.append(process)

    def stop(self) -> None:
        for process in reversed(self._running):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def ask(self, *command: str) -> str:
        """Run one of Slurm's commands and return what it prints, "" while nobody answers."""
        done = subprocess.run(
            [found(command[0]), *command[1:]],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout

    def state(self, job: str) -> str:
        """Return the state of a job that Slurm remembers, such as COMPLETED."""
        words = dict(
            word.split("=", 1)
            for word in self.ask("scontrol", "show", "job", job).split()
            if "=" in word
        )
        return words.get("JobState", "unknown")


def found(program: str) -> str:
    """Return where a program is; daemons are seldom on the PATH of users."""
    place = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert place is not None, program
    return place


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            pytest.fail(what)
        time.sleep(0.1)


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    """Start Slurm in a folder with a short name, which sockets need, and stop it."""
    places = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in Slurm.PROGRAMS if shutil.which(name, path=places) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found: apt-get install slurm-wlm munge")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        Path(folder).chmod(0o711)
        cluster = Slurm(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_slurm_itself_requeues_one_task_of_an_array_until_it_is_complete(slurm, tmp_path):
    """The other task, which is done, is left alone; the requeued one continues and completes."""
    variables = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHON": sys.executable,
        "SCRIPT": str(tmp_path / "train.py"),
        "NUM_SIMULATIONS": "300",
        "SBI_IGNITE_CHECKPOINT__DIRECTORY": str(tmp_path / "run"),
    }
    # The task with the larger number carries the array's own: it is the one that is cut short.
    (tmp_path / "train.py").write_text(
        "import os, runpy\n"
        "restarts = os.environ.get('SLURM_RESTART_COUNT', '0')\n"
        "cut_short = os.environ['SLURM_ARRAY_TASK_ID'] == '1' and restarts == '0'\n"
        "os.environ['MAX_EPOCHS'] = '100000' if cut_short else '8'\n"
        f"runpy.run_path({str(SLURM / 'train.py')!r}, run_name='__main__')\n"
    )
    slurm.environment.update(variables)
    options = ["--parsable", "--array=0-1", f"--output={tmp_path}/%a.txt", f"--chdir={tmp_path}"]
    array = slurm.ask("sbatch", *options, str(SLURM / "job.sh")).strip()
    assert array.isdecimal(), slurm.folder
    runs = [tmp_path / f"run_{task}" for task in range(2)]
    outputs = [tmp_path / f"{task}.txt" for task in range(2)]

    def told() -> str:
        return "\n".join(file.read_text() for file in outputs if file.exists())

    wait_until(lambda: slurm.state(f"{array}_0") == "COMPLETED", "the first task did not end")
    metrics = runs[1] / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 1, "no training")
    # What Slurm does by itself two minutes before the limit: to the batch shell alone.
    slurm.ask("scancel", "--batch", "--signal=USR1", f"{array}_1")
    wait_until(lambda: "goes back into the queue" in told(), "the second task was not cut short")
    epochs = len(load_run(runs[1]).metrics)
    wait_until(lambda: slurm.state(f"{array}_1") == "COMPLETED", "the second task did not end")
    assert load_run(runs[1]).summary.resumed_from_epoch == epochs
    assert [load_run(run).status for run in runs] == ["complete", "complete"]
    assert [file.read_text().count("posterior mean") for file in outputs] == [1, 1], told()
