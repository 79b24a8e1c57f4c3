"""Check that a loss function returns losses that torch can differentiate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sbi_ignite.exceptions import ArgumentError

EXPECTED = "loss_fn: expected losses of shape (batch,), or their mean of shape (), as a tensor"


def check_losses(losses: Any, training: bool = False) -> None:
    """Refuse anything but a tensor of losses.

    Args:
        losses: What the loss function returned.
        training: Whether gradients are to be computed from it.

    Raises:
        ArgumentError: If it is anything else, is not real-valued, or does not depend on parameters.
    """
    if not isinstance(losses, Tensor):
        raise ArgumentError(f"{EXPECTED}, got {_described(losses)}. {_remedy(losses)}")
    if not losses.is_floating_point():
        raise ArgumentError(
            f"{EXPECTED} of floating-point numbers, got one of {losses.dtype}. Return "
            f"{'a real loss, such as its .abs()' if losses.is_complex() else 'losses.float()'}."
        )
    if training and not losses.requires_grad:
        raise ArgumentError(
            f"{EXPECTED} that depends on the model's parameters, got one that torch knows no "
            "gradient of. Leave out .detach(), .item(), numpy and torch.no_grad() on the way from "
            "the model to the loss."
        )


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(repr, value)) or 'nothing'}"
    if isinstance(value, list | tuple):
        kinds = ", ".join(type(item).__name__ for item in value)
        return f"a {type(value).__name__} of {kinds or 'nothing'}"
    if isinstance(value, int | float | complex):
        return f"{value!r}, a {type(value).__name__}"
    return "None" if value is None else f"a {type(value).__name__}"


def _remedy(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return "Return the loss alone, as the tensor that it is in there."
    if value is None:
        return "Does the function lack a `return`?"
    return "Return the tensor itself, without .item(), float() or numpy."
