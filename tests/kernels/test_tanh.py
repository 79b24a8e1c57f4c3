"""tanh by way of the sigmoid: how close it is to torch's, and where it is taken."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sbi_ignite.inference
from sbi_ignite import TrainConfig
from sbi_ignite.bridge.in_context import InContext
from sbi_ignite.kernels import tanh as module
from sbi_ignite.kernels.replacing import Replacing
from sbi_ignite.kernels.tanh import BY_SIGMOID, has_tanh, tanh
from tests.small import SBI_WARNS

pytestmark = SBI_WARNS


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_values_and_gradients_are_torchs_up_to_rounding(dtype, close):
    points = torch.cat((torch.linspace(-20, 20, 40_001), torch.tensor([-1e4, 1e4, 1e-30])))
    x = points.to(dtype).requires_grad_()
    y = tanh(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    (torchs,) = torch.autograd.grad(torch.tanh(x).sum(), x)
    assert (y - torch.tanh(x)).abs().max() < close
    assert (gradient - torchs).abs().max() < 3 * close
    assert y.abs().max() <= 1


def test_there_are_gradients_of_gradients():
    x = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tanh, (x,))
    assert torch.autograd.gradgradcheck(tanh, (x,))


def test_what_is_not_a_number_stays_so():
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    torch.testing.assert_close(tanh(x), torch.tanh(x), equal_nan=True)


by_sigmoid = partial(Replacing, BY_SIGMOID)


class Noting:
    """A loss that computes tanh in every way there is."""

    def __call__(self, model: Any, batch: torch.Tensor) -> torch.Tensor:
        ways = (torch.tanh(batch), batch.tanh(), nn.functional.tanh(batch), nn.Tanh()(batch))
        return torch.stack(ways)


@pytest.mark.parametrize("validates", [False, True])
def test_every_way_to_ask_for_tanh_is_answered(validates):
    loss = InContext(Noting(), by_sigmoid)
    x = torch.randn(1000)
    found = loss.validate(None, x) if validates else loss(None, x)
    assert all(torch.equal(way, tanh(x)) for way in found)
    assert not torch.equal(torch.tanh(x), tanh(x))  # outside, torch is as it was


def test_a_loss_validates_in_its_own_way():
    class Other(Noting):
        def validate(self, model: Any, batch: torch.Tensor) -> torch.Tensor:
            return torch.tanh(batch) + 1

    x = torch.randn(10)
    assert torch.equal(InContext(Other(), by_sigmoid).validate(None, x), tanh(x) + 1)


def test_coarse_numbers_are_left_to_torch():
    x = torch.linspace(-1, 1, 50, dtype=torch.bfloat16)
    assert torch.equal(InContext(Noting(), by_sigmoid)(None, x)[0], torch.tanh(x))


def trainer(**how):
    torch.manual_seed(0)
    theta = torch.randn(200, 2)
    made = sbi_ignite.inference.NPE(show_progress_bars=False, **how)
    return made.append_simulations(theta, theta + 0.1 * torch.randn(200, 2))


@pytest.mark.parametrize(
    ("flow", "uses"), [("maf", True), ("nsf", False), ("made", False), ("zuko_maf", False)]
)
def test_networks_with_tanh_are_known(flow, uses):
    made = trainer(density_estimator=flow)
    net = made.train(TrainConfig(max_epochs=1), checkpoint=False)
    assert has_tanh(net) == uses


def test_only_functions_are_taken_for_activations():
    assert has_tanh(nn.Sequential(nn.Linear(1, 1), nn.Tanh()))
    remembering = nn.Linear(1, 1)
    vars(remembering)["activation"] = np.zeros(3)  # what it has computed, as some networks keep it
    assert not has_tanh(nn.Sequential(remembering))


@pytest.mark.parametrize("compile_", ["off", "auto"])
@pytest.mark.parametrize(
    ("settings", "taken"),
    [({}, True), ({"sbi_compat": True}, False), ({"sbi_compat": True, "precision": "32"}, False)],
)
def test_it_is_taken_in_the_typed_form_alone(settings, taken, compile_, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "tanh", lambda x: calls.append(1) or tanh(x))
    config = TrainConfig(max_epochs=2, compile=compile_, **settings)
    net = trainer(density_estimator="maf").train(config, checkpoint=False)
    assert bool(calls) == taken
    assert all(
        part.activation is torch.tanh for part in net.modules() if "activation" in vars(part)
    )


def test_steps_with_it_are_recorded_and_give_the_same():
    losses = {}
    for compile_ in ("off", "trace"):
        made = trainer(density_estimator="maf")
        made.train(TrainConfig(max_epochs=5, compile=compile_), checkpoint=False)
        losses[compile_] = made.training_summary.training_loss
    assert losses["off"] == losses["trace"]
