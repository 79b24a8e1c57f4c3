"""A run directory without a checkpoint cannot be continued, and says so."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from sbi_ignite import CheckpointConfig, CheckpointError, SbiIgniteWarning, TrainConfig, load_run
from sbi_ignite.training.run import run_training

BATCHES = [(torch.ones(4, 2), torch.zeros(4, 1))] * 3


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(dim=1)


def train(directory, epochs=2, **settings):
    return run_training(
        TrainConfig(max_epochs=epochs),
        nn.Linear(2, 1),
        squares,
        BATCHES,
        checkpoint=CheckpointConfig(directory, **settings),
    )[1]


def without_checkpoints(directory):
    for path in directory.glob("checkpoint-*.pt"):
        path.unlink()
    return (directory / "best.pt").read_bytes()


def test_a_run_whose_checkpoints_were_deleted_starts_over_and_keeps_what_is_left(tmp_path):
    run = tmp_path / "run"
    train(run)
    best = without_checkpoints(run)
    with pytest.warns(SbiIgniteWarning) as caught:
        summary = train(run, epochs=3)
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith(f"{run}: run.json is here, but no checkpoint (deleted, or")
    assert message.endswith("starts over from the beginning; what was left is in replaced-1/.")
    assert (summary.epochs_trained, summary.resumed_from_epoch) == (3, 0)
    assert (run / "replaced-1" / "best.pt").read_bytes() == best
    assert len(load_run(run / "replaced-1").metrics) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(run, epochs=4).resumed_from_epoch == 3


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_over(tmp_path, monkeypatch):
    """It has nothing that would have to be kept."""
    from sbi_ignite.handlers.checkpoint import CheckpointHandler

    class Killed(BaseException):
        pass

    def killed(self):
        raise Killed

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointHandler, "save_now", killed)
        with pytest.raises(Killed):
            train(run)
    assert (run / "run.json").exists()
    with pytest.warns(SbiIgniteWarning, match="no checkpoint .* from the beginning\\.$"):
        summary = train(run)
    assert (summary.epochs_trained, summary.resumed_from_epoch) == (2, 0)
    assert not list(run.glob("replaced-*"))


def test_a_run_without_checkpoints_that_must_be_continued_is_an_error(tmp_path):
    run = tmp_path / "run"
    train(run)
    best = without_checkpoints(run)
    with pytest.raises(CheckpointError, match=r"asks for it: run\.json is here, but no checkpoint"):
        train(run, resume="must")
    assert (run / "best.pt").read_bytes() == best


def test_a_run_that_starts_over_on_purpose_does_so_without_a_word(tmp_path):
    run = tmp_path / "run"
    train(run)
    without_checkpoints(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(run, resume="never").resumed_from_epoch == 0
