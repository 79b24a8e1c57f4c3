"""A graph that is computed for several networks at once gives what it gives for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sbi_ignite.capture.passes.batching import batched
from sbi_ignite.capture.recorder import record

NETWORKS = 3
ROWS, COLUMNS = torch.tril_indices(5, 5, -1)
DIAGONAL = torch.arange(5)


def products(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    return torch.bmm(a, b.transpose(1, 2)) @ a


def outer_products(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    return torch.bmm(a[:, :, :1], b[:, :1, :])


def products_with_vectors(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    return torch.bmm(a[:, :1, :], b)


def few_products(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    return torch.bmm(a[:7], b[:7])


def reads(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    return a[..., ROWS, COLUMNS] + b.transpose(1, 2)[..., ROWS, COLUMNS]


def reads_from_the_end(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    return a[..., ROWS - 5, COLUMNS] * b[..., COLUMNS, ROWS - 5]


def reads_elsewhere(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    return a[ROWS, COLUMNS] * b[:, ROWS[:5]][:5].sum()


def writes(a: Tensor, b: Tensor, values: Tensor) -> Tensor:
    into = a.clone()
    into[..., ROWS, COLUMNS] = values
    into[..., DIAGONAL, DIAGONAL] = b[:, 0].exp()
    return into


def writes_to_what_no_network_has(a: Tensor, b: Tensor, values: Tensor) -> Tensor:
    into = torch.zeros(a.shape)
    into[..., ROWS, COLUMNS] = values
    into[..., DIAGONAL, DIAGONAL] += b[:, 0]
    return into


def writes_to_another_layout(a: Tensor, b: Tensor, values: Tensor) -> Tensor:
    into = a.clone().transpose(1, 2)
    into[..., ROWS, COLUMNS] = values
    return into + b


def writes_one_number(a: Tensor, b: Tensor, _: Tensor) -> Tensor:
    into = a.clone()
    into[..., DIAGONAL, DIAGONAL] = torch.tensor(2.0)
    return into * b


def adds_twice(a: Tensor, b: Tensor, values: Tensor) -> Tensor:
    same = torch.tensor([1, 1, 4, 1, 0, 2, 2, 0, 3, 3])
    return a.index_put((torch.arange(100)[:, None], same, same - 5), values, accumulate=True) + b


def differentiates(a: Tensor, b: Tensor, values: Tensor) -> Tensor:
    a, values = a.requires_grad_(), values.requires_grad_()
    into = torch.zeros(a.shape)
    into[..., ROWS, COLUMNS] = values
    into[..., DIAGONAL, DIAGONAL] = a[..., DIAGONAL, DIAGONAL]
    loss = (torch.bmm(into.transpose(1, 2), into) * b).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, (a, values))])


FUNCTIONS: list[Callable[..., Tensor]] = [
    products,
    outer_products,
    products_with_vectors,
    few_products,
    reads,
    reads_from_the_end,
    reads_elsewhere,
    writes,
    writes_to_what_no_network_has,
    writes_to_another_layout,
    writes_one_number,
    adds_twice,
    differentiates,
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_several_networks_at_once_get_what_each_gets_alone(function):
    torch.manual_seed(0)
    shapes = ((100, 5, 5), (100, 5, 5), (100, 10))
    inputs = [torch.randn(NETWORKS, *shape) for shape in shapes]
    recording, graph = record(lambda *each: [function(*each)], [t[0].clone() for t in inputs])
    compute = batched(graph, [False] * len(recording.captured) + [True] * len(inputs))
    with torch.no_grad():
        true = torch.ones(NETWORKS, dtype=torch.bool)
        (found,) = compute(true, [*recording.captured, *(t.clone() for t in inputs)])
    for k in range(NETWORKS):
        alone: Any = function(*(t[k].clone() for t in inputs))
        torch.testing.assert_close(found[k], alone.detach())


@pytest.mark.parametrize("index", [5, -6])
@pytest.mark.parametrize("writes_there", [False, True])
def test_places_that_do_not_exist_are_refused_as_by_torch(index, writes_there):
    """Also where another row would have such a number."""

    def function(a: Tensor, columns: Tensor) -> Tensor:
        rows = torch.arange(2)
        if writes_there:
            return a.index_put((rows, columns), torch.zeros(2))
        return a[rows, columns]

    a, columns = torch.randn(NETWORKS, 5, 5), torch.zeros(NETWORKS, 2, dtype=torch.int64)
    recording, graph = record(lambda *each: [function(*each)], [a[0], columns[0]])
    compute = batched(graph, [False] * len(recording.captured) + [True, True])
    true = torch.ones(NETWORKS, dtype=torch.bool)
    (found,) = compute(true, [*recording.captured, a, columns])
    alone = [function(*each) for each in zip(a, columns, strict=True)]
    torch.testing.assert_close(found, torch.stack(alone))
    columns[1, 0] = index
    with pytest.raises((IndexError, RuntimeError)):
        compute(true, [*recording.captured, a, columns])
