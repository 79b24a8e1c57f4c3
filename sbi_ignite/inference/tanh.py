"""A loss comes in; the same loss, with its tanh computed by way of the sigmoid, goes out.

On a CPU, torch takes 3.6 ns for the tanh of a number and 0.6 ns for its sigmoid: of a step of a
masked autoregressive flow, tanh is a quarter to a third. tanh(x) = 2 sigmoid(2 x) - 1 rounds
otherwise, by 2e-7 at most where tanh is of order 1, so that it belongs to the typed form only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sbi_ignite.methods.base import Loss

_TANH = (torch.tanh, Tensor.tanh, nn.functional.tanh)
_EXACT_ENOUGH = (torch.float32, torch.float64)
"""In bfloat16, two numbers near a half are too coarse for their difference."""


def has_tanh(net: nn.Module) -> bool:
    """Return whether a network is known to apply tanh, as the masked networks of nflows do."""
    return any(
        isinstance(part, nn.Tanh) or any(vars(part).get("activation") is way for way in _TANH)
        for part in net.modules()
    )


@dataclass(frozen=True)
class TanhBySigmoid:
    """A loss in which tanh is computed by way of the sigmoid.

    Attributes:
        loss: The loss as it is.
    """

    loss: Loss

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """Return the losses of a training batch."""
        with _Replaced():
            return self.loss(model, batch)

    def validate(self, model: Any, batch: Any) -> Tensor:
        """Return the losses of a validation batch."""
        with _Replaced():
            return getattr(self.loss, "validate", self.loss)(model, batch)


class _Replaced(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _TANH and not kwargs and args[0].dtype in _EXACT_ENOUGH:
            return tanh(args[0])
        return func(*args, **(kwargs or {}))


def tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent, shaped as `x`.

    Args:
        x: Any shape, float32 or float64.

    Example:
        >>> tanh(torch.tensor([-100.0, 0.0, 100.0]))
        tensor([-1.,  0.,  1.])
    """
    return _Tanh.apply(x)


class _Tanh(torch.autograd.Function):
    """The whole as one operation of autograd's, whose gradient is that of torch's tanh."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.rsub(torch.sigmoid(x + x), -1, alpha=-2)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradients[0], y)
