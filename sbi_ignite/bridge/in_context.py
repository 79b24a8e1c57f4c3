"""Wrap a loss so that it is computed inside a context manager."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sbi_ignite.methods.base import Loss


@dataclass(frozen=True)
class InContext:
    """A loss whose operations are computed differently, inside a context manager.

    Attributes:
        loss: The plain loss.
        context: Makes the context manager for every computation of the loss.
    """

    loss: Loss
    context: Callable[[], AbstractContextManager[object]]

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """Return the losses of a training batch."""
        with self.context():
            return self.loss(model, batch)

    def validate(self, model: Any, batch: Any) -> Tensor:
        """Return the losses of a validation batch."""
        with self.context():
            return getattr(self.loss, "validate", self.loss)(model, batch)
