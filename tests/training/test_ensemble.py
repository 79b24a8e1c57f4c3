"""Trainings that share one pass over the data end as each would alone."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sbi_ignite import (
    ArgumentError,
    CheckpointConfig,
    CheckpointMismatchError,
    DataError,
    EarlyStopping,
    LoggingConfig,
    NonFiniteLossError,
    SbiIgniteWarning,
    TrainConfig,
    TrainingSummary,
)
from sbi_ignite.data.foreign import ForeignBatches
from sbi_ignite.data.in_memory import OrderedBatches, SbiOrderBatches, ShuffledBatches
from sbi_ignite.handlers.callbacks import as_callbacks
from sbi_ignite.settings import resolve
from sbi_ignite.training.ensemble import run_together
from sbi_ignite.training.run import run
from sbi_ignite.training.shared_pass import SharedPass
from sbi_ignite.training.training import assemble
from tests import forking
from tests.small import same

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
Y = X.sum(dim=1, keepdim=True) + 0.5
TRAIN, HELD_OUT = torch.arange(32), torch.arange(32, 40)


def squared_error(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(dim=1)


def noisy(model, batch):
    """Losses that draw from all three generators."""
    x, y = batch
    shift = 0.1 * torch.randn_like(x) + 0.01 * np.random.normal()
    return (model(x + shift) - y).square().mean(dim=1)


class DrawsInValidation:
    def __call__(self, model, batch):
        return squared_error(model, batch)

    def validate(self, model, batch):
        return noisy(model, batch)


def changes_its_batch(model, batch):
    batch[0].mul_(0.5)
    return squared_error(model, batch)


LOSSES = {
    "plain": squared_error,
    "draws": noisy,
    "draws in validation": DrawsInValidation(),
    "changes its batch": changes_its_batch,
}


def shuffled():
    return ShuffledBatches((X, Y), TRAIN, 8, seed=5)


def as_sbi():
    return SbiOrderBatches((X, Y), TRAIN, 8)


def loader():
    return ForeignBatches(DataLoader(TensorDataset(X[:32], Y[:32]), batch_size=8, shuffle=True))


def mlp(dropout=0.2):
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))


def member(number, batches, loss=squared_error, dropout=0.2, callbacks=None, rules=None, **config):
    """Assemble training number `number`: network, learning rate and random state are its own."""
    torch.manual_seed(100 + number)
    np.random.seed(100 + number)
    checkpoint, logging = config.pop("checkpoint", None), config.pop("logging", None)
    defaults = {"learning_rate": 0.01 * (number + 1), "max_epochs": 4}
    settings = resolve(
        train=TrainConfig(**{**defaults, **config}),
        early_stopping=rules,
        checkpoint=checkpoint,
        logging=logging,
    )
    return assemble(
        settings,
        mlp(dropout),
        loss,
        batches,
        OrderedBatches((X, Y), HELD_OUT, 4),
        callbacks=as_callbacks(callbacks),
    )


def together(trainings):
    """Run trainings together, all of which are to end with a summary."""
    outcomes = run_together(trainings)
    summaries = [outcome for outcome in outcomes if isinstance(outcome, TrainingSummary)]
    assert len(summaries) == len(trainings)
    return summaries


def equal(summary, other):
    """Return whether two summaries say the same, but for time and place."""
    apart = {"epoch_durations_sec", "run_directory", "resumed_from_epoch", "config"}
    a, b = ({n: v for n, v in s.to_dict().items() if n not in apart} for s in (summary, other))
    return str(a) == str(b)


def check_against_alone(make, trainings, outcomes, batches=shuffled):
    """Check that each training has ended as `make(number, batches)` does by itself."""
    for number, (training, outcome) in enumerate(zip(trainings, outcomes, strict=True)):
        twin = make(number, batches())
        summary = run(twin)
        assert equal(outcome, summary)
        assert same(training.model, twin.model)


# --- as each would alone


@pytest.mark.parametrize("sbi_compat", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_each_ends_bit_for_bit_as_it_does_alone(loss, sbi_compat):
    """With dropout, schedules, averages, and losses that draw random numbers."""
    own = [
        {"lr_schedule": "cosine"},
        {"ema_decay": 0.9},
        {"lr_schedule": "plateau", "optimizer": "adamw"},
    ]

    def make(number, batches):
        extra = {} if sbi_compat else own[number]
        return member(number, batches, LOSSES[loss], sbi_compat=sbi_compat, **extra)

    one_pass = SharedPass(shuffled())
    trainings = [make(number, one_pass.share()) for number in range(3)]
    outcomes = together(trainings)
    check_against_alone(make, trainings, outcomes)
    assert not same(trainings[0].model, trainings[1].model)


@pytest.mark.parametrize("batches", [as_sbi, loader])
def test_rows_whose_order_is_drawn_come_as_in_a_training_begun_where_the_pass_was_made(batches):
    def make(number, source):
        training = member(number, source, dropout=0.0)
        torch.manual_seed(9)
        return training

    torch.manual_seed(9)
    one_pass = SharedPass(batches())
    trainings = [make(number, one_pass.share()) for number in range(2)]
    check_against_alone(make, trainings, run_together(trainings), batches)


@pytest.mark.parametrize("batches", [as_sbi, loader])
def test_draws_of_a_training_move_no_rows(batches):
    """Neither its own nor another one's: with noise, each still gets the same order of rows."""

    def seen(losses):
        torch.manual_seed(9)
        one_pass, watched = SharedPass(batches()), []
        for number, loss in enumerate(losses):
            callback = Seen()
            watched.append((member(number, one_pass.share(), loss, callbacks=callback), callback))
        run_together([training for training, _ in watched])
        return [callback.rows for _, callback in watched]

    quiet, loud = seen([squared_error]), seen([noisy, squared_error, noisy])
    assert loud == [quiet[0]] * 3
    assert len(quiet[0]) == 16


