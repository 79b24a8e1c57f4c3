"""Numbers too small for full precision: zeros while a typed training runs, as they are else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sbi_ignite import Callback, TrainConfig, run_training
from sbi_ignite.kernels.denormals import are_zeros, denormals_as_zeros

CAN = torch.set_flush_denormal(True) and torch.set_flush_denormal(False)
pytestmark = pytest.mark.skipif(not CAN, reason="this processor has no such mode")

TINY = 1e-40


def product() -> float:
    return (torch.tensor([TINY]) * 1).item()


def test_they_are_zeros_inside_the_block_alone():
    with denormals_as_zeros():
        assert product() == 0.0
    assert 0 < product() < 2 * TINY


def test_they_are_left_alone_where_nobody_wants_it():
    with denormals_as_zeros(wanted=False):
        assert product() > 0


def test_an_error_ends_the_block_too():
    with pytest.raises(KeyError), denormals_as_zeros():
        raise KeyError
    assert not are_zeros()


def test_who_had_asked_for_zeros_keeps_them():
    torch.set_flush_denormal(True)
    try:
        with denormals_as_zeros():
            assert are_zeros()
        assert are_zeros()
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("sbi_compat", [False, True])
def test_typed_trainings_take_them_for_zeros(sbi_compat):
    """With sbi_compat, numbers are those of sbi, to the last bit."""
    seen = []

    class Multiplies(Callback):
        def on_epoch_end(self, state):
            seen.append(product())

    config = TrainConfig(max_epochs=2, sbi_compat=sbi_compat)
    batches = [torch.ones(4, 2)]
    run_training(
        config,
        nn.Linear(2, 1),
        lambda net, x: net(x).square()[:, 0],
        batches,
        callbacks=[Multiplies()],
    )
    assert all((value > 0) == sbi_compat for value in seen)
    assert len(seen) >= 2
    assert product() > 0
