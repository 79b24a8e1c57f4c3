"""A loss and a context come in; the same loss, computed inside that context, goes out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sbi_ignite.methods.base import Loss


@dataclass(frozen=True)
class Within:
    """A loss whose operations are computed in another way, as a context has it.

    Attributes:
        loss: The loss as it is.
        context: Makes what every computation of the loss is wrapped in.
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
