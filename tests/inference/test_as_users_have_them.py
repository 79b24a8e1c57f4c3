"""Networks and trainers as users have them, in both forms of the call."""

from __future__ import annotations

import copy
import pickle

import matplotlib.pyplot as plt
import pytest
import torch
from sbi.analysis import plot_summary
from sbi.inference import EnsemblePosterior
from torch import nn

import sbi_ignite.inference
from sbi_ignite import EarlyStopping, TrainConfig
from tests.small import (
    METHODS,
    SBI_WARNS,
    Watch,
    box,
    draw,
    empty,
    flow,
    ready,
    same,
    second_round,
    standing_still,
    train,
)

pytestmark = SBI_WARNS

FORMS = {
    "typed": lambda **more: ((TrainConfig(batch_size=50, max_epochs=2, **more),), {}),
    "sbi": lambda **more: ((), {"training_batch_size": 50, "max_num_epochs": 1, **more}),
}


@pytest.fixture(params=FORMS)
def call(request):
    """Return the arguments of a short training in each form."""
    return FORMS[request.param]


def fit(trainer, call, **more):
    arguments, keywords = call(**more)
    return train(trainer, *arguments, **keywords)


def test_a_users_builder_of_networks_is_used(call):
    """The builder gets training rows only, and its network is what comes back."""
    built = []

    def build(theta, x):
        built.append((len(theta), flow(hidden_features=5)(theta, x)))
        return built[0][1]

    trainer = fit(ready(density_estimator=build), call)
    assert len(built) == 1
    assert built[0][0] == 108
    assert trainer._neural_net is built[0][1]


class Embedding(nn.Module):
    """An embedding that notes in which mode it runs."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        return self.layers(x)


def test_dropout_and_batch_norm_train_in_training_and_rest_in_validation(call):
    """Batch statistics move while training, and validation neither moves nor drops anything."""
    # sbi tries an embedding on a single row, which batch norm allows in eval mode only.
    embedding = Embedding().eval()
    trainer = ready(density_estimator=flow(embedding_net=embedding))
    statistics = []

    class Look:
        def on_epoch_end(self, state):
            norm = next(m for m in state.model.modules() if isinstance(m, nn.BatchNorm1d))
            statistics.append(norm.num_batches_tracked.item())

    arguments, keywords = call()
    trainer.train(*arguments, **keywords, callbacks=[Look()])
    used = next(m for m in trainer._neural_net.modules() if isinstance(m, Embedding))
    trained, validated = used.modes.count(True), used.modes.count(False)
    assert trained >= 4
    assert validated >= 2
    steps = 3 if len(arguments) else 2
    assert statistics[1] - statistics[0] == steps


def test_validation_through_dropout_is_one_number_in_the_typed_form():
    trainer = ready(density_estimator=flow(embedding_net=Embedding().layers[:1]))
    trainer.train(TrainConfig(max_epochs=3, optimizer=standing_still))
    assert len(set(trainer.training_summary.validation_loss)) == 1


@pytest.mark.parametrize("copied", [lambda t: pickle.loads(pickle.dumps(t)), copy.deepcopy])
def test_a_trainer_survives_being_copied_between_calls(call, copied):
    """A copy has the summary and the posterior, and trains on like the original."""
    trainer = fit(ready(), call)
    twin = copied(trainer)
    assert same(trainer, twin)
    assert twin.training_summary == trainer.training_summary
    for one in (trainer, twin):
        torch.manual_seed(9)
        arguments, keywords = call(resume_training=True)
        budget = "max_num_epochs" if keywords else "max_epochs"
        if keywords:
            keywords[budget] = 3
        else:
            arguments = (TrainConfig(batch_size=50, max_epochs=4, resume_training=True),)
        one.train(*arguments, **keywords)
    assert same(trainer, twin)
    assert trainer.epoch == twin.epoch == 4
    twin.build_posterior()


class Logged(sbi_ignite.inference.NPE):
    """A user's trainer with defaults of its own."""

    calls = 0

    def train(self, *args, **kwargs):
        self.calls += 1
        return super().train(*args, **kwargs)


def test_a_subclass_that_overrides_train_calls_super(call):
    torch.manual_seed(1)
    trainer = Logged(prior=box(), density_estimator=flow(), show_progress_bars=False)
    trainer.append_simulations(*draw())
    assert same(fit(trainer, call), fit(ready(), call))
    assert trainer.calls == 1
    assert trainer.training_summary.method == "Logged"


