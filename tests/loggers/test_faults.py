"""Whatever happens to a backend, training ends in time, with the same weights and one warning."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from sbi_ignite import ArgumentError, LoggingConfig, MissingPackageError
from sbi_ignite.loggers import Backend, EpochRow, RunInfo, make_loggers
from tests.loggers import read
from tests.loggers.small import (
    AfterEpoch,
    Outcome,
    Play,
    descendants,
    free_port,
    mlflow_server,
    run_script,
    trained,
    wait_until,
)

LIMIT_SECONDS = 5.0
SLACK_SECONDS = 10.0
"""For a machine that does other things when the time is up; what hangs here hangs for minutes."""


def assert_unharmed(outcome: Outcome, words: str) -> None:
    """One warning with these words, the weights of an unlogged run, no more than 5 s."""
    assert len(outcome.warnings) == 1, outcome.warnings
    assert words in outcome.warnings[0]
    assert outcome.delay < LIMIT_SECONDS + SLACK_SECONDS
    assert outcome.is_unharmed()


# --- before training


@pytest.mark.parametrize("package", ["wandb", "mlflow", "tensorboard"])
def test_a_missing_package_is_told_before_training(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the line that installs it."""
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type] # as import does
    with pytest.raises(MissingPackageError, match=rf'pip install "sbi-ignite\[{package}\]"'):
        trained(package)


def test_a_folder_of_that_name_is_no_package(tmp_path: Path) -> None:
    """Wandb leaves a folder `wandb` behind, which python takes for a package."""
    (tmp_path / "site" / "wandb").mkdir(parents=True)
    script = f"""
import sys
from sbi_ignite.loggers.make import check_package
sys.path[:] = [p for p in sys.path if "site-packages" not in p] + [{str(tmp_path / "site")!r}]
try:
    check_package("wandb")
except ImportError as error:
    print(error)
"""
    assert 'pip install "sbi-ignite[wandb]"' in run_script(script).stdout


def test_something_else_is_refused() -> None:
    """With what is accepted."""
    with pytest.raises(ArgumentError, match="expected a LoggingConfig"):
        make_loggers([3.5])


# --- objects that fail in this process


class Failing(Backend):
    """Raises at one of its calls."""

    name = "failing"

    def __init__(self, at: str) -> None:
        super().__init__(every_n_iterations=1)
        self.calls: list[str] = []
        self._at = at

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self._at:
            raise OSError(f"no {name} today")

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        self._call("start")

    def log_epoch(self, row: EpochRow) -> None:
        self._call("log_epoch")

    def log_iteration(self, iteration: int, values: Mapping[str, float]) -> None:
        self._call("log_iteration")

    def finish(self, summary: Any) -> None:
        self._call("finish")

    def settled(self) -> bool:
        self._call("settled")
        return True


@pytest.mark.parametrize("at", ["start", "log_epoch", "log_iteration", "finish", "settled"])
def test_a_backend_that_raises_is_left_alone(at: str) -> None:
    """Whenever it raises: it is warned about once and called no more."""
    failing = Failing(at)
    assert_unharmed(trained(failing), f"no {at} today")
    assert failing.calls[-1] == at
    assert failing.calls.count(at) == 1


class BadTracker:
    """An sbi tracker that misbehaves."""

    log_dir = None

    def __init__(self, misbehave: Callable[[], Any]) -> None:
        self.log_metrics = self.log_metric = self._call
        self._misbehave = misbehave

    def _call(self, *args: Any, **kwargs: Any) -> None:
        self._misbehave()

    def log_params(self, params: Any) -> None:
        """Take them."""

    def add_figure(self, *args: Any, **kwargs: Any) -> None:
        """Take it."""


def _raise() -> None:
    raise ConnectionError("gone")


def _use_random_states() -> None:
    import random

    import torch

    random.random()
    torch.rand(1)


def test_a_tracker_that_raises_is_left_alone() -> None:
    """Sbi's own loop would have ended."""
    assert_unharmed(trained(BadTracker(_raise)), "gone")


def test_a_tracker_that_hangs_is_waited_for_in_bounds() -> None:
    """It sleeps for minutes in its first call."""
    assert_unharmed(trained(BadTracker(lambda: time.sleep(200))), "not everything was stored")


def test_a_tracker_cannot_move_the_random_states() -> None:
    """The weights are those of an unlogged run."""
    outcome = trained(BadTracker(_use_random_states))
    assert outcome.warnings == []
    assert outcome.is_unharmed()


