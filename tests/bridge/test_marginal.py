"""MarginalTrainer takes arrays, and says what shape it expects."""

from __future__ import annotations

import numpy as np
import pytest
import sbi.inference
import torch

from sbi_ignite import ArgumentError, DataError, TrainConfig, patch_sbi
from sbi_ignite.inference import MarginalTrainer
from tests.small import SBI_WARNS, empty, ready, same, train

pytestmark = SBI_WARNS

CONFIG = TrainConfig(max_epochs=2, batch_size=40)


def samples():
    torch.manual_seed(1)
    return torch.randn(120, 2)


WAYS = {
    "float32": lambda x: x.numpy(),
    "float64": lambda x: x.numpy().astype(np.float64),
    "list": lambda x: x.tolist(),
    "fortran": lambda x: np.asfortranarray(x.numpy()),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("typed", [True, False], ids=["typed", "sbi"])
def test_an_array_trains_as_the_tensor_of_the_same_numbers(way, typed):
    args, kwargs = ((CONFIG,), {}) if typed else ((), {"max_num_epochs": 2})
    trainers = [
        train(empty("MarginalTrainer").append_samples(x), *args, **kwargs)
        for x in (WAYS[way](samples()), samples())
    ]
    assert same(*trainers)


def test_whole_numbers_are_trained_on_as_real_ones():
    x = torch.randint(0, 50, (120, 2))
    trainers = [
        train(empty("MarginalTrainer").append_samples(values), CONFIG)
        for values in (x, x.numpy(), x.float())
    ]
    assert same(trainers[0], trainers[2])
    assert same(trainers[1], trainers[2])


WRONG = {
    "one dimension": (torch.zeros(100), DataError, r"shape \(100,\). One number per row is x\[:,"),
    "one dimension, array": (np.zeros(100), DataError, r"got shape \(100,\)"),
    "a number": (torch.tensor(1.0), DataError, r"got shape \(\)\.$"),
    "nothing": (None, ArgumentError, "got NoneType"),
    "words": (["a", "b"], ArgumentError, "an array of numbers, .* got list"),
    "uneven rows": ([[1.0], [1.0, 2.0]], ArgumentError, "got list"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_samples_is_refused_when_it_is_appended(what):
    given, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        MarginalTrainer().append_samples(given)


@pytest.mark.parametrize("what", WRONG)
def test_a_patched_trainer_of_sbis_says_the_same_when_it_trains(what):
    """The method that appends is sbi's own there."""
    given, error, message = WRONG[what]
    with patch_sbi():
        trainer = sbi.inference.MarginalTrainer(show_progress_bars=False).append_samples(given)
        with pytest.raises(error, match=message):
            trainer.train(max_num_epochs=1)


def test_tensors_are_neither_copied_nor_converted():
    x = samples()
    assert ready("MarginalTrainer").append_samples(x).get_samples() is x
    double = x.double()
    assert MarginalTrainer().append_samples(double).get_samples() is double
