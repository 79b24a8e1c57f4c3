"""A wall clock that is set back in mid-training changes neither durations nor orders."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sbi_ignite import Callback, CheckpointConfig, LoggingConfig, TrainConfig, TrainingState
from sbi_ignite.loggers import base, make_loggers, tensorboard
from sbi_ignite.loggers.clock import Clock, now
from tests.loggers import read
from tests.loggers.small import Play, trained
from tests.small import METHODS, SBI_WARNS, ready, train

pytestmark = SBI_WARNS

HOUR = 3600.0


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Return what moves the wall clock of this process by some seconds."""
    real, offset = time.time, [0.0]
    real_ns = time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(offset[0] * 1e9))

    def move(seconds: float) -> None:
        offset[0] += seconds

    with pytest.MonkeyPatch.context() as patch:
        # And back to what it was before any of this.
        patch.setattr(now, "_latest", (real(), time.monotonic()))
        yield move


class _SetBack(Callback):
    """Sets the clock back by an hour in the middle of each of the first epochs."""

    def __init__(self, set_clock: Callable[[float], None]) -> None:
        self._set_clock, self._left = set_clock, 3

    def attach(self, engine: Any) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED, self._set)

    def _set(self) -> None:
        if self._left:
            self._left -= 1
            self._set_clock(-HOUR)


def _in_order(times: list[float], began: float, name: str) -> None:
    """See that all are real times of the training, none before the one before it."""
    assert len(times) > 3, name
    assert times == sorted(times), name
    # Time stamps of milliseconds are cut off.
    assert began - 0.001 <= times[0] <= times[-1] <= began + 300, name


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_every_timestamp_is_real_and_none_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_clock: Callable[[float], None]
) -> None:
    """TensorBoard, wandb and MLflow, of epochs, of iterations and of the results."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    uri, began = f"sqlite:///{tmp_path}/m.db", time.time()
    configs = [
        LoggingConfig("tensorboard", log_dir=tmp_path / "tb", every_n_iterations=1),
        LoggingConfig("wandb", mode="offline", every_n_iterations=1),
        LoggingConfig("mlflow", tracking_uri=uri, every_n_iterations=1),
    ]
    outcome = trained(configs, do=_SetBack(set_clock))
    assert outcome.warnings == []
    assert all(0 <= seconds < 100 for seconds in outcome.summary.epoch_durations_sec)

    for folder, tag in ((tmp_path / "tb", "training_loss"), (tmp_path / "tb/iterations", None)):
        events = EventAccumulator(str(folder)).Reload()
        points = events.Scalars(tag or "iteration_loss")
        _in_order([point.wall_time for point in points], began, str(folder))
    rows = read.wandb_rows(tmp_path)
    _in_order([row["_timestamp"] for row in rows if "epoch" in row], began, "wandb epochs")
    _in_order([row["_timestamp"] for row in rows if "iteration" in row], began, "wandb iterations")
    query = "select timestamp / 1000.0 from metrics where key = ? order by step"
    for name in ("training_loss", "iteration_loss"):
        _in_order([t for (t,) in read.sqlite(uri, query, name)], began, f"mlflow {name}")
    ((start, end),) = read.sqlite(uri, "select start_time / 1000.0, end_time / 1000.0 from runs")
    results = [t for (t,) in read.sqlite(uri, query, "best_epoch")]
    assert began - 0.001 <= start <= results[0] <= end <= began + 300


def test_durations_of_every_method_are_those_of_the_steady_clock(
    set_clock: Callable[[float], None],
) -> None:
    """Our summary's, and sbi's own, which it computes from the wall clock; both forms."""
    for method, typed in itertools.product(METHODS, (False, True)):
        trainer = ready(method, 60)
        arguments = {"train_config": TrainConfig(max_epochs=3)} if typed else {"max_num_epochs": 2}
        train(trainer, callbacks=[_SetBack(set_clock)], **arguments)
        ours = trainer.training_summary.epoch_durations_sec
        sbis = trainer._summary["epoch_durations_sec"]
        assert len(ours) == len(sbis) == 3, method
        assert all(0 <= seconds < 100 for seconds in (*ours, *sbis)), method


def test_a_restart_under_an_earlier_clock_continues_the_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_clock: Callable[[float], None]
) -> None:
    """Readers take event files in the order of their names, which go on counting."""
    config = LoggingConfig("tensorboard", log_dir=tmp_path)
    first = Play(make_loggers([config])).epochs(3)
    identity = first.loggers.state_dict()
    first.epochs(2).loggers.fail(KeyboardInterrupt())
    set_clock(-HOUR)
    monkeypatch.setattr(tensorboard, "now", Clock())  # as in a new process
    Play(make_loggers([config]), epochs_done=3, identity=identity).epochs(3).end()
    assert [step for step, _ in read.tensorboard(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_training_resumed_under_an_earlier_clock_takes_the_newest_checkpoint(
    tmp_path: Path, set_clock: Callable[[float], None]
) -> None:
    """Checkpoints are numbered by their steps, whatever the times of the files are."""
    checkpoint = CheckpointConfig(tmp_path / "run")
    trained((), epochs=2, checkpoint=checkpoint)
    for number, path in enumerate(sorted((tmp_path / "run").glob("checkpoint-*.pt"))):
        os.utime(path, (1e9 - number, 1e9 - number))
    set_clock(-24 * HOUR)
    outcome = trained((), epochs=4, checkpoint=checkpoint)
    assert outcome.summary.resumed_from_epoch == 2
    assert all(0 <= seconds < 100 for seconds in outcome.summary.epoch_durations_sec)


def test_names_of_runs_differ_while_the_clock_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "20000101-000000")
    assert len({base.new_run_name("NPE") for _ in range(2000)}) == 2000


def test_a_time_limit_counts_the_seconds_that_pass(set_clock: Callable[[float], None]) -> None:
    """Neither a clock set forward ends a training, nor does one set back prolong it."""

    class Forward(Callback):
        def on_epoch_end(self, state: TrainingState) -> None:
            set_clock(state.epoch % 2 * 48 * HOUR - 24 * HOUR)

    trainer = ready("NPE_C", 60)
    train(trainer, TrainConfig(max_epochs=3, max_time=3600), callbacks=[Forward()])
    assert trainer.training_summary.stop_reason == "max_epochs"
