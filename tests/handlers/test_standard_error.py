"""What a validation loss is uncertain by: against numpy's quartiles, and in the engine."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from sbi_ignite import Stage, TrainConfig, run_training
from sbi_ignite.handlers.epoch_mean import StepOutput
from sbi_ignite.handlers.standard_error import ValidationSpread
from tests.small import METHODS, SBI_WARNS, ready, train

pytestmark = SBI_WARNS


def error_of(*batches):
    engine = Engine(lambda _, batch: StepOutput(0.0, 1, losses=batch))
    spread = ValidationSpread()
    spread.attach(engine)
    for _ in range(2):  # the second epoch forgets the first
        engine.run(batches, max_epochs=1)
        spread.conclude()
    return spread.error


def test_it_is_the_quartiles_distance_over_the_root_of_the_rows():
    losses = torch.randn(1001, generator=torch.Generator().manual_seed(0)) * 3 + 5
    low, high = np.quantile(losses.numpy(), [0.25, 0.75])
    expected = (high - low) / 1.349 / math.sqrt(1001)
    assert error_of(*losses.split(100)) == pytest.approx(expected, rel=1e-5)
    # Of normal losses, it estimates the standard error.
    assert expected == pytest.approx(losses.std().item() / math.sqrt(1001), rel=0.1)


def test_a_single_absurd_loss_changes_nothing():
    losses = torch.linspace(0, 1, 101)
    outlier = losses.clone()
    outlier[-1] = 1e9
    assert error_of(losses) == error_of(outlier)


@pytest.mark.parametrize("losses", [None, torch.ones(3)], ids=["means", "three rows"])
def test_without_losses_of_rows_it_is_not_known(losses):
    assert math.isnan(error_of(losses))


class Falling:
    """A loss that falls by a tenth in every epoch, while its rows are four apart."""

    def __init__(self):
        self.epoch = 0

    def __call__(self, model, batch):
        return model(batch).square().mean(dim=1)

    def validate(self, model, batch):
        self.epoch += 1
        return torch.linspace(-4, 4, len(batch)) - 0.1 * self.epoch


@pytest.mark.parametrize(("least", "epochs"), [(0.0, 30), (0.6, 30), (0.7, 3)])
def test_a_stage_ends_where_improvements_are_small_beside_the_error(least, epochs):
    """The error is 4 / 1.349 / 10, or 0.3; within a patience of two, the loss falls by 0.2."""
    x = torch.linspace(-1, 1, 100)[:, None]
    stages = [Stage(patience=2, min_improvement=least)]
    _, summary = run_training(
        TrainConfig(stages=stages, max_epochs=30), nn.Linear(1, 1), Falling(), [x], [x]
    )
    assert summary.epochs_trained == epochs
    assert summary.best_epoch == epochs


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_losses_of_rows(name):
    """NRE's losses are means in sbi; in the typed form they are not."""
    errors = []
    config = TrainConfig(max_epochs=2, stages=[Stage(patience=5, min_improvement=0.1)])
    trainer = ready(name, num_rows=100)
    watch = type("Watch", (), {"on_epoch_end": lambda _, s: errors.append(s.validation_error)})
    train(trainer, config, callbacks=[watch()])
    assert len(errors) == 2
    assert all(0 < error < math.inf for error in errors)