class Seen:
    """Keeps the first number of every batch."""

    def __init__(self):
        self.rows = []

    def attach(self, engine):
        engine.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine: self.rows.append(engine.state.batch[0][0, 0].item()),
        )


class Counted:
    """A loader that counts what it is asked for."""

    def __init__(self, promised=4, length=4):
        self.promised, self.length = promised, length
        self.passes = self.fetched = 0

    def __len__(self):
        return self.promised

    def __iter__(self):
        self.passes += 1
        for i in range(self.length):
            self.fetched += 1
            yield X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]


def test_each_batch_is_fetched_once_for_all():
    source = Counted()
    one_pass = SharedPass(ForeignBatches(source))
    run_together([member(number, one_pass.share()) for number in range(4)])
    assert (source.passes, source.fetched) == (4, 16)


def test_one_that_stops_leaves_and_the_others_go_on():
    patience, limits = [2, 50, 50], [30, 30, 5]

    def make(number, batches):
        rule = EarlyStopping.validation_loss(patience[number])
        rates = {"learning_rate": 1.0} if number == 0 else {}
        return member(number, batches, rules=rule, max_epochs=limits[number], **rates)

    source = Counted()
    one_pass = SharedPass(ForeignBatches(source))
    trainings = [make(number, one_pass.share()) for number in range(3)]
    outcomes = together(trainings)
    assert [summary.stop_reason for summary in outcomes] == ["patience", "max_epochs", "max_epochs"]
    assert outcomes[0].epochs_trained < 29
    assert [summary.epochs_trained for summary in outcomes[1:]] == [30, 5]
    assert source.fetched == 30 * 4
    check_against_alone(make, trainings, outcomes, lambda: ForeignBatches(Counted()))


def test_the_random_states_of_the_process_stay_as_they_are():
    one_pass = SharedPass(as_sbi())
    trainings = [member(number, one_pass.share(), noisy) for number in range(2)]
    torch.manual_seed(3)
    np.random.seed(3)
    run_together(trainings)
    drawn = torch.rand(1).item(), np.random.normal()
    torch.manual_seed(3)
    np.random.seed(3)
    assert drawn == (torch.rand(1).item(), np.random.normal())


def test_each_logs_to_its_own_place(tmp_path):
    def make(number, batches):
        logging = LoggingConfig(backend="jsonl", log_dir=tmp_path / str(number))
        return member(number, batches, logging=logging)

    one_pass = SharedPass(shuffled())
    trainings = [make(number, one_pass.share()) for number in range(2)]
    outcomes = together(trainings)
    for number, outcome in enumerate(outcomes):
        text = "".join(p.read_text() for p in (tmp_path / str(number)).rglob("*.jsonl"))
        assert all(repr(loss) in text for loss in outcome.validation_loss)


