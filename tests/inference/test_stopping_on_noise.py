"""In the typed form noise can end no training: the validation loss is a function of the weights."""

from __future__ import annotations

import pytest
import torch

from sbi_ignite import EarlyStopping, TrainConfig
from tests.small import SBI_WARNS, ready, train

pytestmark = SBI_WARNS

NOISY = ["FMPE", "NPSE", "NRE_A", "NRE_B"]
TINY = 1e-30
"""A rate at which no weight of a network in single precision moves."""


def validation_losses(name, *args, **kwargs):
    trainer = train(ready(name), *args, **kwargs)
    return trainer.training_summary.validation_loss


@pytest.mark.parametrize("name", NOISY)
def test_weights_that_stay_have_one_validation_loss_in_every_epoch(name):
    config = TrainConfig(learning_rate=TINY, max_epochs=5)
    losses = validation_losses(name, config, early_stopping=EarlyStopping.never())
    assert len(losses) == 5
    assert len(set(losses)) == 1


@pytest.mark.parametrize("name", NOISY)
def test_in_sbis_form_the_same_weights_have_another_loss_every_time(name):
    losses = validation_losses(
        name, learning_rate=TINY, max_num_epochs=4, training_batch_size=10, stop_after_epochs=100
    )
    assert len(set(losses)) == len(losses) == 5


@pytest.mark.parametrize("name", ["FMPE", "NRE_B"])
def test_patience_counts_an_epoch_that_moved_no_weight_as_fruitless_whatever_was_drawn(name):
    trainer = ready(name)
    torch.manual_seed(4)
    trainer.train(
        TrainConfig(learning_rate=TINY, max_epochs=50),
        early_stopping=EarlyStopping.validation_loss(patience=3),
    )
    # The first epoch's loss is the best that there can be; three more are let pass.
    assert trainer.training_summary.epochs_trained == 4
    assert trainer.training_summary.best_epoch == 1