def test_warnings_that_are_errors_do_not_end_a_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The warning is printed instead: this test runs with warnings as errors."""
    Play(make_loggers([Failing("log_epoch")])).epochs(3).end()
    assert "no log_epoch today" in capsys.readouterr().err


# --- disks


@pytest.mark.parametrize("backend", ["jsonl", "tensorboard"])
def test_a_directory_that_cannot_be_written(backend: Any, tmp_path: Path) -> None:
    """Below a file there are no folders, not even for root."""
    (tmp_path / "file").touch()
    config = LoggingConfig(backend, log_dir=tmp_path / "file" / "logs")
    assert_unharmed(trained(config), "NotADirectoryError")


_FULL_DISK = """
import resource
from sbi_ignite import LoggingConfig
from tests.loggers.small import trained
trained(())
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for config in {configs}:
    outcome = trained(LoggingConfig(**config), epochs=60)
    print(config["backend"], len(outcome.warnings), outcome.is_unharmed(), outcome.delay)
"""

_FILES = [{"backend": "jsonl", "log_dir": "logs"}, {"backend": "tensorboard", "log_dir": "tb"}]
_STORES = [
    {"backend": "wandb", "mode": "offline"},
    {"backend": "mlflow", "tracking_uri": "sqlite:///m.db"},
]


@pytest.mark.parametrize("configs", [_FILES, pytest.param(_STORES, marks=pytest.mark.slow)])
def test_a_full_disk(configs: list[dict[str, str]]) -> None:
    """No file may grow beyond 4 KiB."""
    done = run_script(_FULL_DISK.format(configs=configs))
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [config["backend"] for config in configs], done.stderr
    for _, warnings, unharmed, seconds in lines:
        assert (warnings, unharmed) == ("1", "True"), done.stdout + done.stderr
        assert float(seconds) < LIMIT_SECONDS + SLACK_SECONDS


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("backend", "fields", "words"),
    [
        ("wandb", {"mode": "offline"}, "cannot be written; wandb keeps the run in"),
        ("mlflow", {"tracking_uri": "sqlite:///file/m.db"}, "FileExistsError"),
    ],
)
def test_a_store_that_cannot_be_written(
    backend: Any, fields: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user is told, also where the library silently takes another place."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "file" / "below"))
    outcome = trained(LoggingConfig(backend, **fields))
    assert len(outcome.warnings) == 1, outcome.warnings
    assert words in outcome.warnings[0]
    assert outcome.is_unharmed()


_READ_ONLY = """
import os
from sbi_ignite import LoggingConfig
from tests.loggers.small import trained
os.makedirs("logs", 0o555)
for folder in ("writable", "logs"):  # first as root, which imports everything
    for backend in ("jsonl", "tensorboard"):
        outcome = trained(LoggingConfig(backend, log_dir=folder))
        named = ["PermissionError" in warning for warning in outcome.warnings]
        print(folder, backend, named, outcome.is_unharmed())
    os.setuid(65534)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody who may not write")
def test_a_read_only_directory() -> None:
    """A directory that belongs to somebody else."""
    done = run_script(_READ_ONLY)
    assert done.stdout.splitlines() == [
        "writable jsonl [] True",
        "writable tensorboard [] True",
        "logs jsonl [True] True",
        "logs tensorboard [True] True",
    ], done.stdout + done.stderr


# --- wandb


def test_wandb_without_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks nobody and waits for nobody."""
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    assert_unharmed(trained("wandb", do=AfterEpoch(1, lambda: time.sleep(1))), "wandb")


@pytest.mark.slow
def test_wandb_says_that_nobody_is_logged_in(
    monkeypatch: pytest.MonkeyPatch, patient: None
) -> None:
    """The warning holds wandb's own words."""
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    (warning,) = trained("wandb").warnings
    assert "UsageError" in warning


@pytest.mark.slow
def test_wandb_on_an_unreachable_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wandb alone would try for 90 s."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    assert_unharmed(trained("wandb"), "not everything was stored")


def test_the_core_process_of_wandb_is_killed(tmp_path: Path) -> None:
    """In the middle of a training."""

    def kill() -> None:
        cores = wait_until(_cores_that_log)
        for pid in cores:
            os.kill(pid, signal.SIGKILL)

    def _cores_that_log() -> list[int]:
        begun = list(tmp_path.glob("wandb/*run-2*/run-*.wandb"))
        return (
            [p for p, c in descendants(os.getpid()).items() if "wandb-core" in c] if begun else []
        )

    after = AfterEpoch(2, kill)
    outcome = trained(LoggingConfig("wandb", mode="offline"), epochs=10, do=after)
    assert_unharmed(outcome, "wandb")


# --- mlflow