def test_a_training_that_shares_its_batches_does_not_run_alone():
    """It could not be resumed, since nobody tells the pass where it stopped."""
    with pytest.raises(ArgumentError, match="run_together"):
        run(member(0, SharedPass(shuffled()).share()))


def test_one_training_alone_never_pauses():
    interrupted = []
    training = member(0, shuffled())
    training.engine.add_event_handler(Events.INTERRUPT, lambda: interrupted.append(1))
    run(training)
    assert not interrupted


# --- when something fails


class Explodes:
    """A loss that is not finite in the third epoch's second batch."""

    def __init__(self):
        self.calls = 0

    def __call__(self, model, batch):
        self.calls += 1
        losses = squared_error(model, batch)
        return losses * math.nan if self.calls == 10 else losses

    def validate(self, model, batch):
        return squared_error(model, batch)


class Hears:
    def __init__(self):
        self.error = None

    def on_exception(self, error, state):
        self.error = error


def test_one_that_fails_is_reported_and_the_others_go_on(tmp_path):
    def make(number, batches):
        loss = Explodes() if number == 1 else noisy
        return member(number, batches, loss, callbacks=hears[number])

    hears = [Hears() for _ in range(3)]
    one_pass = SharedPass(shuffled())
    trainings = [make(number, one_pass.share()) for number in range(3)]
    with pytest.warns(SbiIgniteWarning, match="Training 1 .* NonFiniteLossError: The loss became"):
        outcomes = run_together(trainings)
    error = outcomes[1]
    assert isinstance(error, NonFiniteLossError)
    assert (error.epoch, error.iteration) == (3, 10)
    assert [h.error for h in hears] == [None, error, None]
    assert same(trainings[1].model, trainings[1].best.weights)
    for number in (0, 2):
        twin = make(number, shuffled())
        assert equal(outcomes[number], run(twin))
        assert same(trainings[number].model, twin.model)


def test_an_error_of_a_callback_ends_its_own_training_only():
    class Raises:
        def on_epoch_end(self, state):
            if state.epoch == 2:
                raise KeyError("mine")

    one_pass = SharedPass(shuffled())
    trainings = [
        member(number, one_pass.share(), callbacks=Raises() if number == 0 else None)
        for number in range(2)
    ]
    with pytest.warns(SbiIgniteWarning, match="Training 0 .* KeyError: 'mine'"):
        outcomes = run_together(trainings)
    assert isinstance(outcomes[0], KeyError)
    assert isinstance(outcomes[1], TrainingSummary)
    assert outcomes[1].epochs_trained == 4


def test_the_first_error_is_raised_if_all_fail():
    one_pass = SharedPass(shuffled())
    trainings = [member(number, one_pass.share(), Explodes()) for number in range(2)]
    with pytest.warns(SbiIgniteWarning), pytest.raises(NonFiniteLossError):
        run_together(trainings)


@pytest.mark.parametrize("length", [3, 5])
def test_a_pass_of_another_length_than_promised_is_an_error_of_all(length):
    hears = [Hears() for _ in range(3)]
    one_pass = SharedPass(ForeignBatches(Counted(4, length)))
    trainings = [member(n, one_pass.share(), callbacks=hears[n]) for n in range(3)]
    with pytest.raises(DataError, match=r"expected as many batches as its len\(\) promises"):
        run_together(trainings)
    assert all(isinstance(h.error, DataError) for h in hears)


def test_what_cannot_be_continued_is_refused_before_anything_is_trained(tmp_path):
    run(member(1, shuffled(), checkpoint=CheckpointConfig(tmp_path / "1")))
    one_pass = SharedPass(ShuffledBatches((X + 1, Y), TRAIN, 8, seed=5))
    checkpoints = [CheckpointConfig(tmp_path / str(number)) for number in range(3)]
    trainings = [member(n, one_pass.share(), checkpoint=checkpoints[n]) for n in range(3)]
    with pytest.raises(CheckpointMismatchError):
        run_together(trainings)
    assert not list((tmp_path / "0").glob("checkpoint-*"))
    assert trainings[0].state.iteration == 0


