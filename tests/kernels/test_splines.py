"""Splines computed for all values give what nflows gives, and nobody else meets them."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nflows.nn.nets import ResidualNet
from nflows.transforms import autoregressive, splines
from nflows.transforms.coupling import PiecewiseRationalQuadraticCouplingTransform
from nflows.transforms.splines import rational_quadratic
from sbi.neural_nets import posterior_nn
from torch import Tensor

import sbi_ignite.inference
from sbi_ignite import TrainConfig
from sbi_ignite.capture.verification import Tracing
from sbi_ignite.kernels.rational_quadratic import Splines
from sbi_ignite.kernels.rational_quadratic import rational_quadratic as own_rational_quadratic
from sbi_ignite.kernels.splines import (
    _spline_for_all_values,
    replaceable_splines,
    splines_for_all_values,
)

OWN = rational_quadratic.unconstrained_rational_quadratic_spline
OWN_COUPLED = PiecewiseRationalQuadraticCouplingTransform._piecewise_cdf


def spline(
    function: Any, inputs: Tensor, bins: int, inverse: bool, seed: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return values, log-derivatives and the gradients of a weighted sum of both."""
    generator = torch.Generator().manual_seed(seed)
    leaves = [inputs.clone().requires_grad_()]
    for count in (bins, bins, bins - 1):
        shape = (*inputs.shape, count)
        values = torch.randn(shape, generator=generator, dtype=inputs.dtype)
        leaves.append(values.requires_grad_())
    outputs, log_derivatives = function(*leaves, inverse=inverse, tails="linear", tail_bound=3.0)
    weights = torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)
    total = (weights * outputs + weights.flip(0) * log_derivatives).sum()
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    pairs = zip(leaves, gradients, strict=True)
    return outputs, log_derivatives, [torch.zeros_like(a) if g is None else g for a, g in pairs]


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(
        st.floats(-8, 8, width=32) | st.sampled_from([-3.0, 3.0, 0.0]), min_size=1, max_size=30
    ),
    bins=st.integers(2, 10),
    inverse=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_are_those_of_nflows(
    values: list[float], bins: int, inverse: bool, seed: int
):
    """With values inside, outside, at both ends, all inside and all outside."""
    inputs = torch.tensor(values, dtype=torch.float64)[:, None]
    theirs = spline(OWN, inputs, bins, inverse, seed)
    ours = spline(_spline_for_all_values, inputs, bins, inverse, seed)
    for a, b in zip((*theirs[:2], *theirs[2]), (*ours[:2], *ours[2]), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


def test_a_value_that_is_not_a_number_stays_one():
    inputs = torch.tensor([[float("nan")], [0.5]])
    outputs, _, _ = spline(_spline_for_all_values, inputs, 5, False, 0)
    assert outputs.isnan().tolist() == [[True], [False]]


@pytest.mark.parametrize("options", [{}, {"tail_bound": 2.0, "min_bin_width": 0.01}])
@pytest.mark.parametrize("inverse", [False, True])
def test_coupling_layers_give_what_nflows_gives(inverse: bool, options: dict[str, float]):
    """Also where bins differ in their smallest sizes, and backwards, which is left to nflows."""
    torch.manual_seed(0)
    layer = PiecewiseRationalQuadraticCouplingTransform(
        torch.tensor([1, 0, 1]),
        lambda n_in, n_out: ResidualNet(n_in, n_out, hidden_features=8),
        tails="linear",
        **{"tail_bound": 3.0, **options},
    ).double()
    inputs = 2 * torch.randn(40, 3, dtype=torch.float64)
    found = []
    for chosen in (False, True):
        with replaceable_splines(), splines_for_all_values() if chosen else nullcontext():
            outputs, log_derivatives = (layer.inverse if inverse else layer)(inputs)
        (outputs.square().sum() + log_derivatives.sum()).backward()
        found.append((outputs, log_derivatives, *(p.grad for p in layer.parameters())))
        layer.zero_grad()
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_gradients_of_the_spline_are_those_of_finite_differences():
    torch.manual_seed(0)
    inputs = torch.linspace(-4, 4, 8, dtype=torch.float64).reshape(4, 2).requires_grad_()
    numbers = torch.randn(4, 2, 3 * 4 - 1, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        return own_rational_quadratic(x, n, Splines(0.7, 3.0, 1e-3, 1e-3))

    assert torch.autograd.gradcheck(function, (inputs, numbers))
    assert torch.autograd.gradgradcheck(function, (inputs, numbers))


def test_what_gives_no_gradient_takes_none():
    """Only one of the two results has a part in the loss, and inputs may be data."""
    inputs, numbers = torch.zeros(4, 1), torch.randn(4, 1, 11).requires_grad_()
    values, _ = own_rational_quadratic(inputs, numbers, Splines(1.0, 3.0, 1e-3, 1e-3))
    values.sum().backward()
    assert numbers.grad is not None
    assert inputs.grad is None


def trainer(model: str = "nsf", rows: int = 300) -> Any:
    """Return a trainer with a spline flow and its simulations."""
    torch.manual_seed(0)
    made = sbi_ignite.inference.NPE(
        density_estimator=posterior_nn(model, hidden_features=8, num_transforms=2),
        show_progress_bars=False,
    )
    theta = torch.randn(rows, 2)
    return made.append_simulations(theta, theta + 0.3 * torch.randn(rows, 2))


def own_are_back() -> bool:
    """Return whether nflows finds its own splines."""
    name = "unconstrained_rational_quadratic_spline"
    places = [place for place in (splines, autoregressive) if hasattr(place, name)]
    coupled = PiecewiseRationalQuadraticCouplingTransform._piecewise_cdf is OWN_COUPLED
    return coupled and len(places) > 0 and all(getattr(place, name) is OWN for place in places)


@pytest.mark.parametrize("model", ["nsf", "maf_rqs"])
def test_steps_of_spline_flows_are_recorded(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path):
    """And give, recorded or not, the same weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sbi_ignite.capture.compiler.STEPS_BEFORE_TRACING", 5)
    nets, replays = [], []
    replay = Tracing.replay

    def counted(*args: Any) -> Any:
        outputs = replay(*args)
        replays.append(outputs is not None)
        return outputs

    for way in ("off", "trace"):
        with mock.patch.object(Tracing, "replay", counted):
            nets.append(trainer(model).train(TrainConfig(max_epochs=6, compile=way, batch_size=50)))
    assert sum(replays) > 10
    for a, b in zip(*(net.state_dict().values() for net in nets), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
def test_sbis_form_computes_as_nflows_does(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with mock.patch("sbi_ignite.kernels.splines.rational_quadratic") as ours:
        trainer().train(max_num_epochs=1)
    assert ours.call_count == 0


def test_nflows_has_its_own_splines_after_training(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    trainer().train(TrainConfig(max_epochs=1))
    assert own_are_back()

    class Breaking:
        def on_epoch_end(self, state: Any) -> None:
            raise KeyError(state.epoch)

    with pytest.raises(KeyError):
        trainer().train(TrainConfig(max_epochs=1), callbacks=[Breaking()])
    assert own_are_back()


def test_others_meet_nflows_splines_while_a_training_runs():
    """A posterior that is sampled by a callback, or in another thread, computes as ever."""
    with replaceable_splines():
        assert not own_are_back()
        with mock.patch("sbi_ignite.kernels.splines.rational_quadratic") as ours:
            spline(splines.unconstrained_rational_quadratic_spline, torch.zeros(3, 1), 4, False, 0)
        assert ours.call_count == 0
        with replaceable_splines():
            pass
        assert not own_are_back()
    assert own_are_back()


@pytest.mark.parametrize("compat", [True, False])
@pytest.mark.parametrize("model", ["nsf", "maf_rqs"])
def test_splines_keep_32_bits_in_mixed_precision(model: str, compat: bool, monkeypatch, tmp_path):
    """In bfloat16, nflows looks for a bin behind the last one."""
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(precision="bf16-mixed", max_epochs=6, sbi_compat=compat, batch_size=50)
    made = trainer(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Maximum number of epochs")
        made.train(config)
    losses = made.training_summary.validation_loss
    assert losses[-1] < losses[0]
