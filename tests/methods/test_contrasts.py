"""Logits of every x with its own and with other theta: what is met by whom, and how often."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import sbi_ignite.inference
from sbi_ignite import DataError, TrainConfig
from sbi_ignite.bridge.losses import loss_of
from sbi_ignite.methods.contrasts import InBatchContrasts


def pairs(num_rows: int, num_atoms: int, seed: int = 0) -> Tensor:
    """Return the row numbers (theta, x) of all pairs, shape (num_rows, num_atoms, 2)."""
    torch.manual_seed(seed)
    rows = torch.arange(float(num_rows))[:, None]
    contrasts = InBatchContrasts(lambda theta, x: torch.cat([theta, x], dim=1))
    return contrasts(rows, rows, num_atoms).reshape(num_rows, num_atoms, 2).long()


@pytest.mark.parametrize(("num_rows", "num_atoms"), [(7, 2), (7, 7), (50, 10), (2, 2), (3, 1)])
def test_the_first_pair_is_joint_and_the_others_are_all_different(num_rows: int, num_atoms: int):
    met = pairs(num_rows, num_atoms)
    assert torch.equal(met[:, 0, 0], met[:, 0, 1])
    assert sorted(met[:, 0, 1].tolist()) == list(range(num_rows))
    for row in met:
        assert len(set(row[:, 0].tolist())) == num_atoms
        assert set(row[:, 1].tolist()) == {int(row[0, 1])}


def test_every_theta_is_met_equally_often():
    counts = pairs(50, 10)[:, :, 0].reshape(-1).bincount()
    assert counts.tolist() == [10] * 50


def test_any_two_rows_meet_with_the_same_probability():
    """Over many batches: within five standard errors of a binomial count."""
    size, atoms, batches = 6, 3, 400
    met = torch.zeros(size, size)
    for seed in range(batches):
        for row in pairs(size, atoms, seed):
            met[row[0, 1], row[1:, 0]] += 1
    expected = (atoms - 1) / (size - 1)
    error = (expected * (1 - expected) / batches) ** 0.5
    shares = met / batches
    assert (shares.diagonal() == 0).all()
    away = shares[~torch.eye(size, dtype=torch.bool)]
    assert ((away - expected).abs() < 5 * error).all()


@pytest.mark.parametrize("name", ["NRE_A", "NRE_B", "NRE_C", "BNRE"])
def test_the_loss_is_that_of_sbi_in_the_mean(name: str):
    """Over many draws of others, sbi's loss and ours of one network agree."""
    torch.manual_seed(0)
    trainer = getattr(sbi_ignite.inference, name)(show_progress_bars=False, tracker=_Silent())
    theta = torch.randn(100, 2)
    trainer.append_simulations(theta, theta + 0.5 * torch.randn(100, 2))
    trainer.train(TrainConfig(max_epochs=8))
    args = SimpleNamespace(num_atoms=6, gamma=1.0, regularization_strength=100.0)
    batch = (theta, trainer._x_roundwise[0])
    with torch.no_grad():
        ours, theirs = (
            torch.stack([loss_of(trainer, args, as_sbi)(None, batch) for _ in range(100)])
            for as_sbi in (False, True)
        )
    error = (ours.var() / len(ours) + theirs.var() / len(theirs)).sqrt()
    assert abs(ours.mean() - theirs.mean()) < 5 * error


class _Silent:
    log_dir = None

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def test_a_trainer_that_draws_its_own_others_keeps_them():
    class Own(sbi_ignite.inference.NRE):
        calls = 0

        def _classifier_logits(self, theta: Tensor, x: Tensor, num_atoms: int) -> Tensor:
            Own.calls += 1
            return super()._classifier_logits(theta, x, num_atoms)

    torch.manual_seed(0)
    trainer = Own(show_progress_bars=False, tracker=_Silent())
    theta = torch.randn(60, 2)
    trainer.append_simulations(theta, theta)
    trainer.train(TrainConfig(max_epochs=1))
    assert Own.calls > 0


@pytest.mark.parametrize("name", ["NRE_A", "NRE_B", "NRE_C", "BNRE"])
def test_a_batch_without_other_rows_is_refused(name: str):
    """There, sbi fails in torch.multinomial."""
    with pytest.raises(DataError, match="this batch has 1 row"):
        pairs(1, 2)
    trainer = getattr(sbi_ignite.inference, name)(show_progress_bars=False, tracker=_Silent())
    theta = torch.randn(30, 2)
    trainer.append_simulations(theta, theta)
    with pytest.raises(DataError, match=r"batches of 1 and more, expected at least [23] rows"):
        trainer.train(TrainConfig(batch_size=1, max_epochs=1))
