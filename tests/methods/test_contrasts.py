"""Logits of every x with its own and with other theta: what is met by whom, and how often."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sbi.inference.trainers._contracts import LossArgsNPE
from sbi.utils import BoxUniform
from torch import Tensor

import sbi_ignite.inference
from sbi_ignite import DataError, TrainConfig
from sbi_ignite.bridge.losses import loss_of
from sbi_ignite.methods import contrasts as module
from sbi_ignite.methods.contrasts import AtomsInOneOrder, InBatchContrasts, met_in_one_order


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


@pytest.mark.parametrize(("size", "num_met"), [(7, 1), (7, 6), (50, 9), (2, 1)])
def test_atoms_of_a_row_are_other_rows_and_all_different(size: int, num_met: int):
    met = met_in_one_order(size, num_met, torch.device("cpu"))
    assert met.shape == (size, num_met)
    for row, others in enumerate(met.tolist()):
        assert len({row, *others}) == num_met + 1
    assert met.reshape(-1).bincount(minlength=size).tolist() == [num_met] * size


def test_all_other_rows_are_atoms_with_the_same_probability():
    """Over many batches: within five standard errors of a binomial count."""
    torch.manual_seed(0)
    size, num_met, batches = 6, 2, 400
    met = torch.zeros(size, size)
    for _ in range(batches):
        met.scatter_add_(1, met_in_one_order(size, num_met, met.device), torch.ones(size, num_met))
    expected = num_met / (size - 1)
    error = (expected * (1 - expected) / batches) ** 0.5
    away = (met / batches)[~torch.eye(size, dtype=torch.bool)]
    assert not met.diagonal().any()
    assert ((away - expected).abs() < 5 * error).all()


def test_only_draws_of_other_rows_come_from_one_order(monkeypatch):
    taken = []
    monkeypatch.setattr(module, "met_in_one_order", lambda *of: taken.append(of))
    square = torch.ones(4, 4)
    with AtomsInOneOrder():
        torch.multinomial(torch.ones(4), num_samples=2)
        torch.multinomial(torch.ones(4, 5), num_samples=2, replacement=False)
        torch.multinomial(square, num_samples=2, replacement=True)
        torch.multinomial(square, num_samples=4, replacement=False)
        torch.multinomial(square, 2)
        assert not taken
        for _ in range(2):  # the second is the network's own
            torch.multinomial(square, num_samples=2, replacement=False)
    assert taken == [(4, 2, square.device)]


@pytest.fixture(scope="module")
def second_round() -> Any:
    """Return a trainer of NPE whose second round has an atomic loss."""
    torch.manual_seed(0)
    prior = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
    trainer = sbi_ignite.inference.NPE(
        prior, density_estimator="maf", show_progress_bars=False, tracker=_Silent()
    )
    theta = prior.sample((80,))
    trainer.append_simulations(theta, theta + torch.randn(80, 2))
    trainer.train(TrainConfig(max_epochs=2), checkpoint=False)
    proposal = trainer.build_posterior().set_default_x(torch.zeros(1, 2))
    theta = prior.sample((80,))  # the loss does not ask what it was drawn from
    trainer.append_simulations(theta, theta + torch.randn(80, 2), proposal=proposal)
    trainer.train(TrainConfig(max_epochs=2), checkpoint=False)
    return trainer


def test_the_atomic_loss_is_that_of_sbi_in_the_mean(second_round: Any):
    """Over many draws of atoms; the typed form's varies no more than sbi's."""
    theta, x, masks = (part[:40] for part in second_round.get_simulations())
    args = LossArgsNPE(second_round._proposal_roundwise[-1], lambda x: torch.ones(len(x)))
    losses = {}
    for as_sbi in (True, False):
        loss = loss_of(second_round, args, as_sbi)
        torch.manual_seed(1)
        with torch.no_grad():
            losses[as_sbi] = torch.stack(
                [loss(second_round._neural_net, (theta, x, masks)) for _ in range(60)]
            )
    sbis, ours = losses[True], losses[False]
    error = (sbis.var(0) / 60 + ours.var(0) / 60).sqrt()
    assert ((sbis.mean(0) - ours.mean(0)).abs() < 5 * error).all()
    assert ours.mean(1).var() < 3 * sbis.mean(1).var()


@pytest.mark.filterwarnings("ignore:Maximum number of epochs:UserWarning")
@pytest.mark.parametrize(("config", "taken"), [(TrainConfig(max_epochs=1), True), (None, False)])
def test_the_typed_form_alone_draws_atoms_from_one_order(
    second_round: Any, config: Any, taken: bool, monkeypatch
):
    calls = []
    monkeypatch.setattr(
        module, "met_in_one_order", lambda *of: calls.append(1) or met_in_one_order(*of)
    )
    if config is None:
        second_round.train(max_num_epochs=1)
    else:
        second_round.train(config, checkpoint=False)
    assert bool(calls) == taken
