"""Compute softplus of contiguous numbers inside a block of computations.

On a CPU, torch takes 20 ns for the softplus of a number where numbers lie apart in memory, as the
scales that a flow's network puts next to its shifts, and 4 ns where they lie side by side: copying
them first pays. It is 5 % of a step of a masked autoregressive flow. Kernels for numbers side by
side may round the last bit otherwise, so this is used in the typed form only.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sbi_ignite.kernels.replacing import Ways


def _softplus(x: Tensor, *more: Any) -> Any:
    return NotImplemented if x.is_contiguous() else nn.functional.softplus(x.contiguous(), *more)


CONTIGUOUS: Ways = {nn.functional.softplus: _softplus}
"""softplus of contiguous copies, see `Replacing`.

Example:
    >>> import torch
    >>> from sbi_ignite.kernels.replacing import Replacing
    >>> with Replacing(CONTIGUOUS):
    ...     torch.nn.functional.softplus(torch.zeros(2, 2).t()).is_contiguous()
    True
"""
