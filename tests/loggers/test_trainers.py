"""sbi's trainers with loggers, as users have them: rounds, sbi's tracker, a screen, kills."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import sqlite3
import struct
import termios
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from sbi.analysis import plot_summary
from sbi.utils import BoxUniform

from sbi_ignite import NPE, Callback, LoggingConfig, LossArgsNPE, TrainConfig, TrainingState
from sbi_ignite.loggers import Memory
from tests import forking
from tests.loggers import read
from tests.loggers.small import run_script, wait_until

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))


def _ready(**kwargs: Any) -> Any:
    theta = PRIOR.sample((100,))
    inference = NPE(PRIOR, show_progress_bars=False, **kwargs)
    return inference.append_simulations(theta, theta + 0.1 * torch.randn_like(theta))


# --- rounds

PLACES = ("jsonl", "tensorboard", "wandb", "mlflow")


def _places(folder: Path, names: Any) -> list[LoggingConfig]:
    known = {
        "jsonl": LoggingConfig("jsonl", log_dir=folder / "j", every_n_iterations=1),
        "tensorboard": LoggingConfig("tensorboard", log_dir=folder / "tb", every_n_iterations=1),
        "wandb": LoggingConfig("wandb", mode="offline", every_n_iterations=1),
        "mlflow": LoggingConfig(
            "mlflow", tracking_uri=f"sqlite:///{folder}/m.db", every_n_iterations=1
        ),
    }
    return [known[name] for name in names]


def _held(folder: Path, name: str) -> tuple[list[int], list[int]]:
    """Return the epochs and iterations that a place holds."""
    uri = f"sqlite:///{folder}/m.db"
    if name == "jsonl":
        path = folder / "j" / "metrics.jsonl"
        rows, iterations = read.jsonl(path), read.jsonl_iterations(path)
    elif name == "tensorboard":
        rows, iterations = (
            read.tensorboard(folder / "tb"),
            read.tensorboard_iterations(folder / "tb"),
        )
    elif name == "wandb":
        rows, iterations = read.wandb(folder), read.wandb_iterations(folder)
    else:
        rows = read.mlflow(uri, read.only_mlflow_run_id(uri))
        iterations = read.mlflow_iterations(uri)
    return [step for step, _ in rows], [iteration for iteration, *_ in iterations]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "names", [PLACES[:2], pytest.param(PLACES[2:], marks=pytest.mark.slow)], ids="-".join
)
def test_rounds_share_one_run_and_one_axis(names: Any, tmp_path: Path) -> None:
    """Two rounds of 3 epochs with 2 and then 4 steps: 6 epochs and 18 iterations in one run."""
    inference = _ready()
    config = TrainConfig(max_epochs=3, batch_size=50)
    losses, proposal, best = [], None, []
    for number in range(2):
        if proposal is not None:
            theta = PRIOR.sample((100,))
            inference.append_simulations(theta, theta, proposal)
        inference.train(config, logging=_places(tmp_path, names))
        losses += inference.training_summary.validation_loss
        best.append((inference.training_summary.best_epoch, 3 * number))
        proposal = inference.build_posterior().set_default_x(torch.zeros(1, 2))
    for name in names:
        assert _held(tmp_path, name) == (list(range(1, 7)), list(range(1, 19))), name
    if "jsonl" in names:
        rows = read.jsonl(tmp_path / "j" / "metrics.jsonl")
        assert [row["validation_loss"] for _, row in rows] == losses
        lines = (tmp_path / "j" / "metrics.jsonl").read_text().splitlines()
        written = [json.loads(line) for line in lines]
        ends = [line["summary"] for line in written if "summary" in line]
        found = [(end["best_epoch"], end["best_step"]) for end in ends]
        assert found == [(epoch, first + epoch) for epoch, first in best]
    if "mlflow" in names:
        uri = f"sqlite:///{tmp_path}/m.db"
        query = "select value from metrics where key = ? order by timestamp, step"
        found = [int(value) for (value,) in read.sqlite(uri, query, "best_step")]
        assert found == [first + epoch for epoch, first in best]


# --- sbi's tracker


class _Watched(Callback):
    """Notes after every epoch what a tracker has been told by then."""

    def __init__(self, tracker: Any) -> None:
        self._tracker, self.seen = tracker, []

    def on_epoch_end(self, state: TrainingState) -> None:
        told = [value for name, value, _ in self._tracker.told if name == "validation_loss"]
        self.seen.append((state.epoch, len(told)))


class _Tracker:
    """sbi's protocol, kept in a list."""

    log_dir = None

    def __init__(self) -> None:
        self.told: list[tuple[str, Any, Any]] = []

    def log_metric(self, name: str, value: Any, step: Any = None) -> None:
        self.told.append((name, float(value), step))

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        """Never needed: sbi tells metrics one by one."""

    def log_params(self, params: Any) -> None:
        """Take them."""

    def add_figure(self, name: str, figure: Any, step: Any = None) -> None:
        """Take it."""

    def flush(self) -> None:
        """Have nothing to write."""


