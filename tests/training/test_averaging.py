"""Averaged weights are validated, kept and returned; training goes on from the plain ones."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from torch import nn

from sbi_ignite import EarlyStopping, TrainConfig, WeightAveraging, run_training
from tests.small import SBI_WARNS, ready, same, train, weights

pytestmark = SBI_WARNS

X = torch.linspace(-1, 1, 24).reshape(12, 2)
BATCHES = [X[i : i + 4] for i in (0, 4, 8)]


def loss(model, batch):
    return (model(batch) - batch.sum(dim=1, keepdim=True)).square().mean(dim=1)


class Watch:
    """Every step's weights, and what the network holds when an epoch's end is told."""

    def __init__(self, model):
        self.model, self.steps, self.told = model, [], []

    def attach(self, engine):
        keep = lambda: self.steps.append(self.model.weight.detach().clone())  # noqa: E731
        engine.add_event_handler(Events.ITERATION_COMPLETED, keep)

    def on_epoch_end(self, state):
        self.told.append((self.model.weight.detach().clone(), state.validation_loss))


def linear():
    torch.manual_seed(1)
    return nn.Linear(2, 1, bias=False)


def fields(**more):
    return TrainConfig(max_epochs=8, learning_rate=0.1, optimizer="sgd", **more)


def fit(**more):
    model = linear()
    watch = Watch(model)
    _, summary = run_training(
        fields(**more),
        model,
        loss,
        BATCHES,
        [X],
        callbacks=[watch],
        early_stopping=EarlyStopping.never(),
    )
    return model, watch, summary


SETTINGS = {
    "power": ({"averaging": WeightAveraging("power", factor=4.0)}, lambda k: min(1.0, 4.0 / k)),
    "ema": ({"ema_decay": 0.8}, lambda k: 1.0 if k == 1 else 1 - 0.8),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_average_of_all_steps_is_what_is_validated_told_and_returned(name):
    more, share = SETTINGS[name]
    model, watch, summary = fit(**more)
    plain, without, _ = fit()
    assert all(map(torch.equal, watch.steps, without.steps))  # training itself is the same
    average, best = torch.zeros(1, 2), (float("inf"), plain.weight)
    for k, step in enumerate(watch.steps, 1):
        average = average + share(k) * (step - average)
        if k % len(BATCHES):
            continue
        told, validated = watch.told[k // len(BATCHES) - 1]
        torch.testing.assert_close(told, average, rtol=1e-5, atol=1e-6)
        by_hand = (X @ average.T - X.sum(dim=1, keepdim=True)).square().mean().item()
        assert validated == pytest.approx(by_hand, rel=1e-4)
        best = min(best, (validated, told), key=lambda pair: pair[0])
    assert torch.equal(model.weight, best[1])
    assert summary.best_validation_loss == best[0]
    assert not torch.equal(model.weight, plain.weight)


def test_without_any_finished_epoch_the_average_is_returned():
    """Nothing was validated, hence nothing is the best; the average is what there is."""
    model = linear()
    watch = Watch(model)

    class BreakingOff:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.terminate)

    setting = WeightAveraging("power", factor=1.0)
    run_training(
        TrainConfig(max_epochs=1, learning_rate=0.1, averaging=setting, optimizer="sgd"),
        model,
        loss,
        BATCHES,
        [X],
        callbacks=[watch, BreakingOff()],
    )
    assert len(watch.steps) == 2
    torch.testing.assert_close(model.weight, torch.stack(watch.steps).mean(dim=0))


@pytest.mark.parametrize("name", ["NPE_C", "FMPE"])
def test_sbis_own_rule_keeps_the_average_in_sbis_form(name):
    """`_converged` copies what the network holds when it is asked."""
    plain = train(ready(name), TrainConfig(sbi_compat=True, max_epochs=4))
    trainer = ready(name)
    seen = []

    class Look:
        def on_epoch_end(self, state):
            seen.append((state.validation_loss, weights(trainer)))

    config = TrainConfig(sbi_compat=True, max_epochs=4, ema_decay=0.9)
    train(trainer, config, callbacks=[Look()])
    best = min(seen, key=lambda pair: pair[0])
    assert same(trainer, best[1])
    assert same(trainer._best_model_state_dict, best[1])
    assert plain._summary["training_loss"] == trainer._summary["training_loss"]
    assert not same(plain, trainer)


@pytest.mark.parametrize("name", ["NPE_C", "NRE_B", "FMPE"])
def test_two_legs_with_averages_are_one_training(name):
    settings = {"averaging": "power", "batch_size": 40, "learning_rate": 0.01}
    whole = train(ready(name), TrainConfig(max_epochs=6, **settings))
    legs = train(ready(name), TrainConfig(max_epochs=3, **settings))
    legs.train(TrainConfig(max_epochs=6, resume_training=True, **settings))
    assert same(whole, legs)
    assert whole.training_summary.validation_loss == legs.training_summary.validation_loss