def test_trainings_that_do_not_share_are_refused(tmp_path):
    one_pass, other = SharedPass(shuffled()), SharedPass(shuffled())
    share = one_pass.share()
    for batches in ([shuffled()], [share, share], [share, other.share()]):
        with pytest.raises(ArgumentError, match="SharedPass"):
            run_together([member(number, b) for number, b in enumerate(batches)])
    with pytest.raises(ArgumentError, match="at least one training"):
        run_together([])
    trainings = [
        member(number, one_pass.share(), checkpoint=CheckpointConfig(tmp_path / "same"))
        for number in range(2)
    ]
    with pytest.raises(ArgumentError, match="directory of its own"):
        run_together(trainings)


# --- signals, limits, resume


def many(folder, batches, max_epochs=6, dropout=0.2, callbacks=None):
    """Assemble three trainings that keep their runs below a folder."""
    torch.manual_seed(8)
    one_pass = SharedPass(batches())
    return [
        member(
            number,
            one_pass.share(),
            noisy,
            dropout,
            callbacks,
            max_epochs=max_epochs,
            checkpoint=CheckpointConfig(folder / str(number)),
        )
        for number in range(3)
    ]


def terminate_at(training, iteration):
    """Let the process be terminated when a training has taken so many steps."""
    training.engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=iteration), lambda: os.kill(os.getpid(), signal.SIGTERM)
    )


def check_ends_alike(trainings, outcomes, others, expected):
    assert all(map(equal, outcomes, expected))
    assert all(same(a.model, b.model) for a, b in zip(trainings, others, strict=True))


@pytest.mark.parametrize("batches", [shuffled, as_sbi, loader])
def test_a_signal_saves_all_and_all_continue_exactly(batches, tmp_path):
    undisturbed = many(tmp_path / "whole", batches)
    expected = run_together(undisturbed)

    before = signal.getsignal(signal.SIGTERM)
    trainings = many(tmp_path / "cut", batches)
    terminate_at(trainings[1], 10)
    with pytest.raises(SystemExit) as stopped:
        run_together(trainings)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert [t.state.stop_reason for t in trainings] == ["signal"] * 3
    assert {t.state.iteration for t in trainings} == {10, 11}

    again = many(tmp_path / "cut", batches)
    outcomes = together(again)
    assert {summary.resumed_from_epoch for summary in outcomes} == {2}
    check_ends_alike(again, outcomes, undisturbed, expected)


def test_a_signal_ends_all_even_if_only_one_is_saved(tmp_path):
    one_pass = SharedPass(shuffled())
    saved = member(0, one_pass.share(), checkpoint=CheckpointConfig(tmp_path))
    other = member(1, one_pass.share())
    terminate_at(other, 6)
    with pytest.raises(SystemExit):
        run_together([other, saved])
    assert (saved.state.stop_reason, other.state.stop_reason) == ("signal", "signal")
    assert list(tmp_path.glob("checkpoint-*"))


