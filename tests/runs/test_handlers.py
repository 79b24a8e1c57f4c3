"""Trainings are saved when they should be, and end cleanly on signals and when time is up."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from datetime import timedelta

import pytest
import torch
from ignite.engine import Engine, Events

from sbi_ignite.callback import TrainingState
from sbi_ignite.exceptions import SbiIgniteWarning
from sbi_ignite.handlers.checkpoint import CheckpointHandler
from sbi_ignite.handlers.signals import StopOnSignals
from sbi_ignite.handlers.time_limit import TimeLimit
from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.snapshot import Snapshot
from sbi_ignite.settings import CheckpointConfig

EPOCH_LENGTH = 4


class Training:
    """A training engine that does nothing but count, and what handlers need."""

    def __init__(self, step=lambda iteration: None):
        self.state = TrainingState(model=None)
        self.engine = Engine(lambda engine, batch: step(engine.state.iteration))

        @self.engine.on(Events.ITERATION_COMPLETED)
        def count(engine):
            self.state.iteration = engine.state.iteration

        @self.engine.on(Events.EPOCH_COMPLETED)
        def record(engine):
            self.state.epoch = engine.state.epoch
            columns = [n for n, v in vars(self.state.history).items() if isinstance(v, list)]
            self.state.history.append(**dict.fromkeys(columns, float(self.state.epoch)))

    def take(self):
        position = self.state.iteration
        return Snapshot.of({"position": position, "weight": torch.tensor(position)})

    def run(self, epochs=5):
        self.engine.run(range(EPOCH_LENGTH), max_epochs=epochs)


def saved(directory):
    """Return epochs and iterations of all checkpoints."""
    directory.wait()
    heads = [f.read_bytes().partition(b"\n")[0] for f in sorted(directory.path.glob("check*.pt"))]
    return [(head["epoch"], head["iteration"]) for head in map(json.loads, heads)]


def rows(directory):
    """Return the rows of metrics.jsonl."""
    text = (directory.path / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def attach(training, directory, background=True, mid_epoch=True, **config):
    handler = CheckpointHandler(
        directory,
        CheckpointConfig(directory.path, **config),
        training.take,
        training.state,
        mid_epoch,
        background,
    )
    handler.start()
    handler.attach(training.engine)
    return handler


@pytest.fixture
def directory(tmp_path):
    with RunDirectory.open(tmp_path, keep_last=100) as directory:
        yield directory


# --- checkpoints


@pytest.mark.parametrize("background", [False, True])
def test_every_epoch_is_saved_by_default(directory, background):
    """Each checkpoint holds the states of the end of its epoch."""
    training = Training()
    attach(training, directory, background)
    training.run(3)
    assert saved(directory) == [(1, 4), (2, 8), (3, 12)]
    assert directory.latest().states == {"position": 12, "weight": torch.tensor(12), "stop": None}


def test_every_nth_epoch_and_the_last_are_saved(directory):
    """`finish` adds the end of a training that fell between two checkpoints, once."""
    training = Training()
    handler = attach(training, directory, every_epochs=2)
    training.run(5)
    assert saved(directory) == [(2, 8), (4, 16)]
    handler.finish()
    handler.finish()
    assert saved(directory) == [(2, 8), (4, 16), (5, 20)]


def test_long_epochs_are_saved_by_the_clock(directory, monkeypatch):
    """After `every_seconds` a checkpoint comes between two batches, but not before validation."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def step(iteration):
        clock[0] += 1.0

    training = Training(step)
    attach(training, directory, background=False, every_seconds=3.0, every_epochs=1000)
    training.run(3)
    # Due at 3, 6, 9, 12; iteration 12 ends an epoch and is saved once that is validated.
    assert saved(directory) == [(0, 3), (1, 6), (2, 9), (3, 12)]


