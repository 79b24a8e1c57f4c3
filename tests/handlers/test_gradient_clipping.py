"""Clipping is torch's clip_grad_norm_, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Engine
from torch import nn
from torch.nn.utils import clip_grad_norm_

from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.handlers.gradient_clipping import GradientClipping, clip_rows
from sbi_ignite.optim.flat import FlatOptimizer

SHAPES = [(1,), (17, 3), (), (129,), (64, 33)]


def parameters(scale=1.0, without=(), dtypes=(torch.float32,)):
    torch.manual_seed(2)
    made = [
        nn.Parameter(torch.randn(s, dtype=dtypes[i % len(dtypes)])) for i, s in enumerate(SHAPES)
    ]
    for i, parameter in enumerate(made):
        parameter.grad = None if i in without else scale * torch.randn_like(parameter)
    return made


def clip(clipping):
    """Let an engine take one step after whose backward pass gradients are clipped."""
    engine = Engine(lambda engine, batch: engine.fire_event(TrainingEvents.BACKWARD_COMPLETED))
    engine.register_events(*TrainingEvents)
    clipping.attach(engine)
    engine.run([0])


CASES = {
    "small": {"scale": 1e-3},
    "large": {"scale": 30.0},
    "just below": {"scale": 4.9999 / 46.5},
    "infinite": {"scale": math.inf},
    "not a number": {"scale": math.nan},
    "zero": {"scale": 0.0},
    "some without": {"scale": 30.0, "without": (1, 3)},
    "all without": {"without": range(5)},
    "two dtypes": {"scale": 30.0, "dtypes": (torch.float32, torch.float64)},
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_norms_are_torchs_bit_for_bit(name):
    expected, ours = parameters(**CASES[name]), parameters(**CASES[name])
    norm = clip_grad_norm_(expected, 5.0)
    clipping = GradientClipping(ours, 5.0)
    clip(clipping)
    for a, b in zip(expected, ours, strict=True):
        if a.grad is None:
            assert b.grad is None
        else:
            torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=0, equal_nan=True)
    assert clipping.mean_norm == pytest.approx(float(norm), abs=0, rel=0, nan_ok=True)


def test_it_clips_where_torch_would_begin_to():
    """Just around the largest norm, in float32 steps, gradients stay or shrink as torch's do."""
    for nudge in range(-20, 20):
        expected, ours = parameters(), parameters()
        largest = float(clip_grad_norm_(parameters(), 1e9)) * (1 + nudge * 1e-7)
        clip_grad_norm_(expected, largest)
        clip(GradientClipping(ours, largest))
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(expected, ours, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_without_a_largest_norm_it_is_measured_and_nothing_is_touched(name):
    ours = parameters(**CASES[name])
    before = [None if p.grad is None else p.grad.clone() for p in ours]
    clipping = GradientClipping(ours, None)
    clip(clipping)
    for parameter, gradient in zip(ours, before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0, equal_nan=True)
    norm = float(clip_grad_norm_(ours, 5.0))
    assert clipping.mean_norm == pytest.approx(norm, abs=0, rel=0, nan_ok=True)


def test_sparse_gradients_are_left_alone_where_nobody_clips():
    parameter = nn.Parameter(torch.ones(3, 2))
    parameter.grad = torch.eye(3, 2).to_sparse()
    clipping = GradientClipping([parameter], None)
    clip(clipping)
    assert math.isnan(clipping.mean_norm)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_with_a_flat_gradient_the_norm_is_the_same_and_the_step_sees_what_was_clipped(scale):
    expected, ours = parameters(), parameters()
    plain = torch.optim.Adam(expected)
    flat = FlatOptimizer(torch.optim.Adam(ours))
    clipping = GradientClipping(ours, 5.0, flat)
    with flat.lent_memory():
        for _ in range(3):
            fresh = parameters(scale)
            for a, b, source in zip(expected, ours, fresh, strict=True):
                a.grad, b.grad = source.grad.clone(), source.grad.clone()
            norm = clip_grad_norm_(expected, 5.0)
            plain.step()
            clip(clipping)
            assert clipping.mean_norm == pytest.approx(float(norm), rel=1e-6)
            flat.step()
        assert flat.flat_gradient() is not None
    for a, b in zip(expected, ours, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("max_norm", [None, 5.0])
def test_rows_are_clipped_each_as_a_flat_gradient_of_its_own(max_norm):
    """Bit for bit, so that it does not matter which steps a network takes with others."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1e-3, 0.03, 1.0, 40.0, float("nan"), float("inf")])
    rows = scales[:, None] * torch.randn(len(scales), 1072, generator=generator)
    expected, norms = [], []
    for row in rows:
        parameter = nn.Parameter(torch.zeros_like(row))
        parameter.grad = row.clone()
        flat = FlatOptimizer(torch.optim.Adam([parameter], fused=True))
        with flat.lent_memory():
            flat.step()
            parameter.grad = row.clone()
            clipping = GradientClipping([parameter], max_norm, flat)
            clip(clipping)
            assert flat.flat_gradient() is not None
        expected.append(parameter.grad)
        norms.append(clipping.mean_norm)
    clipped = torch.zeros_like(rows)
    found = clip_rows(rows, max_norm, clipped)
    assert found.tolist() == pytest.approx(norms, rel=0, abs=0, nan_ok=True)
    torch.testing.assert_close(clipped, torch.stack(expected), rtol=0, atol=0, equal_nan=True)
