"""Narrow linear layers: how close they are to torch's, and where they are taken."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from sbi.neural_nets import posterior_nn
from torch import Tensor, nn
from torch.func import grad, vmap

import sbi_ignite.inference
from sbi_ignite import TrainConfig
from sbi_ignite.bridge.in_context import InContext
from sbi_ignite.kernels import linear as module
from sbi_ignite.kernels.linear import NARROW, linear
from sbi_ignite.kernels.replacing import Replacing
from sbi_ignite.kernels.softplus import CONTIGUOUS
from tests.small import SBI_WARNS

pytestmark = SBI_WARNS
SHAPES = [(5, 50), (50, 5), (2, 3), (1, 4), (4, 1), (15, 16), (40, 40)]
"""Inputs and outputs of layers; the last is not narrow."""


def computed(function, x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """Return a layer's values and all gradients of a weighted sum of them."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = function(leaves[0], leaves[1], leaves[2] if bias is not None else None)
    total = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
    return [y, *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows", [(200,), (3,), (1,), (4, 25), (0,)])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_values_and_gradients_are_as_exact_as_torchs(inputs, outputs, rows, with_bias):
    """Judged in double precision, with inputs that lie side by side and that do not."""
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs) if with_bias else None
    for x in (torch.randn(*rows, inputs), torch.randn(inputs, *rows).movedim(0, -1)):
        ours = computed(linear, x, weight, bias)
        torchs = computed(nn.functional.linear, x, weight, bias)
        precise = [t.double() if t is not None else None for t in (x, weight, bias)]
        exact = computed(nn.functional.linear, *precise)
        for found, own, right in zip(ours, torchs, exact, strict=True):
            assert found.shape == own.shape
            error, torchs_error = ((of.double() - right).norm() for of in (found, own))
            assert error <= 2 * torchs_error + 1e-6 * right.norm()


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_results_lie_in_memory_as_torchs(inputs, outputs):
    """Code that comes next may take views of them."""
    x, weight, bias = torch.randn(200, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    for last in (bias, None):
        y = linear(x, weight, last)
        assert y.stride() == nn.functional.linear(x, weight, last).stride()


def test_there_are_gradients_of_gradients():
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear, (x, weight, bias))
    assert torch.autograd.gradgradcheck(linear, (x, weight, bias))


def test_functions_of_functions_take_it():
    weight, rows = torch.randn(2, 3), torch.randn(5, 4, 3)

    def total(x: Tensor) -> Tensor:
        return linear(x, weight).square().sum()

    expected = 2 * rows @ weight.t() @ weight
    torch.testing.assert_close(vmap(grad(total))(rows), expected)


def test_other_layers_and_coarse_numbers_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(module, "linear", lambda *of: pytest.fail("taken"))
    x = torch.randn(8, 20)
    with Replacing(NARROW):
        nn.Linear(20, 20)(x)
        nn.Linear(20, 1)(x)
        nn.Linear(20, 4)(x[0])
        nn.Linear(20, 4).bfloat16()(x.bfloat16())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert nn.Linear(20, 4)(x).dtype is torch.bfloat16


def test_softplus_is_torchs_up_to_rounding_wherever_numbers_lie():
    x = torch.linspace(-30, 30, 2000).view(1000, 2)[:, 0].requires_grad_()
    found = []
    for inside in (False, True):
        with Replacing(CONTIGUOUS if inside else {}):
            y = nn.functional.softplus(x)
        found.append((y, *torch.autograd.grad(y.sum(), x)))
    for ours, torchs in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("compile_", ["off", "auto"])
@pytest.mark.parametrize(("settings", "taken"), [({}, True), ({"sbi_compat": True}, False)])
def test_it_is_taken_in_the_typed_form_alone(settings, taken, compile_, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "linear", lambda *of: calls.append(1) or linear(*of))
    config = TrainConfig(max_epochs=2, compile=compile_, **settings)
    trainer().train(config, checkpoint=False)
    assert bool(calls) == taken


def test_steps_with_it_are_recorded_and_give_the_same():
    losses = {}
    for compile_ in ("off", "trace"):
        made = trainer()
        made.train(TrainConfig(max_epochs=5, compile=compile_), checkpoint=False)
        losses[compile_] = made.training_summary.training_loss
    assert losses["off"] == losses["trace"]


@pytest.mark.parametrize("flow", ["maf", "zuko_maf"])
def test_gradients_of_flows_are_as_exact_as_torchs_own(flow):
    torch.manual_seed(0)
    theta, x = torch.randn(50, 3), torch.randn(50, 2)
    net = posterior_nn(flow)(theta, x)
    parameters = [p for p in net.parameters() if p.requires_grad]

    def loss(net, batch):
        return net.loss(*batch)

    def gradients(loss, *batch) -> list[Tensor]:
        return list(torch.autograd.grad(loss(net, batch).mean(), parameters))

    ours = gradients(InContext(loss, partial(Replacing, {**NARROW, **CONTIGUOUS})), theta, x)
    torchs = gradients(loss, theta, x)
    net.double()
    exact = gradients(loss, theta.double(), x.double())
    for found, own, right in zip(ours, torchs, exact, strict=True):
        error, torchs_error = ((of.double() - right).norm() for of in (found, own))
        assert error <= 2 * torchs_error + 1e-6 * right.norm()


def trainer():
    torch.manual_seed(0)
    theta = torch.randn(200, 2)
    made = sbi_ignite.inference.NPE(show_progress_bars=False, density_estimator="maf")
    return made.append_simulations(theta, theta + 0.1 * torch.randn(200, 2))
