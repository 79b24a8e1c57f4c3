"""Compile a loss with `torch.compile`, for `compile="inductor"`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sbi_ignite.capture.gradients import LossFunction
from sbi_ignite.capture.private_torch import pytree
from sbi_ignite.capture.report import Report, in_a_line
from sbi_ignite.random_state import random_states, set_random_states


class TorchCompiled:
    """A loss compiled by `torch.compile`, once per shape of batch; its last bits may differ.

    Args:
        loss: Losses of a batch.
        refuse: Called with the reason if torch cannot compile it; the loss then stays eager.
    """

    def __init__(self, loss: LossFunction, refuse: Callable[[str], None]) -> None:
        self._loss, self._refuse = loss, refuse
        self._compiled: LossFunction | None = None
        self._shapes: set[tuple[Any, ...]] = set()
        self._reason = ""

    def report(self) -> Report:
        """Return how losses have been computed."""
        return Report("eager", self._reason) if self._reason else Report("inductor")

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """Return the losses of a batch."""
        if self._reason:
            return self._loss(model, batch)
        shapes = tuple(getattr(leaf, "shape", None) for leaf in pytree.tree_leaves(batch))
        if self._compiled is not None and shapes in self._shapes:
            return self._compiled(model, batch)
        before = random_states()
        try:
            with warnings.catch_warnings():
                # torch's compiler itself uses deprecated parts of torch; 2.15 words it differently.
                for said in ("`torch\\.jit\\.", ".*autograd\\.function\\.Function.* instantiated"):
                    for kind in (DeprecationWarning, FutureWarning):
                        warnings.filterwarnings("ignore", said, kind)
                if self._compiled is None:
                    self._compiled = torch.compile(self._loss, dynamic=False)
                losses = self._compiled(model, batch)
        except Exception as error:
            if not _is_torchs_compiler(error):
                raise
            self._reason = f"torch.compile cannot take it ({in_a_line(error)})"
            set_random_states(before)
            self._refuse(self._reason)
            return self._loss(model, batch)
        self._shapes.add(shapes)
        return losses


def _is_torchs_compiler(error: Exception) -> bool:
    """Return whether an error comes from compiling and not from the code being compiled."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
