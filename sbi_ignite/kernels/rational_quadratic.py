"""Evaluate rational-quadratic splines and their log-derivatives.

The rational-quadratic spline of Durkan et al., "Neural Spline Flows", NeurIPS 2019, with linear
tails and gradients written out by hand. A training step of a spline flow consists of thousands of
small operations; written this way, a spline and its gradients take half as many as autograd takes
for those of nflows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus


class Splines(NamedTuple):
    """What all splines of a layer have in common.

    Attributes:
        scale: What unnormalized widths and heights are multiplied by.
        tail_bound: Where the linear tails begin.
        min_bin_size: Smallest width and height of a bin, as a share of the whole.
        min_derivative: Smallest derivative at an inner knot.
    """

    scale: float
    tail_bound: float
    min_bin_size: float
    min_derivative: float


def rational_quadratic(inputs: Tensor, numbers: Tensor, splines: Splines) -> tuple[Tensor, Tensor]:
    """Return values and log-derivatives of splines on (-tail_bound, tail_bound), identity outside.

    Args:
        inputs: Where to evaluate, any shape.
        numbers: Of the same shape, with one more dimension of 3 K - 1 numbers for K bins:
            unnormalized widths, heights, and derivatives at the inner knots.
        splines: What they have in common.

    Returns:
        Values and logarithms of derivatives, shaped as `inputs`.

    Example:
        >>> flat = torch.zeros(3, 3 * 4 - 1)
        >>> x = torch.tensor([-2.0, 0.0, 2.0])
        >>> values, _ = rational_quadratic(x, flat, Splines(1.0, 1.0, 1e-3, 1e-3))
        >>> values
        tensor([-2.,  0.,  2.])
    """
    return _RationalQuadratic.apply(inputs, numbers, splines)


def _evaluate(
    inputs: Tensor, numbers: Tensor, splines: Splines
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return values, log-derivatives, and what their gradients are computed from.

    A bin is given by its right end (x1, y1), its width w and height h, and the derivatives d0 and
    d1 at its ends. With s = h / w, t the share of the bin that lies left of x, u = t (1 - t) and
    r = d0 + d1 - 2 s, the paper's equations (4) and (5) are

        y = y1 - h + h n / b,  n = s t^2 + d0 u,  b = s + r u
        log dy/dx = 2 log s + log a - 2 log b,  a = d1 t^2 + 2 s u + d0 (1 - t)^2.
    """
    scale, tail_bound, min_bin_size, min_derivative = splines
    bins = (numbers.shape[-1] + 1) // 3
    both, derivatives = numbers.split((2 * bins, bins - 1), dim=-1)
    shares = _softmax(both.unflatten(-1, (2, bins)) * scale)
    sizes = shares * _stretch(splines, bins) + 2 * tail_bound * min_bin_size
    ends = sizes.cumsum(-1) - tail_bound
    knots = pad(softplus(derivatives) + min_derivative, (1, 1), value=1.0)

    outside = inputs.abs() > tail_bound
    # For the others any value inside will do: it gets no gradient.
    x = inputs.masked_fill(outside, 0.0)
    bin_number = (x.unsqueeze(-1) >= ends[..., 0, :-1]).sum(-1, keepdim=True)
    of_both = bin_number.unsqueeze(-1).expand(*bin_number.shape[:-1], 2, 1)
    w, h = sizes.gather(-1, of_both).squeeze(-1).unbind(-1)
    x1, y1 = ends.gather(-1, of_both).squeeze(-1).unbind(-1)
    both_ends = torch.cat((bin_number, bin_number + 1), dim=-1)
    d0, d1 = knots.gather(-1, both_ends).unbind(-1)

    s = h / w
    left = (x1 - x) / w  # 1 - t
    t = 1 - left
    u = t * left
    r = d0 + d1 - 2 * s
    t2, left2 = t * t, left * left
    b = s + r * u
    share = (s * t2 + d0 * u) / b
    a = d1 * t2 + 2 * s * u + d0 * left2
    y = y1 - h + h * share
    log_derivative = 2 * torch.log(s / b) + torch.log(a)

    bin_ = (bin_number, both_ends, w, h, d0, d1)
    rest = (outside, shares, derivatives, *bin_, s, t, left, a, b, share)
    return torch.where(outside, inputs, y), log_derivative.masked_fill(outside, 0.0), rest