@pytest.mark.parametrize(
    "keywords", [{"max_num_epochs": 3}, {"train_config": TrainConfig(max_epochs=4)}]
)
def test_sbis_tracker_is_told_while_it_trains(keywords: Any) -> None:
    """After epoch n it has n values; in the end those of sbi's summary, at sbi's steps."""
    tracker = _Tracker()
    watched = _Watched(tracker)
    inference = _ready(tracker=tracker)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)  # that the budget ran out
        inference.train(**keywords, callbacks=[watched])
    # Callbacks come before loggers: the epoch that ends is on its way.
    assert watched.seen == [(n, n - 1) for n in range(1, 5)]
    for name in ("training_loss", "validation_loss"):
        told = [(value, step) for n, value, step in tracker.told if n == name]
        assert [value for value, _ in told] == pytest.approx(inference.summary[name])
        assert [step for _, step in told] == [0, 1, 2, 3]
    assert ("epochs_trained", 4.0, 1) in tracker.told


@pytest.mark.filterwarnings("ignore:_get_default_opts will be deprecated")
def test_plot_summary_reads_the_tracker_beside_other_loggers(tmp_path: Path) -> None:
    """Sbi's default tracker keeps what plot_summary draws, whatever else is logged to."""
    from sbi.utils.tracking import TensorBoardTracker
    from torch.utils.tensorboard import SummaryWriter

    tracker = TensorBoardTracker(SummaryWriter(tmp_path / "sbi"))
    inference = _ready(tracker=tracker)
    memory = Memory()
    inference.train(TrainConfig(max_epochs=3), logging=[memory])
    figure, axes = plot_summary(inference, tags=["validation_loss"])
    drawn = list(axes[0].lines[0].get_ydata())
    assert drawn == pytest.approx([row["validation_loss"] for row in memory.rows], rel=1e-6)
    plt.close(figure)


# --- a screen

_ON_SCREEN = """
import torch
from sbi.utils import BoxUniform
from sbi_ignite import NPE, TrainConfig
prior = BoxUniform(-torch.ones(2), torch.ones(2))
theta = prior.sample((100,))
for wanted in (True, False):
    for logging in ("stdout", None):
        print(f"[[{wanted} {logging}", flush=True)
        inference = NPE(prior, show_progress_bars=wanted).append_simulations(theta, theta)
        inference.train(TrainConfig(max_epochs=3), logging=logging)
        print("]]", flush=True)
"""

BAR, LINES, SBIS = r"3/3 \[", r"\n *3  +-?\d+\.\d{4} ", "Training neural network"


def _in_a_terminal(script: str) -> str:
    """Return what a script shows in a terminal of 120 columns."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    process = forking.start("-c", script, terminal=follower)
    os.close(follower)
    shown = b""
    with os.fdopen(leader, "rb", buffering=0) as screen:
        while True:
            try:
                data = screen.read(65536)
            except OSError:  # how Linux says that nobody writes any more
                break
            if not data:
                break
            shown += data
    assert process.wait() == 0, shown.decode()
    return shown.decode()


def _what_was_shown(text: str) -> dict[str, list[bool]]:
    """Return for each training whether bar, lines and sbi's own progress were shown."""
    parts = re.findall(r"\[\[(\w+ \w+)(.*?)\]\]", text, re.DOTALL)
    return {
        name: [bool(re.search(sign, shown)) for sign in (BAR, LINES, SBIS)] for name, shown in parts
    }


@pytest.mark.slow
def test_a_terminal_shows_exactly_one_of_bar_and_lines() -> None:
    """The bar where it is welcome, else the lines, and sbi's progress only without ours."""
    assert _what_was_shown(_in_a_terminal(_ON_SCREEN)) == {
        "True stdout": [True, False, False],
        "True None": [False, False, True],
        "False stdout": [False, True, False],
        "False None": [False, False, False],
    }


def test_a_log_file_shows_lines_whatever_is_welcome() -> None:
    """A cluster's log file has no use for a bar."""
    done = run_script(_ON_SCREEN)
    shown = _what_was_shown(done.stdout)
    assert shown["True stdout"] == shown["False stdout"] == [False, True, False]
    assert "3/3" not in done.stderr


# --- kills

_KILLED = """
import os, signal, sys
import torch
from pathlib import Path
from sbi.utils import BoxUniform
import sbi_ignite.loggers.group
from sbi_ignite import NPE, TrainConfig
from tests.loggers.small import AfterEpoch
from tests.loggers.test_trainers import _places
sbi_ignite.loggers.group.MAX_WAIT_SECONDS = 90.0
torch.manual_seed(0)
prior = BoxUniform(-torch.ones(2), torch.ones(2))
theta = prior.sample((100,))
number, names = int(sys.argv[1]), sys.argv[2].split(",")
inference = NPE(prior, show_progress_bars=False).append_simulations(theta, theta)
inference.train(
    TrainConfig(max_epochs=6, batch_size=50),
    logging=_places(Path.cwd(), names),
    callbacks=[AfterEpoch(4, lambda: os.kill(os.getpid(), number))] if number else [],
    checkpoint={checkpoint},
)
print("trained", inference.training_summary.epochs_trained)
"""


