"""Members are the same however they are trained, and together they are one posterior."""

from __future__ import annotations

import os

import joblib
import pytest
import torch
from sbi.inference import EnsemblePosterior
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from torch import nn

from sbi_ignite import (
    NPE,
    LossArgsNRE,
    SimulationWriter,
    TrainConfig,
    open_simulations,
    patch_sbi,
    train_ensemble,
)
from sbi_ignite.ensembles.seeds import member_seeds
from sbi_ignite.ensembles.shipping import pack
from tests.ensembles.small import CONFIG, ensemble, maker
from tests.small import METHODS, draw, same, weights


@pytest.fixture(scope="module")
def sequential():
    """An ensemble trained in this process."""
    return ensemble(members=3)


def test_members_differ_in_initial_weights_and_share_one_split(sequential):
    first, second, third = sequential.trainers
    assert not same(first, second)
    assert not same(second, third)
    for trainer in (second, third):
        assert torch.equal(trainer.train_indices, first.train_indices)
        assert torch.equal(trainer.val_indices, first.val_indices)


@pytest.mark.parametrize("n_jobs", [2, -1])
def test_member_k_is_bit_for_bit_the_same_in_workers(sequential, n_jobs):
    in_workers = ensemble(members=3, n_jobs=n_jobs)
    assert in_workers.summary.backend == "Loky"
    for one, other in zip(sequential.trainers, in_workers.trainers, strict=True):
        assert same(one, other)
    assert in_workers.summary.losses == sequential.summary.losses


def test_member_k_is_bit_for_bit_the_same_alone_and_among_more(sequential):
    alone = ensemble(members=3, only=2)
    more = ensemble(members=5, only=[0, 2])
    assert len(alone) == 1
    assert same(alone.trainers[0], sequential.trainers[2])
    assert same(more.trainers[0], sequential.trainers[0])
    assert same(more.trainers[1], sequential.trainers[2])
    assert same(alone.estimators[0], sequential.estimators[2])


def test_train_with_the_seed_in_the_summary_gives_the_member(sequential):
    """The member alone needs nothing of ours but its seed and the split."""
    trainer = maker()()
    member = sequential.summary.members[1]
    from sbi_ignite.bridge.memory import memory_of

    memory_of(trainer).row_seeds = member_seeds(5, 1).rows
    trainer.train(CONFIG.model_copy(update={"seed": member.seed}))
    assert same(trainer, sequential.trainers[1])


def test_sbis_own_keywords_give_the_same_members_everywhere():
    asked = {"config": None, "max_num_epochs": 1, "stop_after_epochs": 1}
    with pytest.warns(UserWarning, match="members 0, 1: Maximum number of epochs"):
        here = ensemble(**asked)
    with pytest.warns(UserWarning, match="members 0, 1: Maximum number of epochs"):
        there = ensemble(**asked, n_jobs=2)
    assert all(map(same, here.trainers, there.trainers))
    assert here.summary.summaries[0].config["train"]["sbi_compat"]["value"] is True


@pytest.mark.filterwarnings("ignore:.*Maximum number of epochs")
@pytest.mark.parametrize("asked", [{"config": CONFIG}, {"max_num_epochs": 1}])
def test_a_seed_from_the_environment_is_that_of_the_ensemble(monkeypatch, asked):
    monkeypatch.setenv("SBI_IGNITE_TRAIN__SEED", "5")
    found = train_ensemble(maker(), 2, **asked)
    assert found.summary.seed == 5
    assert not same(*found.trainers)


def test_without_a_seed_torchs_global_one_decides():
    make = maker()
    torch.manual_seed(3)
    first = ensemble(make, seed=None, members=1)
    torch.manual_seed(3)
    second = ensemble(make, seed=None, members=1)
    third = ensemble(make, seed=None, members=1)
    assert same(first.trainers[0], second.trainers[0])
    assert not same(first.trainers[0], third.trainers[0])


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_random_states_and_threads_are_left_alone(n_jobs):
    threads = torch.get_num_threads()
    make = maker()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    ensemble(make, n_jobs=n_jobs)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