def test_without_positions_inside_the_epoch_only_epochs_are_saved(directory):
    """A loader that cannot continue between batches is saved at the end of epochs alone."""
    training = Training()
    attach(training, directory, mid_epoch=False, every_seconds=1e-9)
    training.run(2)
    assert saved(directory) == [(1, 4), (2, 8)]


def test_a_request_to_stop_by_the_user_is_saved_with_the_epoch(directory):
    """A later start does not train on after a stop that no rule would repeat."""
    training = Training()

    @training.engine.on(Events.EPOCH_COMPLETED)
    def stop(engine):
        training.state.stop("enough")
        engine.terminate()

    attach(training, directory, every_epochs=100)
    training.run()
    states = directory.latest().states
    assert states["stop"] == {"reason": "callback", "message": "enough"}


@pytest.mark.parametrize("reason", ["signal", "time_limit", "patience", "max_epochs"])
def test_other_reasons_to_stop_are_left_to_the_next_start(directory, reason):
    """Budgets and patience may have grown, and signals are over."""
    training = Training()
    handler = attach(training, directory)
    training.state.stop(reason)
    handler.finish()
    assert directory.latest().states["stop"] is None


def test_metrics_have_one_line_per_epoch(directory):
    """Lines come as epochs end, and a new start begins with those of its history."""
    training = Training()
    attach(training, directory)
    training.run(3)
    lines = rows(directory)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[1]["training_loss"] == 2.0

    resumed = Training()
    for epoch in (1.0, 2.0):
        columns = [n for n, v in vars(resumed.state.history).items() if isinstance(v, list)]
        resumed.state.history.append(**dict.fromkeys(columns, epoch))
    attach(resumed, directory)
    assert len((directory.path / "metrics.jsonl").read_text().splitlines()) == 2


def test_metrics_are_complete_again_after_a_full_disk(directory, monkeypatch):
    """Lines that could not be written are written when there is room; one warning was given."""
    training = Training()
    append = directory.append_metrics
    full = {2, 3}

    def fail_sometimes(row):
        if row["epoch"] in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(row)

    def fail_always(rows):
        if training.state.epoch in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(rows)

    original = directory.set_metrics
    monkeypatch.setattr(directory, "append_metrics", fail_sometimes)
    monkeypatch.setattr(directory, "set_metrics", fail_always)
    attach(training, directory, every_epochs=1000)
    with pytest.warns(SbiIgniteWarning, match="No space left") as caught:
        training.run(5)
    assert len(caught) == 1
    lines = rows(directory)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]


# --- signals


def kill_at(*iterations, number=signal.SIGTERM):
    """Return a step that sends this process a signal."""

    def step(iteration):
        if iteration in iterations:
            os.kill(os.getpid(), number)

    return step


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_ends_training_after_its_batch_with_a_checkpoint(directory, name):
    """The reason is "signal", the checkpoint lies inside the epoch, and the handler comes back."""
    number = getattr(signal, name)
    before = signal.getsignal(number)
    training = Training(kill_at(6, number=number))
    signals = StopOnSignals(training.state)
    signals.attach(training.engine)
    attach(training, directory)
    with signals:
        training.run()
    assert training.state.stop_reason == "signal"
    assert signals.received == number
    assert signals.exit_code == 128 + number
    assert saved(directory) == [(1, 4), (1, 6)]
    assert signal.getsignal(number) is before


def test_after_the_last_batch_of_an_epoch_the_epoch_is_ended_first(directory):
    """Validation is not lost: the checkpoint is that of the finished epoch."""
    training = Training(kill_at(8))
    signals = StopOnSignals(training.state)
    signals.attach(training.engine)
    attach(training, directory)
    with signals:
        training.run()
    assert training.state.stop_reason == "signal"
    assert saved(directory) == [(1, 4), (2, 8)]


def test_a_signal_during_validation_ends_training_after_that_epoch(directory):
    """No further batch is trained."""
    training = Training()
    training.engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    signals = StopOnSignals(training.state)
    signals.attach(training.engine)
    attach(training, directory)
    with signals:
        training.run()
    assert saved(directory) == [(1, 4)]


