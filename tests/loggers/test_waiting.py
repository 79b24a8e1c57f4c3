"""The end of a training waits for local work that moves, and five seconds for what does not."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sbi_ignite import LoggingConfig
from sbi_ignite.loggers import Backend, waiting
from sbi_ignite.loggers.movement import Movement
from sbi_ignite.loggers.waiting import Patience
from tests.loggers import read
from tests.loggers.small import ROOT, trained, wait_until
from tests.loggers.test_faults import assert_unharmed

_SLOW_IMPORT = """
import sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name in ("mlflow.tracking", "wandb.sdk"):
            sys.meta_path.remove(self)
            {work}

sys.meta_path.insert(0, Slow())
"""
_BUSY = """began = time.process_time()
            while time.process_time() < began + 6:
                sum(range(1000))"""


def _slow_down(folder: Path, monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    """Make the import of wandb and mlflow slow in every process that is started from now on."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(_SLOW_IMPORT.format(work=work))
    monkeypatch.setenv("PYTHONPATH", str(folder / "site"))


@pytest.mark.parametrize("backend", ["wandb", pytest.param("mlflow", marks=pytest.mark.slow)])
def test_what_was_logged_locally_is_there_when_train_returns(
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """However slow the import and the store; one line says what is waited for."""
    _slow_down(tmp_path, monkeypatch, _BUSY)
    uri = f"sqlite:///{tmp_path}/m.db"
    if backend == "wandb":
        outcome = trained(LoggingConfig("wandb", mode="offline"))
        rows = read.wandb(tmp_path)
        assert [r.exit_code for r in read.wandb_records(tmp_path, "exit")] == [0]
    else:
        outcome = trained(LoggingConfig("mlflow", tracking_uri=uri))
        rows = read.mlflow(uri, read.only_mlflow_run_id(uri))
        assert read.sqlite(uri, "select status from runs") == [("FINISHED",)]
    assert [step for step, _ in rows] == [1, 2, 3, 4]
    assert outcome.warnings == []
    assert outcome.is_unharmed()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "aiting for" in line]
    assert re.fullmatch(
        rf"sbi_ignite: training has finished\. Waiting for {backend} to (start up and open its run|"
        rf"store (the results|what was logged)), so that nothing is missing there when train\(\) "
        rf"returns; Ctrl-C ends the wait, and {backend} goes on in the background\.",
        line,
    )


def test_an_import_that_hangs_is_waited_for_in_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is local work, but it does not move."""
    _slow_down(tmp_path, monkeypatch, "time.sleep(50)")
    assert_unharmed(trained(LoggingConfig("wandb", mode="offline")), "not everything was stored")
    assert "aiting for" not in capsys.readouterr().err


_INTERRUPTED = """
from sbi_ignite import LoggingConfig
from tests.loggers.small import trained
outcome = trained(LoggingConfig("wandb", mode="offline"))
print(outcome.summary.epochs_trained, len(outcome.warnings), flush=True)
"""


@pytest.mark.slow
def test_ctrl_c_ends_the_waiting_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training returns what it trained, and the run is delivered in the background."""
    _slow_down(tmp_path, monkeypatch, _BUSY.replace("+ 6", "+ 15"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{ROOT}")
    command = [sys.executable, "-W", "ignore", "-c", _INTERRUPTED]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        for line in process.stderr:  # type: ignore[union-attr] # a pipe was asked for
            if "Waiting for wandb" in line:
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (0, "4 1\n"), err
    wait_until(lambda: [r.exit_code for r in read.wandb_records(tmp_path, "exit")] == [0])


# --- the parts


class _Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: self.now))


def _seconds_waited(clock: _Clock, patience: Patience, backend: Backend, moves: range) -> float:
    """Return when patience ends with a backend that moves at these tenths of a second."""
    for tenth in range(100_000):
        clock.now = tenth / 10
        if tenth in moves:
            backend.moved_at = clock.now
        if patience.is_over([backend]):
            return clock.now
    raise AssertionError("patience never ends")


@pytest.mark.parametrize(
    ("moves", "seconds"),
    [
        (range(0), 5.0),  # never
        (range(0, 200, 2), 19.8 + 5.0),  # often, then no more
        (range(0, 200, 15), 1.5 * 4),  # with pauses, which add up
        (range(0, 10**6), 300.0),  # for ever
    ],
)
def test_pauses_add_up_and_movement_is_free(
    moves: range, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Clock(monkeypatch)
    waited = _seconds_waited(clock, Patience(5.0), Backend(), moves)
    assert waited == pytest.approx(seconds, abs=1.0)


def test_whoever_is_ended_waits_five_seconds_however_much_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal may leave little time."""
    clock = _Clock(monkeypatch)
    patience = Patience(5.0, for_local_work=False)
    waited = _seconds_waited(clock, patience, Backend(), range(10**6))
    assert waited == pytest.approx(5.0, abs=0.2)


def test_only_local_work_that_moves_is_reported() -> None:
    """Not an idle wait, not work for a server, not the time between two pieces of work."""
    reports: list[str] = []
    local = [True]
    movement = Movement(reports.append, lambda: local[0])
    _burn(0.5)
    assert reports == []
    with movement.doing("burning"):
        wait_until(lambda: _burn(0.1) or reports)
        local[0] = False
        time.sleep(0.6)  # a report may be under way
        reports.clear()
        _burn(0.6)
        assert reports == []
        local[0] = True
        wait_until(lambda: _burn(0.1) or reports)
    assert set(reports) == {"burning"}


def _burn(seconds: float) -> None:
    """Use the processor."""
    began = time.process_time()
    while time.process_time() < began + seconds:
        sum(range(1000))