@pytest.fixture(scope="module")
def refusing() -> Any:
    """Give the address of a server that refuses every request."""

    class Refuse(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(403)
            self.end_headers()
            self.wfile.write(b"not you")

        do_GET = do_POST  # noqa: N815 # http.server looks for this name

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_mlflow_refuses(refusing: str, patient: None) -> None:
    """The warning says so, and nothing is tried again."""
    (warning,) = trained(LoggingConfig("mlflow", tracking_uri=refusing)).warnings
    assert "403" in warning
    assert "not you" in warning


def test_mlflow_on_an_unreachable_host() -> None:
    """MLflow alone would try for 246 s."""
    uri = f"http://127.0.0.1:{free_port()}"
    outcome = trained(LoggingConfig("mlflow", tracking_uri=uri))
    assert_unharmed(outcome, "mlflow")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_mlflow_server_is_killed_or_frozen(number: signal.Signals, tmp_path: Path) -> None:
    """In the middle of a training; the process that trained exits at once."""
    with mlflow_server(tmp_path / "server") as (uri, group):

        def hit() -> None:
            wait_until(lambda: _holds_epoch(uri, 1), 120)  # 2 is logged after callbacks
            os.killpg(group, number)

        after = AfterEpoch(2, hit)
        config = LoggingConfig("mlflow", tracking_uri=uri, experiment_name="faults")
        outcome = trained(config, epochs=20, do=after)
        assert_unharmed(outcome, "mlflow")


def _holds_epoch(uri: str, epoch: int) -> bool:
    """Say whether the one run on the server has an epoch."""
    for run in read.mlflow_runs(uri, "faults"):
        steps = [step for step, _ in read.mlflow(uri, run.info.run_id)]
        return epoch in steps
    return False


_EXIT = """
import sys, threading
from sbi_ignite import LoggingConfig
from tests.loggers.small import trained
trained(LoggingConfig("mlflow", tracking_uri="{uri}"))
waited_for = [t.name for t in threading.enumerate() if not t.daemon]
print(waited_for, [name for name in ("mlflow", "wandb") if name in sys.modules])
"""


@pytest.mark.slow
def test_the_exit_of_python_does_not_hang(tmp_path: Path) -> None:
    """While a server is frozen, nothing is left that python would wait for when it exits."""
    with mlflow_server(tmp_path / "server") as (uri, group):
        os.killpg(group, signal.SIGSTOP)
        done = run_script(_EXIT.format(uri=uri))
    assert (done.returncode, done.stdout) == (0, "['MainThread'] []\n"), done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_files_without_a_place_cost_no_numbers(tmp_path: Path) -> None:
    """A store for artifacts that cannot be written: one warning, and a run without them."""
    uri = f"sqlite:///{tmp_path}/m.db"
    (tmp_path / "file").touch()
    read.client_of(uri).create_experiment("e", artifact_location=f"{tmp_path}/file/below")
    outcome = trained(LoggingConfig("mlflow", tracking_uri=uri, experiment_name="e"))
    assert len(outcome.warnings) == 1
    assert "NotADirectoryError" in outcome.warnings[0]
    assert outcome.is_unharmed()
    assert len(read.mlflow(uri, read.only_mlflow_run_id(uri))) == 4
    assert read.sqlite(uri, "select status from runs") == [("FINISHED",)]


def test_many_that_fail_share_the_seconds() -> None:
    """Nobody listens, one hangs, one raises: 5 s in all, and a warning each."""
    outcome = trained(
        [
            LoggingConfig("mlflow", tracking_uri=f"http://127.0.0.1:{free_port()}"),
            BadTracker(lambda: time.sleep(200)),
            BadTracker(_raise),
        ]
    )
    assert len(outcome.warnings) == 3, outcome.warnings
    assert outcome.delay < LIMIT_SECONDS + SLACK_SECONDS
    assert outcome.is_unharmed()


# --- the backend process


def test_the_backend_process_is_killed_or_frozen(tmp_path: Path) -> None:
    """Killed: one warning. Frozen: one warning, after at most 5 s."""
    for number in (signal.SIGKILL, signal.SIGSTOP):
        processes: list[int] = []

        def hit(number: Any = number, processes: list[int] = processes) -> None:
            found = descendants(os.getpid()).items()
            processes += [pid for pid, command in found if "subprocess_main" in command]
            os.kill(processes[-1], number)

        after = AfterEpoch(1, hit)
        try:
            outcome = trained(LoggingConfig("wandb", mode="offline"), do=after)
        finally:
            for pid in processes:
                _end(pid)
        assert_unharmed(outcome, "wandb")


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