@pytest.mark.parametrize(
    ("own", "only_deadly"),
    [(lambda number, frame: None, True), (signal.SIG_IGN, True), (signal.SIG_IGN, False)],
    ids=["handled", "ignored", "ignored, with a run directory"],
)
def test_signals_that_are_ignored_or_left_to_somebody_do_not_end_training(own, only_deadly):
    """Training goes on after what its user ignores, or has an answer of his own to."""
    before = signal.signal(signal.SIGTERM, own)
    try:
        training = Training(kill_at(2))
        signals = StopOnSignals(training.state, ("SIGTERM",), only_deadly)
        signals.attach(training.engine)
        with signals:
            training.run(2)
        assert signals.received is None
        assert training.state.epoch == 2
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_deadly_signals_end_training_after_the_batch():
    """Where nobody handles SIGTERM, it would have ended the process."""
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    training = Training(kill_at(2))
    signals = StopOnSignals(training.state, ("SIGTERM",), only_deadly=True)
    signals.attach(training.engine)
    with signals:
        training.run(2)
    assert training.state.iteration == 2
    with pytest.raises(SystemExit, match="143"):
        signals.pass_on()


def test_a_second_ctrl_c_stops_at_once():
    """It raises KeyboardInterrupt in the middle of the batch, and the handler comes back."""
    before = signal.getsignal(signal.SIGINT)

    def step(iteration):
        if iteration == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the batch went on")

    training = Training(step)
    with pytest.raises(KeyboardInterrupt), StopOnSignals(training.state):
        training.run()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_after_sigterm_is_a_first_one():
    """Only Ctrl-C pressed twice interrupts a batch."""
    training = Training()
    with StopOnSignals(training.state) as signals:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.raise_signal(number)
        assert signals.received == signal.SIGINT


def test_users_own_handlers_come_back():
    """Whatever was installed before is installed again, also after an error."""
    calls = []
    original = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    try:
        with pytest.raises(ZeroDivisionError), StopOnSignals(TrainingState(model=None)):
            raise ZeroDivisionError
        signal.raise_signal(signal.SIGTERM)
        assert calls == [1]
    finally:
        signal.signal(signal.SIGTERM, original)


def test_in_a_worker_thread_signals_are_left_alone(directory):
    """Training runs there as always; python would refuse to install handlers."""
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    training = Training()
    seen = []

    def work():
        with StopOnSignals(training.state) as signals:
            signals.attach(training.engine)
            attach(training, directory)
            seen.extend(signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT))
            training.run(2)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == before[:2]
    assert saved(directory) == [(1, 4), (2, 8)]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def test_platforms_without_sigusr1_are_fine(monkeypatch):
    """The other signals are taken."""
    monkeypatch.delattr(signal, "SIGUSR1")
    with StopOnSignals(TrainingState(model=None)) as signals:
        signal.raise_signal(signal.SIGTERM)
    assert signals.received == signal.SIGTERM


# --- time limit


@pytest.mark.parametrize(
    ("seconds", "checkpoints"),
    [(0.5, [(0, 1)]), (6, [(1, 4), (1, 6)]), (8, [(1, 4), (2, 8)]), (1e9, [(1, 4), (2, 8)])],
)
def test_the_time_limit_ends_training_after_the_batch(directory, seconds, checkpoints):
    """Inside an epoch at once, after its last batch when it is validated; a long one never."""
    clock = [100.0]

    def step(iteration):
        clock[0] += 1.0

    training = Training(step)
    limit = TimeLimit(timedelta(seconds=seconds), training.state, clock=lambda: clock[0])
    limit.attach(training.engine)
    attach(training, directory)
    training.run(2)
    assert saved(directory) == checkpoints
    assert limit.is_up == (seconds < 9)
    assert training.state.stop_reason == ("time_limit" if limit.is_up else None)