class Notes:
    """Writes down how many threads a member computes with."""

    def __init__(self, folder):
        self.folder = folder

    def on_epoch_end(self, state):
        (self.folder / f"{os.getpid()} {torch.get_num_threads()}").touch()


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("threads", [1, 2])
def test_members_compute_with_the_threads_that_were_asked_for(tmp_path, n_jobs, threads):
    torch_threads = torch.get_num_threads()
    ensemble(n_jobs=n_jobs, threads=threads, callbacks=[Notes(tmp_path)])
    noted = [name.split() for name in os.listdir(tmp_path)]
    assert {number for _, number in noted} == {str(threads)}
    assert (str(os.getpid()) in {pid for pid, _ in noted}) == (n_jobs == 1)
    assert torch.get_num_threads() == torch_threads


def test_bootstrap_draws_training_rows_and_leaves_validation_rows_alone():
    plain, drawn = ensemble(), ensemble(bootstrap=True)
    for one, other in zip(plain.trainers, drawn.trainers, strict=True):
        rows = other.train_indices
        assert len(rows) == len(one.train_indices)
        assert len(rows.unique()) < len(rows)
        assert set(rows.tolist()) <= set(one.train_indices.tolist())
        assert torch.equal(other.val_indices, one.val_indices)
    assert not torch.equal(*(trainer.train_indices for trainer in drawn.trainers))


def test_resplit_gives_every_member_a_split_of_its_own():
    first, second = ensemble(resplit=True).trainers
    assert not torch.equal(first.val_indices, second.val_indices)
    assert len(first.val_indices) == len(second.val_indices)


def test_the_posterior_is_the_weighted_mixture_of_the_members(sequential):
    posterior = sequential.build_posterior()
    assert isinstance(posterior, EnsemblePosterior)
    theta, x = draw(5)
    asked = {"x": x[:1], "norm_posterior": False}  # the correction for leakage draws samples
    members = [t.build_posterior().log_prob(theta, **asked).exp() for t in sequential.trainers]
    expected = torch.stack(members).mean(dim=0).log()
    assert torch.allclose(posterior.log_prob(theta, **asked), expected, atol=1e-5)


def test_validation_weights_are_shares_of_the_likelihood():
    found = ensemble(members=3, weights="validation")
    expected = torch.softmax(-torch.tensor(found.summary.losses, dtype=torch.double), dim=0)
    assert torch.allclose(torch.tensor(found.weights, dtype=torch.double), expected)
    chosen = found.build_posterior().weights
    assert torch.allclose(chosen.double(), expected, atol=1e-6)


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x)


def test_an_embedding_network_is_made_anew_for_every_member():
    theta, x = draw(120)

    def make():
        from sbi_ignite import NPE
        from tests.small import Silent, box

        build = posterior_nn("maf", hidden_features=4, num_transforms=1, embedding_net=Embedding())
        trainer = NPE(box(), build, tracker=Silent(), show_progress_bars=False)
        return trainer.append_simulations(theta, x)

    still = TrainConfig(max_epochs=1, optimizer=_standing_still)
    found = ensemble(make, 2, config=still)
    layers = [
        weights(t)[key]
        for t, key in (
            (t, next(k for k in weights(t) if k.endswith("layer.weight"))) for t in found.trainers
        )
    ]
    assert not torch.equal(*layers)
    again = ensemble(make, 2, config=still, only=1)
    assert same(again.trainers[0], found.trainers[1])


def _standing_still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def test_members_may_have_different_networks():
    theta, x = draw(120)
    trainers = [
        maker(density_estimator=posterior_nn(kind, hidden_features=4, num_transforms=1))()
        for kind in ("maf", "zuko_maf")
    ]
    assert theta.shape == x.shape
    found = ensemble(trainers, None)
    kinds = {
        type(getattr(estimator, "net", estimator)).__module__ for estimator in found.estimators
    }
    assert len(kinds) == 2
    assert all(getattr(trainer, "_neural_net", None) is None for trainer in trainers)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_an_ensemble(name):
    found = ensemble(maker(name), config=TrainConfig(max_epochs=1))
    assert len(found) == 2
    assert not same(*found.estimators)


