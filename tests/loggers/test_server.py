"""What a real TensorBoard server shows of runs that crashed and were resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sbi_ignite import LoggingConfig
from sbi_ignite.loggers import make_loggers
from tests.loggers.small import Play, free_port

pytestmark = pytest.mark.parametrize("load_fast", ["true", "false"])

SECONDS = 60.0


@contextmanager
def server(folder: Path, load_fast: str) -> Iterator[Callable[[str], Any]]:
    """Start a server on loopback; gives a function that asks it."""
    if load_fast == "true" and importlib.util.find_spec("tensorboard_data_server") is None:
        pytest.skip("TensorBoard's data server is not installed")
    port = free_port()
    command = [
        *(sys.executable, "-W", "ignore", "-m", "tensorboard.main", "--logdir", str(folder)),
        *("--host", "127.0.0.1", "--port", str(port), f"--load_fast={load_fast}"),
        *("--reload_interval", "1"),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )

    def ask(path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as response:
                return json.load(response)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    try:
        yield ask
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def shown(ask: Callable[[str], Any], wanted: Any, run: str = ".") -> Any:
    """Return the steps and values of the validation loss, as soon as they are what is wanted."""
    deadline, found = time.monotonic() + SECONDS, None
    query = f"data/plugin/scalars/scalars?run={run}&tag=validation_loss"
    while found != wanted and time.monotonic() < deadline:
        points = ask(query) or []
        found = [(step, value) for _, step, value in points]
        time.sleep(0.2)
    return found


def losses(*steps: int, first: int = 0) -> list[tuple[int, float]]:
    """Return what `Play` logs: the loss 10 - n in epoch n of a round."""
    return [(step, 10.0 - (step - first)) for step in steps]


def crash(play: Play) -> Any:
    """End a play as a kill does, without a word to its loggers; return what it remembers."""
    identity = play.loggers.state_dict()
    for backend in play.loggers.backends:
        backend.abandon()
    return identity


def test_a_run_that_crashed_twice_has_every_step_once(load_fast: str, tmp_path: Path) -> None:
    """Also where the second crash comes right after the first restart, before any epoch."""
    config = LoggingConfig("tensorboard", log_dir=tmp_path)
    identity = crash(Play(make_loggers([config])).epochs(5))
    for epochs in (0, 1, 0):
        crash(Play(make_loggers([config]), epochs_done=3, identity=identity).epochs(epochs))
    Play(make_loggers([config]), epochs_done=3, identity=identity).epochs(3).end()
    with server(tmp_path, load_fast) as ask:
        assert shown(ask, losses(*range(1, 7))) == losses(*range(1, 7))


@pytest.mark.slow
def test_rounds_and_a_restart_share_one_curve(load_fast: str, tmp_path: Path) -> None:
    """The second round crashes in its second epoch and begins anew."""
    config = LoggingConfig("tensorboard", log_dir=tmp_path)
    first = Play(make_loggers([config])).epochs(3)
    first.end()
    later = {"first_step": 3, "round_index": 1, "identity": first.loggers.state_dict()}
    crash(Play(make_loggers([config]), **later).epochs(2))
    Play(make_loggers([config]), **later).epochs(4).end()
    wanted = losses(1, 2, 3) + losses(4, 5, 6, 7, first=3)
    with server(tmp_path, load_fast) as ask:
        assert shown(ask, wanted) == wanted


def test_a_run_of_version_0_1_has_every_step_once_after_its_first_restart(
    load_fast: str, tmp_path: Path
) -> None:
    """Its first event file has no mark."""
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for epoch in range(1, 6):
            writer.add_scalar("training_loss", 10.5 - epoch, epoch)
            writer.add_scalar("validation_loss", 10.0 - epoch, epoch)
    (written,) = tmp_path.iterdir()
    written.rename(tmp_path / f"events.out.tfevents.{time.time_ns():020d}.1")
    identity = {"tensorboard": {"path": str(tmp_path)}}
    config = LoggingConfig("tensorboard", log_dir=tmp_path)
    Play(make_loggers([config]), epochs_done=3, identity=identity).epochs(3).end()
    with server(tmp_path, load_fast) as ask:
        assert shown(ask, losses(*range(1, 7))) == losses(*range(1, 7))


@pytest.mark.slow
def test_two_runs_in_one_log_dir_are_two_curves(load_fast: str, tmp_path: Path) -> None:
    """Each under its own name."""
    config = LoggingConfig("tensorboard", log_dir=tmp_path, run_name="mine")
    for epochs in (3, 5):
        Play(make_loggers([config])).epochs(epochs).end()
    with server(tmp_path, load_fast) as ask:
        for run, wanted in (("mine", losses(1, 2, 3)), ("mine-2", losses(1, 2, 3, 4, 5))):
            assert shown(ask, wanted, run) == wanted
