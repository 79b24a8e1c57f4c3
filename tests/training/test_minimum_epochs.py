"""How many epochs are sure to come: what rules and stages say, held against trainings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sbi_ignite.inference
from sbi_ignite import Callback, EarlyStopping, Stage, TrainConfig, run_training
from sbi_ignite.capture.verification import Tracing
from sbi_ignite.settings import resolve
from sbi_ignite.training.minimum_epochs import sure_epochs
from tests.small import SBI_WARNS

pytestmark = SBI_WARNS

STEPS = 5
RULES = st.sampled_from(
    [
        EarlyStopping.validation_loss(patience=3),
        EarlyStopping.two_standard_deviations(patience=4),
        EarlyStopping.lr_threshold(1e-3),
        EarlyStopping.when(lambda state: state.epoch >= 2),
    ]
)
STAGES = st.builds(
    Stage,
    patience=st.integers(1, 4),
    patience_steps=st.integers(1, 12),
    max_epochs=st.none() | st.integers(1, 6),
    max_relative_length=st.none() | st.sampled_from([0.25, 0.5, 2.0]),
)


def beginning_with_an_absolute_length(stages):
    return [s.model_copy(update={"max_relative_length": None}) for s in stages[:1]] + stages[1:]


def sure(config: TrainConfig, early_stopping=None) -> float:
    return sure_epochs(resolve(train=config, early_stopping=early_stopping), STEPS)


def test_the_shortest_of_the_bounds_counts():
    assert sure(TrainConfig()) == 20
    assert sure(TrainConfig(max_epochs=7)) == 7
    assert sure(TrainConfig(), EarlyStopping.never()) == TrainConfig().max_epochs
    assert sure(TrainConfig(), EarlyStopping.lr_threshold(1e-5)) == 0
    both = [EarlyStopping.validation_loss(patience=9), EarlyStopping.validation_loss(patience=4)]
    assert sure(TrainConfig(), both) == 4


def test_a_recipe_is_as_long_as_its_stages_at_least():
    """15 epochs, which are longer than 60 steps; then half, a fifth and a fifth of all before."""
    config = TrainConfig.fast()
    filled = resolve(train=config).with_recipe(900)
    length = 15
    for share in (0.5, 0.2, 0.2):
        length += math.ceil(share * length)
    assert sure_epochs(filled, STEPS) == length == 34


@settings(deadline=None, max_examples=40)
@given(
    rules=st.lists(RULES, max_size=2) | st.just([EarlyStopping.never()]),
    stages=st.lists(STAGES, max_size=3).map(beginning_with_an_absolute_length),
    epochs=st.integers(1, 30),
    falls=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_no_training_is_shorter_than_it_is_sure_to_be(rules, stages, epochs, falls):
    """Whatever the validation loss does."""
    level, losses = 0.0, []
    for fall in falls:
        level += -1.0 if fall else 1.0
        losses.append(level)
    script = iter(losses)

    class Scripted:
        def __call__(self, model, batch):
            return model(batch).square().mean(dim=1)

        def validate(self, model, batch):
            return torch.full((len(batch),), next(script))

    config = TrainConfig(max_epochs=epochs, stages=stages, compile="off")
    rows = [torch.ones(2, 1)] * STEPS
    asked = rules or None
    _, summary = run_training(
        config, nn.Linear(1, 1), Scripted(), rows, [torch.ones(1, 1)], early_stopping=asked
    )
    assert summary.epochs_trained >= sure_epochs(resolve(train=config, early_stopping=asked), STEPS)


@pytest.mark.parametrize(("epochs", "recorded"), [(7, False), (8, True)])
def test_steps_are_recorded_at_once_when_enough_are_sure_to_come(
    epochs, recorded, monkeypatch, tmp_path
):
    """Of 4 steps an epoch, 28 are too few; of 32, the first is recorded."""
    monkeypatch.chdir(tmp_path)
    replayed = []
    replay = Tracing.replay

    def counted(self, *args):
        replayed.append(1)
        return replay(self, *args)

    monkeypatch.setattr(Tracing, "replay", counted)
    proved = []
    prove = Tracing.prove

    def noted(self, *args):
        proved.append(len(replayed))
        return prove(self, *args)

    monkeypatch.setattr(Tracing, "prove", noted)
    torch.manual_seed(0)
    theta = torch.randn(880, 2)
    trainer = sbi_ignite.inference.NPE(density_estimator="maf", show_progress_bars=False)
    trainer.append_simulations(theta, theta + torch.randn(880, 2))
    trainer.train(TrainConfig(max_epochs=epochs, batch_size=200))
    assert (len(proved) > 0) == recorded
    if recorded:
        assert proved[0] == 0


def test_validation_is_recorded_at_once_when_the_recipe_is_sure_to_pay(monkeypatch):
    """With 1,000 simulations, the recipe's stages take 34 epochs at least, of one batch each."""
    proved = []
    prove = Tracing.prove

    def noted(self, shape, *args):
        proved.append((self.model.training, shape.seen))
        return prove(self, shape, *args)

    monkeypatch.setattr(Tracing, "prove", noted)
    torch.manual_seed(0)
    theta = torch.randn(1000, 2)
    trainer = sbi_ignite.inference.NPE(density_estimator="maf", show_progress_bars=False)
    trainer.append_simulations(theta, theta + torch.randn(1000, 2))

    class Eight(Callback):
        def on_epoch_end(self, state):
            if state.epoch == 8:
                state.stop("callback")

    config = TrainConfig.fast()
    assert sure_epochs(resolve(train=config).with_recipe(900), 9) == 34
    trainer.train(config, callbacks=[Eight()], checkpoint=False)
    assert [seen for training, seen in proved if not training] == [1, 2]


@pytest.mark.parametrize(("rows", "first"), [(1_000, 1), (1_100, 4)])
def test_large_batches_are_recorded_after_some_steps(rows, first, monkeypatch):
    """A recording holds all intermediate results of a batch."""
    proved = []
    prove = Tracing.prove

    def noted(self, shape, *args):
        proved.append(shape.seen)
        return prove(self, shape, *args)

    monkeypatch.setattr(Tracing, "prove", noted)
    theta = torch.randn(10 * rows, 2)
    trainer = sbi_ignite.inference.NPE(density_estimator="maf", show_progress_bars=False)
    trainer.append_simulations(theta, theta + torch.randn(10 * rows, 2))
    trainer.train(TrainConfig(max_epochs=4, batch_size=rows), checkpoint=False)
    assert proved[0] == first