def _softmax(logits: Tensor) -> Tensor:
    """Return the softmax over the last dimension.

    On a CPU, torch's own takes 19 ns per number if that dimension is as short as here.
    """
    if logits.device.type != "cpu":
        return torch.softmax(logits, dim=-1)
    powers = torch.exp2((logits - logits.detach().amax(-1, keepdim=True)) * _LOG2_E)
    return powers / powers.sum(-1, keepdim=True)


_LOG2_E = 1 / math.log(2)


def _stretch(splines: Splines, bins: int) -> float:
    """Return the factor for shares of the interval, which are added to the smallest bin size."""
    return 2 * splines.tail_bound * (1 - splines.min_bin_size * bins)


class _RationalQuadratic(torch.autograd.Function):
    """The spline as a single autograd operation."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, numbers: Tensor, splines: Splines
    ) -> tuple[Tensor, Tensor]:
        values, log_derivatives, rest = _evaluate(inputs, numbers, splines)
        ctx.save_for_backward(inputs, numbers, *rest)
        ctx.splines = splines
        return values, log_derivatives

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, numbers, outside, shares, derivatives, bin_number, both_ends, *rest = (
            ctx.saved_tensors
        )
        if torch.is_grad_enabled():
            # Gradients of gradients are needed: autograd can differentiate the forward pass.
            found = _by_autograd(inputs, numbers, ctx.splines, gradients, ctx.needs_input_grad[:2])
            return *found, None
        w, h, d0, d1, s, t, left, a, b, share = rest
        of_values, of_logs = gradients
        go, gl = of_values.masked_fill(outside, 0.0), of_logs.masked_fill(outside, 0.0)

        # What follows is the chain rule: g_v is the gradient with respect to v.
        u, r = t * left, d0 + d1 - 2 * s
        t2, left2 = t * t, left * left
        g_a = gl / a
        g_n = go * h / b
        g_b = -(2 * gl / b + g_n * share)
        g_bn = g_b + g_n
        g_s = 2 * (gl / s + g_a * u - g_b * u) + g_b + g_n * t2
        g_d0 = g_a * left2 + g_bn * u
        g_d1 = g_a * t2 + g_b * u
        g_u = 2 * g_a * s + g_b * r + g_n * d0
        g_t = 2 * (g_a * (d1 * t - d0 * left) + g_n * s * t) + g_u * (left - t)
        g_x = g_t / w
        g_s_of_size = g_s / w
        g_w = g_x * left - g_s_of_size * s
        g_h = go * (share - 1) + g_s_of_size

        # A right end is the sum of the sizes up to it.
        place = torch.arange(shares.shape[-1], device=shares.device)
        number = bin_number.unsqueeze(-1)
        g_ends = torch.stack((-g_x, go), dim=-1).unsqueeze(-1)
        g_own = torch.stack((g_w, g_h), dim=-1).unsqueeze(-1)
        g_sizes = (place <= number) * g_ends + (place == number) * g_own
        g_shares = g_sizes * _stretch(ctx.splines, shares.shape[-1])
        inner = (g_shares * shares).sum(-1, keepdim=True)
        g_both = (shares * (g_shares - inner) * ctx.splines.scale).flatten(-2)

        g_knots = torch.zeros_like(pad(derivatives, (1, 1)))
        g_knots = g_knots.scatter(-1, both_ends, torch.stack((g_d0, g_d1), dim=-1))
        g_derivatives = g_knots[..., 1:-1] * torch.sigmoid(derivatives)
        g_numbers = torch.cat((g_both, g_derivatives), dim=-1)
        return torch.where(outside, of_values, g_x), g_numbers, None


def _by_autograd(
    inputs: Tensor,
    numbers: Tensor,
    splines: Splines,
    gradients: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
) -> Iterator[Tensor | None]:
    """Yield the gradients that are needed, themselves with an autograd history."""
    values, log_derivatives, _ = _evaluate(inputs, numbers, splines)
    leaves = [leaf for leaf, want in zip((inputs, numbers), wanted, strict=True) if want]
    found = iter(
        torch.autograd.grad((values, log_derivatives), leaves, gradients, create_graph=True)
    )
    for want in wanted:
        yield next(found) if want else None
