"""Fields of the loss arguments reach the loss."""

from __future__ import annotations

import pytest
import torch

from sbi_ignite import (
    LossArgsBNRE,
    LossArgsNPE,
    LossArgsNRE,
    LossArgsNRE_C,
    LossArgsVF,
    TrainConfig,
)
from tests.small import SBI_WARNS, ready, same, second_round, train

pytestmark = SBI_WARNS


def kernel(x):
    return torch.exp(-x.square().sum(dim=-1))


@pytest.mark.parametrize(
    ("name", "kind", "field", "value"),
    [
        ("NRE_B", LossArgsNRE, "num_atoms", 3),
        ("NRE_C", LossArgsNRE_C, "num_classes", 2),
        ("NRE_C", LossArgsNRE_C, "gamma", 4.0),
        ("BNRE", LossArgsBNRE, "regularization_strength", 1.0),
        ("NPE_C", LossArgsNPE, "calibration_kernel", kernel),
        ("FMPE", LossArgsVF, "calibration_kernel", kernel),
        ("NPSE", LossArgsVF, "calibration_kernel", kernel),
    ],
)
def test_a_loss_argument_changes_the_training_as_sbis_keyword_does(name, kind, field, value):
    """Typed and keyword give the same weights, and others than the default gives."""
    typed = train(ready(name), TrainConfig(max_epochs=2), kind(**{field: value}))
    keyword = train(ready(name), TrainConfig(max_epochs=2), **{field: value})
    default = train(ready(name), TrainConfig(max_epochs=2), kind())
    assert same(typed, keyword)
    assert not same(typed, default)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("validation_times", 3),
        ("validation_times", torch.tensor([0.3, 0.6])),
        ("validation_times_nugget", 0.2),
    ],
)
def test_validation_times_change_the_validation_loss_only(field, value):
    """Training draws its times at random, so that the weights of every epoch stay the same."""
    trainer = train(ready("FMPE"), TrainConfig(max_epochs=1), LossArgsVF(**{field: value}))
    default = train(ready("FMPE"), TrainConfig(max_epochs=1), LossArgsVF())
    assert same(trainer, default)
    assert trainer.training_summary.validation_loss != default.training_summary.validation_loss


def test_ema_loss_decay_smooths_sbis_summary():
    plain = train(ready("FMPE"), TrainConfig(max_epochs=4), LossArgsVF(ema_loss_decay=1.0))
    smooth = train(ready("FMPE"), TrainConfig(max_epochs=4), LossArgsVF(ema_loss_decay=0.1))
    assert same(plain, smooth)
    assert plain.summary["training_loss"] != smooth.summary["training_loss"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_atoms", 3), ("use_combined_loss", True), ("force_first_round_loss", True)],
)
def test_arguments_of_later_rounds_change_the_second_round(field, value):
    def second(**fields):
        trainer = train(ready(num_rows=100), TrainConfig(max_epochs=1))
        second_round(trainer)
        return train(trainer, TrainConfig(max_epochs=1, batch_size=50), LossArgsNPE(**fields))

    assert not same(second(**{field: value}), second())


def test_an_argument_that_a_method_does_not_have_is_refused():
    """LossArgsNPE is shared; NPE_B has no atoms."""
    with pytest.raises(TypeError, match=r"NPE_B has no num_atoms"):
        ready("NPE_B").train(TrainConfig(), LossArgsNPE(num_atoms=5))


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        (LossArgsNRE, {"num_atoms": 10}),
        (LossArgsNRE_C, {"num_classes": 5, "gamma": 1.0}),
        (LossArgsBNRE, {"regularization_strength": 100.0}),
        (LossArgsNPE, {"calibration_kernel": None, "force_first_round_loss": False}),
        (
            LossArgsVF,
            {
                "ema_loss_decay": 0.1,
                "validation_times": 10,
                "validation_times_nugget": 0.05,
                "calibration_kernel": None,
                "force_first_round_loss": False,
            },
        ),
    ],
)
def test_defaults_are_sbis(kind, defaults):
    made = kind()
    assert {name: getattr(made, name) for name in defaults} == defaults
    assert made.exclude_invalid_x is None
