"""Compute linear layers with few inputs or outputs by the faster of two equal products.

A product of matrices with fewer than 16 columns takes torch's library on a CPU two to three times
as long as its transpose: the gradient of a weight of shape (50, 5) in a batch of 200 rows 20 us
instead of 6. Flows have many of these, because theta and x have few dimensions; together they are a
tenth of a step of a masked autoregressive flow. Sums are taken in another order, so this is used in
the typed form only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sbi_ignite.kernels.replacing import Ways

FEW = 16
"""Columns from which on a product is as fast as its transpose."""
_TYPES = (torch.float32, torch.float64)


def _is_narrow(x: Tensor, weight: Tensor) -> bool:
    return (
        weight.ndim == 2
        and 1 < min(weight.shape) < FEW
        and x.ndim > 1
        and x.dtype == weight.dtype
        and x.dtype in _TYPES
        and not torch.is_autocast_enabled(x.device.type)
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `torch.nn.functional.linear` of the same arguments.

    Args:
        x: Shape (..., in_features), with at least two dimensions.
        weight: Shape (out_features, in_features).
        bias: Shape (out_features,), or None.

    Example:
        >>> linear(torch.ones(3, 2), torch.ones(1, 2), torch.ones(1)).squeeze(1)
        tensor([3., 3., 3.])
    """
    rows = x.reshape(-1, x.shape[-1])
    y = _Linear.apply(rows, weight, bias)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """A linear layer as a single autograd operation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return _product(x, weight.t()).contiguous()
        if 1 < len(weight) < FEW <= len(x):
            return torch.addmm(bias.unsqueeze(1), weight, x.t()).t().contiguous()
        return torch.addmm(bias, x, weight.t())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            _product(gradient, weight) if wanted[0] else None,
            _product(gradient.t(), x) if wanted[1] else None,
            gradient.sum(0) if wanted[2] else None,
        )


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two matrices, in which memory order is the faster one."""
    if 1 < b.shape[1] < FEW and b.shape[1] < len(a):
        return (b.t() @ a.t()).t()
    return a @ b


def _linear_or_not(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return linear(x, weight, bias) if _is_narrow(x, weight) else NotImplemented


NARROW: Ways = {nn.functional.linear: _linear_or_not}
"""Linear layers by the faster products, see `Replacing`."""