@pytest.mark.filterwarnings("ignore:patch_sbi.. does not reach")  # workers of other tests
def test_a_trainer_of_sbis_own_is_trained_by_us_patched_or_not():
    import sbi.inference

    make = maker(inference=sbi.inference)
    plain = ensemble(make)
    ours = ensemble(maker())
    with patch_sbi():
        patched = ensemble(make)
    assert all(map(same, plain.trainers, ours.trainers))
    assert all(map(same, patched.trainers, ours.trainers))


def test_a_second_round_trains_all_members_on_the_posterior_of_all():
    def two_rounds(n_jobs):
        torch.manual_seed(0)
        found = ensemble(n_jobs=n_jobs)
        posterior = found.build_posterior().set_default_x(torch.zeros(1, 2))
        theta = posterior.sample((60,), show_progress_bars=False)
        x = theta + 0.3 * torch.randn_like(theta)
        found.append_simulations(theta, x, proposal=posterior)
        return found.train(CONFIG, n_jobs=n_jobs)

    here, there = two_rounds(1), two_rounds(2)
    assert all(map(same, here.trainers, there.trainers))
    first, second = here.trainers
    from sbi_ignite.ensembles.shipping import simulations_of

    ours, theirs = simulations_of(first), simulations_of(second)
    assert [a.data_ptr() for a in ours] == [b.data_ptr() for b in theirs]
    assert {tuple(t.shape) for t in ours} == {(120, 2), (60, 2), (120, 1), (60, 1)}
    assert here.summary.summaries[0].epochs_trained == 3


def test_appending_from_the_prior_stays_the_first_round():
    """Sbi asks whether the proposal is the very prior of the trainer."""
    found = ensemble()
    theta, x = draw(40)
    found.append_simulations(theta, x, proposal=found.trainers[0]._prior)
    assert found.trainers[1]._data_round_index == [0, 0]


def test_loss_arguments_reach_every_member():
    found = ensemble(maker("NRE_B"), loss_args=LossArgsNRE(num_atoms=3), n_jobs=2)
    assert len(found) == 2


def test_the_backend_and_n_jobs_of_joblib_are_respected(sequential):
    with joblib.parallel_config(backend="loky", n_jobs=2):
        found = ensemble(members=3)
    assert (found.summary.backend, found.summary.n_jobs) == ("Loky", 2)
    assert all(map(same, found.trainers, sequential.trainers))


def test_inside_a_task_of_joblib_members_are_trained_one_after_the_other(sequential):
    """There joblib's own backend runs threads; with one job none is needed."""
    make = maker()

    def task():
        return train_ensemble(make, 2, CONFIG, seed=5).summary

    (found,) = joblib.Parallel(n_jobs=2)(joblib.delayed(task)() for _ in range(1))
    assert found.backend == "sequential"
    assert found.losses == sequential.summary.losses[:2]


def test_trainers_travel_without_their_simulations():
    """Also after a training, whose records know the trainer."""
    few, many = (ensemble(maker(num_rows=n), members=1).trainers[0] for n in (120, 6_000))
    row_numbers = 3 * 8  # bytes a row: in the split, and twice in the state to resume from
    assert len(pack(many)) < len(pack(few)) + (row_numbers + 4) * 6_000


def test_members_in_workers_read_simulations_from_their_file(tmp_path):
    torch.manual_seed(0)
    theta = torch.rand(200, 2) * 2 - 1
    with SimulationWriter(tmp_path / "s.h5") as writer:
        writer.append(theta, theta + 0.1 * torch.randn_like(theta))

    def from_file():
        prior = BoxUniform(-torch.ones(2), torch.ones(2))
        trainer = NPE(prior, density_estimator="mdn", show_progress_bars=False)
        return trainer.append_simulations_from(open_simulations(tmp_path / "s.h5"))

    config = TrainConfig(max_epochs=1)
    here = train_ensemble(from_file, members=2, config=config, seed=1)
    there = train_ensemble(from_file, members=2, config=config, seed=1, n_jobs=2)
    for one, other in zip(here.estimators, there.estimators, strict=True):
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
