"""Processes stop together, and end with an error that names whoever is gone."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from sbi_ignite import EarlyStopping, RankFailedError, load_run
from tests.distributed import programs
from tests.distributed.ranks import epochs_of, start, together, wait_for

SECONDS = 8.0
"""How long processes wait for each other in these tests."""


def started(tmp_path, size=2, **config):
    """Start an endless training, and return its processes and its run directory in mid-run."""
    run = tmp_path / "run"
    config = {"process_timeout": SECONDS, **config}
    ranks = start(_for_ever, size, tmp_path / "ranks", str(run), config)
    wait_for(lambda: epochs_of(run) >= 2, 120)
    return ranks, run


def _for_ever(directory, config):
    return programs.train_for_ever(directory, **config)


@pytest.mark.parametrize(
    ("number", "victim"),
    [
        (signal.SIGKILL, 1),
        (signal.SIGSTOP, 0),  # with the store in which the others look for last words
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_gone_ends_the_others_with_an_error_that_names_it(
    tmp_path, number, victim
):
    """Killed, or stopped; the run directory is whole, and can be continued."""
    ranks, run = started(tmp_path)
    try:
        os.kill(ranks[victim].pid, number)
        began = time.monotonic()
        error = ranks[1 - victim].end(SECONDS + 30)  # which includes how long python takes to end
        took = time.monotonic() - began
    finally:
        ranks[victim].process.kill()
        ranks[victim].end()
    assert isinstance(error, RankFailedError)
    assert error.ranks == (victim,)
    assert f"Rank {victim} of 2" in str(error)
    assert took < SECONDS + 30
    epochs = epochs_of(run)
    (resumed,) = together(_continue, 1, tmp_path / "again", str(run), epochs + 2)
    assert resumed["epochs"] == epochs + 2
    assert resumed["resumed"] >= epochs - 1


def _continue(directory, epochs):
    return programs.train_for_ever(directory, max_epochs=epochs)


def test_an_error_in_one_process_ends_the_others_with_its_words(tmp_path):
    ranks = start(_fails_in_one, 3, tmp_path)
    errors = [rank.end() for rank in ranks]
    assert isinstance(errors[1], ZeroDivisionError)
    for error in (errors[0], errors[2]):
        assert isinstance(error, RankFailedError)
        assert "Rank 1 of 3 ended with ZeroDivisionError: a fault of its own" in str(error)


class Fails:
    def on_epoch_end(self, state):
        if programs.rank() == 1:
            raise ZeroDivisionError("a fault of its own")


def _fails_in_one():
    return programs.train("NPE:mdn", max_epochs=5, callbacks=[Fails()])


def test_all_processes_stop_when_one_is_asked_to(tmp_path):
    """By a callback after an epoch, by a signal in mid-epoch, by the clock."""
    for results in zip(*together(_stops, 2, tmp_path), strict=True):
        first, other = results
        assert first["epochs"] == other["epochs"]
        assert first["stop_reason"] == other["stop_reason"]
        for name, weights in first["weights"].items():
            assert torch.equal(weights, other["weights"][name])


def _stops():
    never = EarlyStopping.never()
    by_callback = programs.train(
        "NPE:mdn",
        max_epochs=9,
        callbacks=[programs.StopsHere(at=3, where=1)],
        early_stopping=never,
    )
    assert by_callback["epochs"] == 3
    assert by_callback["stop_reason"] == "callback"
    by_clock = programs.train("NPE:mdn", max_epochs=10**6, max_time=1.0, early_stopping=never)
    assert by_clock["stop_reason"] == "time_limit"
    by_rule = programs.train(
        "NPE:mdn", max_epochs=10**6, early_stopping=EarlyStopping.validation_loss(patience=1)
    )
    assert by_rule["stop_reason"] == "patience"
    return by_callback, by_clock, by_rule


def test_a_signal_to_one_process_ends_all_and_the_run_continues_exactly(tmp_path):
    """Two processes, in mid-epoch: saved with both random states, and resumed bit for bit."""
    whole = together(_dropout, 2, tmp_path / "whole", str(tmp_path / "a"), None)
    ranks = start(_dropout, 2, tmp_path / "cut", str(tmp_path / "b"), 12)
    for rank in ranks:
        end = rank.end()
        assert isinstance(end, SystemExit)
        assert end.code == 128 + signal.SIGTERM
    assert load_run(tmp_path / "b").status == "interrupted"
    resumed = together(_dropout, 2, tmp_path / "resumed", str(tmp_path / "b"), None)
    for first, second in zip(whole, resumed, strict=True):
        assert second["resumed"] == 2
        assert second["training_loss"] == first["training_loss"]
        assert second["validation_loss"] == first["validation_loss"]
        for name, weights in first["weights"].items():
            assert torch.equal(weights, second["weights"][name])


def _dropout(directory, signalled_at):
    """Train a network with noise of its own in every process."""
    callbacks = []
    if signalled_at is not None:
        callbacks = [programs.SignalsHere(signal.SIGTERM, at=signalled_at, where=1)]
    return programs.train("FMPE", max_epochs=5, checkpoint=directory, callbacks=callbacks)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_continues_and_says_that_it_is_not_bitwise(
    tmp_path, before, after
):
    run = str(tmp_path / "run")
    first = together(_epochs, before, tmp_path / "before", run, 2)[0]
    results = together(_epochs, after, tmp_path / "after", run, 4)
    alone = together(_epochs, 1, tmp_path / "alone", str(tmp_path / "other"), 4)[0]
    for result in results:
        assert result["resumed"] == 2
        assert result["training_loss"][:2] == first["training_loss"]
        assert result["training_loss"] == pytest.approx(alone["training_loss"], abs=1e-4)
    said = " ".join(results[0]["warnings"])
    assert f"number of processes (was {before}, is {after})" in said
    assert load_run(run).manifest["world_size"] == after


def _epochs(directory, epochs):
    return programs.train("NPE:mdn", max_epochs=epochs, checkpoint=directory)


def test_only_the_first_process_prints_logs_and_saves(tmp_path):
    results = together(_talks, 2, tmp_path / "ranks")
    first, other = ((tmp_path / "ranks" / f"output-{rank}").read_text() for rank in (0, 1))
    assert "epoch" in first
    assert other == ""
    runs = {result["run_directory"] for result in results}
    assert len(runs) == 1
    assert load_run(tmp_path / "ranks" / "run").summary.world_size == 2


def _talks():
    return programs.train("NPE:mdn", checkpoint="run", logging="stdout", max_epochs=2)


def test_a_loss_that_is_not_finite_in_one_process_is_the_same_error_in_all(tmp_path):
    errors = [rank.end() for rank in start(_not_finite, 2, tmp_path)]
    for error in errors:
        assert type(error).__name__ == "NonFiniteLossError"
        assert error.iteration == 1
        # Row 3 of the batch is the second of those that process 1 has.
        assert list(error.rows) == [1]
    assert "(in process 1)" in str(errors[0])


def _not_finite():
    from sbi_ignite import TrainConfig, run_training

    x = torch.ones(8, 1)
    x[3] = float("nan")
    model = torch.nn.Linear(1, 1)

    def loss(model, batch):
        return model(batch[0]).square().mean(dim=1)

    from torch.utils.data import DataLoader, TensorDataset

    return run_training(TrainConfig(max_epochs=2), model, loss, DataLoader(TensorDataset(x), 8))


def test_processes_that_all_refuse_a_call_train_on_together(tmp_path):
    """A wrong setting is an error in all of them, and costs nothing but that call."""
    for result in together(_corrected, 2, tmp_path):
        assert result["world_size"] == 2


def _corrected():
    from sbi_ignite import SettingsError

    with pytest.raises(SettingsError):
        programs.train("NPE:mdn", device="cuda:77")
    return programs.train("NPE:mdn")
