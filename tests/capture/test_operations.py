"""What is known of operations: what schemas say, and what they keep to themselves."""

from __future__ import annotations

import pytest
import torch

from sbi_ignite.capture.operations import operation

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("function", "written", "shared", "returns_views", "draws"),
    [
        (aten.add.Tensor, (), (), False, False),
        (aten.add_.Tensor, (0,), (0,), True, False),
        (aten.view.default, (), (0,), True, False),
        (aten.split_with_sizes.default, (), (0,), True, False),
        (aten._foreach_add_.Scalar, (0,), (0,), False, False),
        (aten.add.out, (3,), (3,), True, False),
        (aten.randn.default, (), (), False, True),
        (aten.bernoulli_.float, (0,), (0,), True, True),
        # Their schemas say nothing of it.
        (aten.native_batch_norm.default, (3, 4), (), False, False),
        (aten._unsafe_view.default, (), (0,), False, False),
    ],
)
def test_what_is_written_and_what_is_shared(function, written, shared, returns_views, draws):
    about = operation(function)
    assert about.written == written
    assert tuple(i for i, a in enumerate(about.arguments) if a.is_shared) == shared
    assert (about.returns_views, about.draws) == (returns_views, draws)


def test_arguments_are_found_by_place_by_name_or_not_at_all():
    about = operation(aten.sum.dim_IntList)
    assert [argument.name for argument in about.arguments] == ["self", "dim", "keepdim", "dtype"]
    dim = about.arguments[1]
    assert dim.given(1, ("x", [0]), {}) == [0]
    assert dim.given(1, ("x",), {"dim": [1]}) == [1]
    assert dim.given(1, ("x",), {}) is None
    assert about.arguments[2].default is False
    assert str(about.results[0]) == "Tensor"


def test_operations_made_of_others_are_known():
    assert operation(aten.linear.default).is_composite
    assert not operation(aten.addmm.default).is_composite