def _script(number: int, names: Any, checkpoint: str | None = "run") -> Any:
    text = _KILLED.replace("{checkpoint}", repr(checkpoint))
    return forking.run("-c", text, str(number), ",".join(names))


@pytest.mark.parametrize(
    "names", [PLACES[:2], pytest.param(PLACES[2:], marks=pytest.mark.slow)], ids="-".join
)
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_killed_script_continues_its_runs(number: int, names: Any, tmp_path: Path) -> None:
    """Killed in epoch 4, started again: epochs 1-6 and iterations 1-12, each once, in one run."""
    killed = _script(number, names)
    assert killed.returncode in (-number, 128 + number), killed.stderr
    _closed(tmp_path, names)
    done = _script(0, names)
    assert done.stdout.endswith("trained 6\n"), done.stderr
    for name in names:
        epochs, iterations = _held(tmp_path, name)
        assert epochs == [1, 2, 3, 4, 5, 6], name
        assert iterations == list(range(1, 13)), name


def _closed(folder: Path, names: Any) -> None:
    """Wait until the processes that log have noticed the kill."""
    if "wandb" in names:
        wait_until(lambda: read.wandb_records(folder, "exit"))
    if "mlflow" in names:
        wait_until(lambda: _status(folder) in ("KILLED", "FAILED", "FINISHED"))


def _status(folder: Path) -> str | None:
    """Return the status of the only run, None while its store is being made."""
    try:
        rows = read.sqlite(f"sqlite:///{folder}/m.db", "select status from runs")
    except sqlite3.Error:
        return None
    return rows[0][0] if rows else None


@pytest.mark.parametrize("checkpoint", [None, pytest.param("run", marks=pytest.mark.slow)])
def test_sigterm_closes_the_runs_as_killed(checkpoint: str | None, tmp_path: Path) -> None:
    """With and without a run directory; what was logged before is readable."""
    ended = _script(signal.SIGTERM, PLACES, checkpoint)
    assert ended.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM), ended.stderr
    _closed(tmp_path, PLACES)
    assert [record.exit_code for record in read.wandb_records(tmp_path, "exit")] == [255]
    assert _status(tmp_path) == "KILLED"
    for name in PLACES:
        epochs, _ = _held(tmp_path, name)
        assert epochs[:3] == [1, 2, 3], name
    last = (tmp_path / "j" / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"status": "killed"' in last


@pytest.mark.usefixtures("patient")
def test_mlflow_holds_the_settings_of_every_round(tmp_path: Path) -> None:
    """Parameters of a run cannot change, so those of a later round stand beside the first."""
    uri = f"sqlite:///{tmp_path}/m.db"
    logging = LoggingConfig("mlflow", tracking_uri=uri)
    inference, args = _ready(), LossArgsNPE(force_first_round_loss=True)
    inference.train(TrainConfig(max_epochs=1, batch_size=50), args, logging=logging)
    inference.train(
        TrainConfig(max_epochs=1, batch_size=20, optimizer="sgd"), args, logging=logging
    )
    inference.train(
        TrainConfig(max_epochs=1, batch_size=20, optimizer="adam"), args, logging=logging
    )
    found = read.mlflow_parameters(uri, read.only_mlflow_run_id(uri))
    assert (found["train.batch_size"], found["train.optimizer"]) == ("50", "adam")
    assert (found["call-2.train.batch_size"], found["call-2.train.optimizer"]) == ("20", "sgd")
    assert found["call-3.train.optimizer"] == "adam"
    assert "call-3.train.batch_size" not in found


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_mlflow_keeps_what_only_a_later_round_has_set_under_that_round(tmp_path: Path) -> None:
    """The first round did not have it, so it must not stand among the first round's."""
    uri = f"sqlite:///{tmp_path}/m.db"
    logging = LoggingConfig("mlflow", tracking_uri=uri)
    inference, args = _ready(), LossArgsNPE(force_first_round_loss=True)
    first: dict[str, Any] = {"max_epochs": 1, "batch_size": 50}
    inference.train(TrainConfig(**first), args, logging=logging)
    inference.train(TrainConfig(**first, ema_decay=0.9, max_time=600.0), args, logging=logging)
    inference.train(
        TrainConfig(**first, ema_decay=0.5, lr_schedule="cosine"), args, logging=logging
    )
    found = read.mlflow_parameters(uri, read.only_mlflow_run_id(uri))
    names = {name for name in found if "ema_decay" in name}
    assert names == {
        "call-2.train.ema_decay",
        "call-2.origin.train.ema_decay",
        "call-3.train.ema_decay",
    }
    assert (found["call-2.train.ema_decay"], found["call-3.train.ema_decay"]) == ("0.9", "0.5")
    assert found["call-2.origin.train.ema_decay"].startswith("call ")
    assert found["call-3.train.max_time"] == "None"
    assert {name for name in found if name.startswith("train.lr_schedule")} <= {
        "train.lr_schedule",
        "train.lr_schedule.kind",
    }
    assert "train.max_time" not in found
