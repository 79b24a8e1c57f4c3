"""What every method shares: common loss arguments, and the protocol of a loss."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from sbi_ignite.settings import Settings


class LossArgs(Settings):
    """Loss arguments that every method takes.

    Example:
        >>> LossArgs(exclude_invalid_x=True).exclude_invalid_x
        True
    """

    exclude_invalid_x: bool | None = Field(
        default=None,
        description="True drops rows with NaN or Inf in x before the split and says how many; "
        "False raises before training if there are such rows; None leaves what "
        "append_simulations did.",
    )


class Loss(Protocol):
    """A loss, which takes a network and a batch and returns losses.

    An object may also have `validate(model, batch)` of the same form, where the validation loss
    differs from the training loss.
    """

    def __call__(self, model: Any, batch: Any, /) -> Tensor:
        """Return losses of shape (batch,), or one scalar for the whole batch."""
        ...


def is_finite(loss: Tensor) -> bool:
    """Return whether a loss has no NaN or infinity."""
    return bool(torch.isfinite(loss).all())
