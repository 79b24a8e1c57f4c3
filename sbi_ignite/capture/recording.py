"""What is known about a recorded computation, besides the graph that an executor runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recording:
    """A recorded computation.

    Attributes:
        captured: The tensors that it reads, and may write to, besides its inputs.
        constants: The positions of those that may be on any device: the computation made them from
            numbers, as indices or values to put somewhere, so nothing else can reach them.
        code: The computation as text, equal for equal computations; "" if nobody compares it.
        guarded: Whether it made decisions based on values: the last output, a bool of shape (),
            says whether they would be the same again.
        writes: Whether it writes to captured tensors.
        waits: Whether it has an operation that waits for the device that computes it.
        made: The positions of tensors that the computation itself has made from numbers.
    """

    captured: tuple[Tensor, ...]
    constants: frozenset[int]
    code: str
    guarded: bool
    writes: bool
    waits: bool
    made: frozenset[int] = frozenset()

    def same_as(self, other: Recording) -> bool:
        """Return whether two recordings are of the same computation on the same tensors."""
        tensors = zip(self.captured, other.captured, strict=False)
        same_tensors = len(self.captured) == len(other.captured) and all(
            a is b or (not a.requires_grad and _equal_values(a, b)) for a, b in tensors
        )
        return self.code == other.code and same_tensors


def _equal_values(first: Tensor, second: Tensor) -> bool:
    return (
        first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)
    )
