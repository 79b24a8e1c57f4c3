"""Signals end a training cleanly, and handlers that users have installed still hear of them."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import nn

from sbi_ignite import Callback, TrainConfig, load_run, run_training

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


class Sends(Callback):
    """Sends signals to this process at the end of the second epoch."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def on_epoch_end(self, state):
        if state.epoch == 2:
            for number in self.numbers:
                os.kill(os.getpid(), number)


class Heard:
    """A handler of a user's, which notes in what state it finds the run."""

    def __init__(self, directory, error=None):
        self.directory, self.error = directory, error
        self.calls = []

    def __call__(self, number, frame):
        status = load_run(self.directory).status
        self.calls.append((number, status, frame is not None))
        if self.error is not None:
            raise self.error


@pytest.fixture
def install():
    """Installs handlers, checks at the end that they are in place again, and removes them."""
    before, mine = {}, {}

    def install(number, handler):
        before[number], mine[number] = signal.signal(number, handler), handler

    yield install
    found = {number: signal.signal(number, original) for number, original in before.items()}
    assert found == mine


def train(directory, *numbers):
    batches = [(torch.ones(4, 2), torch.zeros(4, 1))] * 3
    run_training(
        TrainConfig(max_epochs=5),
        nn.Linear(2, 1),
        lambda model, batch: (model(batch[0]) - batch[1]).square().mean(dim=1),
        batches,
        callbacks=[Sends(*numbers)],
        checkpoint=directory,
    )


def end_of(number):
    return KeyboardInterrupt if number == signal.SIGINT else SystemExit


@pytest.mark.parametrize("number", SIGNALS)
def test_a_users_handler_is_called_when_the_run_is_saved(number, install, tmp_path):
    """Then the process ends as without it; see the fixture for what is in place afterwards."""
    heard = Heard(tmp_path / "run")
    install(number, heard)
    with pytest.raises(end_of(number)) as caught:
        train(tmp_path / "run", number)
    assert heard.calls == [(number, "interrupted", True)]
    if number != signal.SIGINT:
        assert caught.value.code == 128 + number
    assert len(load_run(tmp_path / "run").metrics) == 2


@pytest.mark.parametrize("number", SIGNALS)
def test_what_a_users_handler_raises_ends_the_call(number, install, tmp_path):
    heard = Heard(tmp_path / "run", ZeroDivisionError("mine"))
    install(number, heard)
    with pytest.raises(ZeroDivisionError, match="mine"):
        train(tmp_path / "run", number)
    assert heard.calls == [(number, "interrupted", True)]


def test_a_process_that_ends_while_torchs_handler_is_put_back_is_no_error(monkeypatch):
    from sbi_ignite.handlers.signals import _WorkerErrors

    def torchs(number, frame):
        raise AssertionError("no worker has died")

    torchs.__module__ = "torch.utils.data._utils.signal_handling"
    errors, before, install = _WorkerErrors(), signal.getsignal(signal.SIGCHLD), signal.signal
    install(signal.SIGCHLD, torchs)
    try:
        errors.hold()

        def while_a_process_ends(number, handler):
            if handler is torchs:
                errors._child_ended(number, None)
            return install(number, handler)

        monkeypatch.setattr(signal, "signal", while_a_process_ends)
        with errors.torch_in_charge(), errors.allowed():
            pass
        errors.let_go()
        assert signal.getsignal(signal.SIGCHLD) is torchs
    finally:
        install(signal.SIGCHLD, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_log_says_that_all_is_saved_and_how_to_continue(number, tmp_path, caplog):
    """Once; a training that is complete has nothing to say."""
    with pytest.raises(end_of(number)):
        train(tmp_path / "run", number)
    said = [record.getMessage() for record in caplog.records if "saved" in record.getMessage()]
    assert said == [
        f"{signal.Signals(number).name} ended training after 2 epochs. All is saved in "
        f"{tmp_path / 'run'}: the same script, started again, continues there."
    ]
    caplog.clear()
    train(tmp_path / "run")
    assert not [record for record in caplog.records if "saved" in record.getMessage()]


def test_two_signals_reach_their_handlers_in_their_order(install, tmp_path):
    heard = Heard(tmp_path / "run")
    install(signal.SIGUSR1, heard)
    install(signal.SIGTERM, heard)
    with pytest.raises(SystemExit):
        train(tmp_path / "run", signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM)
    assert [number for number, *_ in heard.calls] == [signal.SIGUSR1, signal.SIGTERM]


def test_a_second_ctrl_c_reaches_the_users_handler_at_once(install, tmp_path):
    """Only once, and the training stops without saving more."""
    heard = Heard(tmp_path / "run", ZeroDivisionError("mine"))
    install(signal.SIGINT, heard)
    with pytest.raises(ZeroDivisionError, match="mine"):
        train(tmp_path / "run", signal.SIGINT, signal.SIGINT)
    assert heard.calls == [(signal.SIGINT, "running", True)]


def test_a_training_that_fails_after_a_signal_tells_the_users_handler(install, tmp_path):
    heard = Heard(tmp_path / "run")
    install(signal.SIGTERM, heard)

    class Fails(Callback):
        def on_epoch_end(self, state):
            os.kill(os.getpid(), signal.SIGTERM)
            raise ZeroDivisionError("a crash")

    with pytest.raises(ZeroDivisionError, match="a crash"):
        run_training(
            TrainConfig(max_epochs=5),
            nn.Linear(2, 1),
            lambda model, batch: model(batch[0]).square().mean(dim=1),
            [(torch.ones(4, 2),)] * 3,
            callbacks=[Fails()],
            checkpoint=tmp_path / "run",
        )
    assert heard.calls == [(signal.SIGTERM, "failed", True)]
