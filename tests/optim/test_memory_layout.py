"""Tensors side by side begin where torch's allocator would let them begin."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sbi_ignite.optim.memory_layout import ALIGNED, Aligned

SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=8)


@given(shapes=SHAPES, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_views_have_shapes_values_and_places(shapes: list[tuple[int, ...]], dtype: torch.dtype):
    tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    places = Aligned(tensors)
    flat = places.joined(tensors)
    views = places.parted(flat)
    assert len(views) == len(tensors)
    for view, tensor in zip(views, tensors, strict=True):
        assert torch.equal(view, tensor)
        assert view.shape == tensor.shape
        if view.numel():
            assert view.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
            assert (view.data_ptr() - flat.data_ptr()) % ALIGNED["cpu"] == 0


def test_between_them_are_zeros():
    """A norm of the flat tensor is the norm of the tensors."""
    tensors = [torch.ones(3), torch.ones(2, 2)]
    assert Aligned(tensors).joined(tensors).sum() == 7