@pytest.mark.parametrize("name", ["NPE_A", "NPE_B", "NPE_C", "NLE_A", "NRE_A", "NRE_B"])
def test_several_rounds_in_the_typed_form(name):
    """The second round trains on both, and each round has its line in the summary."""
    trainer = empty(name)
    # NPE_B weighs rows by their proposals and wants to be told the first one, too.
    known = {"proposal": trainer._prior} if name == "NPE_B" else {}
    trainer.append_simulations(*draw(100), **known)
    trainer.train(TrainConfig(max_epochs=3), early_stopping=EarlyStopping.never())
    if name in ("NLE_A", "NRE_A", "NRE_B"):
        trainer.append_simulations(*draw(60))
    else:
        second_round(trainer)
    watch = Watch()
    trainer.train(TrainConfig(max_epochs=2, batch_size=40), callbacks=[watch])

    assert trainer.summary["epochs_trained"] == [3, 2]
    assert len(trainer.summary["validation_loss"]) == 5
    rows = 60 if name == "NPE_A" else 160
    assert len(trainer.train_indices) + len(trainer.val_indices) == rows
    assert trainer.training_summary.epochs_trained == 2
    assert sum(map(len, watch.batches[0])) == len(trainer.train_indices)
    trainer.build_posterior()


def test_discarding_the_prior_samples_in_the_typed_form():
    trainer = ready(num_rows=100)
    trainer.train(TrainConfig(max_epochs=1))
    second_round(trainer)
    trainer.train(TrainConfig(max_epochs=1, discard_prior_samples=True))
    assert len(trainer.train_indices) + len(trainer.val_indices) == 60


def test_retraining_from_scratch_in_the_typed_form():
    trainer = ready("NLE_A")
    first = trainer.train(TrainConfig(max_epochs=1))
    assert trainer.train(TrainConfig(max_epochs=1)) is first
    assert trainer.train(TrainConfig(max_epochs=1, retrain_from_scratch=True)) is not first


@pytest.mark.parametrize("name", [name for name in METHODS if name != "MarginalTrainer"])
def test_posteriors_are_built_and_sampled(name):
    """What follows training goes on working."""
    trainer = ready(name, num_rows=100)
    trainer.train(TrainConfig(max_epochs=1))
    sample_with = {"NLE_A": "rejection", "NRE_B": "rejection"}.get(name)
    posterior = trainer.build_posterior(**({"sample_with": sample_with} if sample_with else {}))
    if name in ("NPE_A", "NPE_B", "NPE_C", "MNPE", "FMPE"):
        samples = posterior.sample((4,), x=torch.zeros(1, 2), show_progress_bars=False)
        assert samples.shape == (4, 2)
        assert samples.isfinite().all()


def test_an_ensemble_of_trainers_samples(call):
    posteriors = [fit(ready(), call).build_posterior() for _ in range(2)]
    ensemble = EnsemblePosterior(posteriors)
    samples = ensemble.sample((4,), x=torch.zeros(1, 2), show_progress_bars=False)
    assert samples.shape == (4, 2)


@pytest.mark.filterwarnings("ignore:_get_default_opts will be deprecated")
def test_plot_summary_draws_the_losses(call):
    trainer = fit(ready(tracker=None), call)
    figure, axes = plot_summary(trainer, tags=["training_loss", "validation_loss"])
    assert len(axes) == 2
    drawn = axes[1].lines[0].get_ydata()
    assert list(drawn) == pytest.approx(trainer.summary["validation_loss"], rel=1e-6)
    plt.close(figure)


def test_attributes_that_other_packages_read_keep_their_meaning(call):
    trainer = fit(ready(), call)
    assert len(trainer.train_indices) == 108
    assert sorted(torch.cat([trainer.train_indices, trainer.val_indices]).tolist()) == list(
        range(120)
    )
    assert trainer.epoch == 2
    assert trainer._val_loss == trainer.training_summary.validation_loss[-1]
    assert trainer._best_val_loss == min(trainer.training_summary.validation_loss)
    assert trainer._epochs_since_last_improvement in (0, 1)
    assert same(trainer._best_model_state_dict, trainer._neural_net.state_dict())
    assert isinstance(trainer.optimizer, torch.optim.Optimizer)
    assert trainer._summary["epochs_trained"] == [2]


def test_a_trainer_without_simulations_has_no_summary_yet():
    assert empty("NPE_C").training_summary is None
