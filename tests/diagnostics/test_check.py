"""A verdict on what a trainer, or a posterior, has learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from torch.distributions import MultivariateNormal

from sbi_ignite import ArgumentError, DataError, TrainConfig, check_posterior
from sbi_ignite.inference import NPE
from tests.diagnostics.small import WITH_POSTERIOR, generators, many, pairs
from tests.small import SBI_WARNS, Silent, box, flow, ready, second_round, train

pytestmark = [*SBI_WARNS, pytest.mark.filterwarnings("ignore:Posteriors are so narrow")]


@pytest.mark.parametrize("name", WITH_POSTERIOR)
def test_a_trainer_of_any_method_is_checked_on_its_validation_rows(name: str):
    trainer = train(many(name), TrainConfig(max_epochs=1))
    found = check_posterior(trainer, num_posterior_samples=20)
    assert found.num_simulations == 40
    assert len(found.parameters) == 2


def test_all_random_generators_are_left_as_they_were():
    trainer = train(many(), TrainConfig(max_epochs=1))
    drawn = []
    for checked in (False, True):
        torch.manual_seed(5)
        first = generators()
        if checked:
            check_posterior(trainer)
        drawn.append((first[0], torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_the_same_seed_gives_the_same_verdict_and_another_other_samples():
    trainer = train(many(), TrainConfig(max_epochs=1))
    first, again, other = (check_posterior(trainer, seed=s) for s in (0, 0, 1))
    assert first.to_dict() == again.to_dict() != other.to_dict()


def test_a_well_trained_posterior_is_fine_and_one_of_an_epoch_is_not():
    trainer = NPE(box(), flow(20), show_progress_bars=False, tracker=Silent())
    torch.manual_seed(1)
    theta = box().sample((3_000,))
    trainer.append_simulations(theta, theta + 0.3 * torch.randn_like(theta))
    theta, x = pairs(200)
    train(trainer, TrainConfig(max_epochs=1, learning_rate=1e-4))
    early = check_posterior(trainer, theta, x)
    trainer.train(
        TrainConfig(
            max_epochs=40, learning_rate=1e-2, retrain_from_scratch=True, lr_schedule="cosine"
        ),
        force_first_round_loss=True,
    )
    assert early.verdict == "underconfident"
    assert check_posterior(trainer, theta, x).verdict == "fine"


def test_names_stand_in_the_verdict():
    trainer = train(many(), TrainConfig(max_epochs=1))
    text = str(check_posterior(trainer, parameter_names=["mass", "spin"]))
    assert [line.split()[0] for line in text.splitlines()[3:]] == ["mass", "spin"]
    with pytest.raises(ArgumentError, match="expected 2 parameter_names"):
        check_posterior(trainer, parameter_names=["mass"])


def test_no_more_simulations_are_used_than_asked_for():
    trainer = train(many(), TrainConfig(max_epochs=1))
    assert check_posterior(trainer, num_simulations=25).num_simulations == 25
    assert check_posterior(trainer, *pairs(60)).num_simulations == 60


def test_a_later_round_is_checked_on_draws_of_the_prior():
    trainer = second_round(train(many(), TrainConfig(max_epochs=1)), 300)
    trainer.train(TrainConfig(max_epochs=1))
    found = check_posterior(trainer)
    masks = trainer.get_simulations(0)[2][trainer.val_indices]
    assert found.num_simulations == int(masks.sum()) < len(masks)


def test_a_posterior_without_simulations_and_other_things_are_refused():
    trainer = train(many(), TrainConfig(max_epochs=1))
    with pytest.raises(ArgumentError, match="theta and x beside a posterior"):
        check_posterior(trainer.build_posterior())
    with pytest.raises(ArgumentError, match="got only theta"):
        check_posterior(trainer, pairs()[0])
    with pytest.raises(ArgumentError, match="NPE_C without a network"):
        check_posterior(many())
    with pytest.raises(ArgumentError, match="got MultivariateNormal"):
        check_posterior(MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pytest.raises(ArgumentError, match="got MarginalTrainer"):
        check_posterior(train(ready("MarginalTrainer"), TrainConfig(max_epochs=1)))
    with pytest.raises(DataError, match="at least 20 held-out simulations"):
        check_posterior(trainer, *pairs(10))
    with pytest.raises(DataError, match="as many rows of x"):
        check_posterior(trainer, pairs(30)[0], pairs(40)[1])


def test_rows_that_are_not_finite_are_left_out():
    trainer = train(many(), TrainConfig(max_epochs=1))
    theta, x = pairs(60)
    x[3] = torch.nan
    assert check_posterior(trainer, theta, x).num_simulations == 59


def test_a_posterior_of_sbis_is_sampled_in_its_own_way():
    """With its rejection of what is outside of the prior."""
    trainer = train(many(), TrainConfig(max_epochs=1))
    posterior: Any = trainer.build_posterior()
    assert isinstance(posterior, NeuralPosterior)
    own = check_posterior(posterior, *pairs(60))
    direct = check_posterior(trainer, *pairs(60))
    assert own.to_dict() != direct.to_dict()