def test_a_second_ctrl_c_ends_all_at_once_and_all_are_told(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    hears = [Hears() for _ in range(3)]
    one_pass = SharedPass(shuffled())
    trainings = [
        member(
            n, one_pass.share(), callbacks=hears[n], checkpoint=CheckpointConfig(tmp_path / f"{n}")
        )
        for n in range(3)
    ]
    trainings[1].engine.add_event_handler(Events.ITERATION_COMPLETED(once=6), twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_together(trainings)
    assert all(isinstance(h.error, KeyboardInterrupt) for h in hears)
    assert signal.getsignal(signal.SIGINT) is before
    manifests = [(tmp_path / str(n) / "run.json").read_text() for n in range(3)]
    assert all('"interrupted"' in text for text in manifests)


def test_each_has_its_own_time_limit():
    one_pass = SharedPass(shuffled())
    limits = [timedelta(microseconds=1), None]
    trainings = [member(n, one_pass.share(), max_time=limits[n]) for n in range(2)]
    with pytest.warns(SbiIgniteWarning, match="before its first epoch was complete"):
        outcomes = together(trainings)
    assert [summary.stop_reason for summary in outcomes] == ["time_limit", "max_epochs"]
    assert [summary.complete for summary in outcomes] == [False, True]


@pytest.mark.parametrize("batches", [shuffled, as_sbi, loader])
def test_one_that_is_complete_or_ahead_lets_the_others_catch_up(batches, tmp_path):
    """Runs that were saved at different moments end like those that were never interrupted."""
    undisturbed = many(tmp_path / "whole", batches)
    expected = run_together(undisturbed)
    mixed = saved_after(tmp_path, batches, 6, 4, 2)
    # A signal comes while the second waits, before any other checkpoint of it is written.
    cut = many(mixed, batches)
    terminate_at(cut[2], 9)
    with pytest.raises(SystemExit):
        run_together(cut)
    assert [t.state.iteration for t in cut] == [24, 16, 9]
    shutil.copytree(mixed, tmp_path / "without the third")
    two = many(tmp_path / "without the third", batches)[:2]
    check_ends_alike(two, together(two), undisturbed[:2], expected[:2])
    again = many(mixed, batches)
    outcomes = together(again)
    assert [summary.resumed_from_epoch for summary in outcomes] == [6, 4, 2]
    check_ends_alike(again, outcomes, undisturbed, expected)


@pytest.mark.parametrize("batches", [shuffled, loader])
def test_one_that_waits_goes_on_if_the_other_fails_before_it_has_caught_up(batches, tmp_path):
    undisturbed = many(tmp_path / "whole", batches)
    expected = together(undisturbed)
    again = many(saved_after(tmp_path, batches, 6, 4, 2), batches)

    def fail():
        raise KeyError("mine")

    again[2].engine.add_event_handler(Events.ITERATION_COMPLETED(once=10), fail)
    with pytest.warns(SbiIgniteWarning, match="Training 2"):
        outcomes = run_together(again)
    assert isinstance(outcomes[2], KeyError)
    check_ends_alike(again[:2], outcomes[:2], undisturbed[:2], expected[:2])


def saved_after(folder, batches, *epochs):
    """Return a folder with the runs of trainings that were ended after these numbers of epochs."""
    (folder / "mixed").mkdir()
    for number, done in enumerate(epochs):
        run_together(many(folder / str(done), batches, max_epochs=done))
        (folder / str(done) / str(number)).rename(folder / "mixed" / str(number))
    return folder / "mixed"


def test_a_training_may_go_on_alone_and_together_again(tmp_path):
    undisturbed = many(tmp_path / "whole", shuffled)
    expected = run_together(undisturbed)
    run_together(many(tmp_path / "cut", shuffled, max_epochs=2))
    run(member(1, shuffled(), noisy, max_epochs=4, checkpoint=tmp_path / "cut" / "1"))
    again = many(tmp_path / "cut", shuffled)
    check_ends_alike(again, run_together(again), undisturbed, expected)


@pytest.mark.parametrize("kill_at", [9, 16, 20])
def test_all_continue_exactly_after_sigkill(kill_at, tmp_path):
    """Killed in the turn of any of them, between two checkpoints of the same epoch too."""
    batches = [shuffled, as_sbi, loader][kill_at % 3]
    undisturbed = many(tmp_path / "whole", batches)
    expected = run_together(undisturbed)
    command = ("-m", "tests.training.test_ensemble", batches.__name__)
    done = forking.run(*command, str(kill_at), str(tmp_path / "cut"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = many(tmp_path / "cut", batches)
    outcomes = together(again)
    # Checkpoints are written in the background, so that the last ones may be missing.
    assert all(0 < summary.resumed_from_epoch <= kill_at // 4 for summary in outcomes)
    check_ends_alike(again, outcomes, undisturbed, expected)


def _train_until_killed(batches: str, kill_at: int, folder: Path) -> None:
    """Train in a process that kills itself in the middle training's turn."""
    trainings = many(folder, {f.__name__: f for f in (shuffled, as_sbi, loader)}[batches])
    event = Events.EPOCH_COMPLETED(once=kill_at // 4) if kill_at % 4 == 0 else None
    trainings[1].engine.add_event_handler(
        event or Events.ITERATION_COMPLETED(once=kill_at),
        lambda: os.kill(os.getpid(), signal.SIGKILL),
    )
    run_together(trainings)


if __name__ == "__main__":
    _train_until_killed(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
