"""Lay tensors side by side so that each begins where torch would let it begin.

Kernels read aligned memory in larger pieces and may then round differently. Packed without gaps,
tensors would no longer give bit for bit the results that they give in memory of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sbi_ignite.optim import private_torch

ALIGNED = {"cpu": 64, "cuda": 512}
"""Alignment in bytes at which torch's allocators start tensors, by type of device."""


class Aligned:
    """Where tensors of given shapes lie in a flat tensor.

    Args:
        tensors: Contiguous tensors of one type on one device, at least one.

    Example:
        >>> places = Aligned([torch.ones(3), torch.ones(2, 2)])
        >>> flat = places.joined([torch.ones(3), torch.zeros(2, 2)])
        >>> [view.sum().item() for view in places.parted(flat)]
        [3.0, 0.0]
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        unit = ALIGNED[tensors[0].device.type] // tensors[0].element_size()
        gaps = [tensor.new_zeros(-tensor.numel() % unit) for tensor in tensors]
        self._gaps = [gap if gap.numel() else None for gap in gaps]
        self._shapes = self._with_gaps([t.new_empty(()).expand(t.shape) for t in tensors])

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return a copy of tensors of these shapes as one tensor, with zeros between them."""
        return private_torch.joined(self._with_gaps(tensors))

    def parted(self, flat: Tensor) -> list[Tensor]:
        """Return the views of a flat tensor that have these shapes."""
        views = iter(private_torch.parted(flat, self._shapes))
        found = []
        for gap in self._gaps:
            found.append(next(views))
            if gap is not None:
                next(views)
        return found

    def _with_gaps(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(tensors, self._gaps, strict=True)
        return [piece for pair in pairs for piece in pair if piece is not None]
