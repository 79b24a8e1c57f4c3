"""Compute a recorded graph for several networks at once, with one operation for all of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import vmap

from sbi_ignite.capture.guards import NotTraceable
from sbi_ignite.capture.passes.aliasing import aliases, bases
from sbi_ignite.capture.report import in_a_line

aten = torch.ops.aten

_VIEWS = frozenset(
    (
        aten._unsafe_view.default,
        aten.expand.default,
        aten.permute.default,
        aten.t.default,
        aten.transpose.int,
        aten.view.default,
    )
)
"""Operations whose result is their argument, once it has the same layout."""


def batched(
    graph: fx.Graph, is_batched: Sequence[bool]
) -> Callable[[Tensor, Sequence[Tensor]], list[Tensor]]:
    """Return a function that computes a graph for several networks at once.

    `torch.func.vmap` batches one operation after the other. Two things that it refuses are arranged
    for: values of all networks that are written to a tensor made without them, as nflows' and
    sbi's networks do to ones and zeros, and views across the new dimension.

    Args:
        graph: Of a single network, without random draws and without writes to placeholders.
        is_batched: For each placeholder, whether every network has a value of its own.

    Returns:
        A function of a tensor of `True`, shape (num_networks,), and the placeholders' values,
        which begin with a dimension of networks where `is_batched`; it returns the outputs, which
        all do. It raises `NotTraceable` if an operation cannot be batched.
    """
    lifted = _lifted(graph, is_batched)
    dims = tuple(0 if batched else None for batched in is_batched)

    def one(true: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return _interpreted(graph, true, values, lifted)

    def all_of_them(true: Tensor, values: Sequence[Tensor]) -> list[Tensor]:
        return list(vmap(one, in_dims=(0, *dims))(true, *values))

    return all_of_them


def _lifted(graph: fx.Graph, is_batched: Sequence[bool]) -> set[fx.Node]:
    """Return the nodes made without any network's values to which such values are written."""
    base = bases(graph)
    lifted: set[fx.Node] = set()
    while True:
        found = _written_by_batched(graph, is_batched, lifted, base)
        if found <= lifted:
            return lifted
        lifted |= found


def _written_by_batched(
    graph: fx.Graph, is_batched: Sequence[bool], lifted: set[fx.Node], base: dict[fx.Node, fx.Node]
) -> set[fx.Node]:
    own = set(lifted)
    given = iter(is_batched)
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            if next(given):
                own.add(node)
            continue
        if node.op != "call_function":
            continue
        if any(source in own for source in node.all_input_nodes):
            own.add(node)
            _, targets = aliases(node)
            found |= {base[target] for target in targets if base[target] not in own}
    return found


def _interpreted(
    graph: fx.Graph, true: Tensor, values: Sequence[Tensor], lifted: set[fx.Node]
) -> tuple[Tensor, ...]:
    """Compute a graph, operation by operation."""
    known: dict[fx.Node, Any] = {}
    given = iter(values)
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = next(given)
        elif node.op == "output":
            return tuple(known[value] for value in node.args[0])
        else:
            args = fx.map_arg(node.args, known.__getitem__)
            kwargs = fx.map_arg(node.kwargs, known.__getitem__)
            value = _computed(node.target, args, kwargs)
            known[node] = torch.where(true, value, value) if node in lifted else value
    raise AssertionError("a graph ends with its output")


def _computed(function: Any, args: Any, kwargs: Any) -> Any:
    if function is operator.getitem:
        return args[0][args[1]]
    if function is aten.index_add.default and len(args) == 4 and not kwargs and args[0].ndim:
        return _index_add(*args)
    if function is aten.bmm.default and _are_small(*args):
        return _small_products(*args)
    if function in _INDEXING:
        found = _indexed(function, *args, **kwargs)
        if found is not None:
            return found
    try:
        return function(*args, **kwargs)
    except RuntimeError as error:
        if function is aten.view.default:
            return args[0].reshape(args[1])
        raise NotTraceable(f"{function} cannot be batched ({in_a_line(error)[:200]})") from error


def _index_add(into: Tensor, dim: int, index: Tensor, values: Tensor) -> Tensor:
    """Add values at indices; where indices differ by network, vmap computes one after the other."""
    shape = [1] * into.ndim
    shape[dim] = -1
    return into.scatter_add(dim, index.reshape(shape).expand_as(values), values)


_PUT_IN_PLACE = frozenset((aten.index_put_.default, aten._index_put_impl_.default))
_PUT = frozenset((*_PUT_IN_PLACE, aten.index_put.default))
_INDEXING = frozenset((*_PUT, aten.index.Tensor))


def _indexed(
    function: Any,
    of: Tensor,
    indices: Sequence[Tensor | None],
    values: Tensor | None = None,
    accumulate: bool = False,
    unsafe: bool = False,
) -> Tensor | None:
    """Read or write at places of the last dimensions, which are made one for this.

    torch's CPU kernel for several indices takes five times as long as that for one.

    Returns:
        What the function returns; None if it is to be called itself.
    """
    given = [index for index in indices if index is not None]
    kept = len(indices) - len(given)
    if of.device.type != "cpu" or len(indices) != of.ndim or not given:
        return None
    if any(index is not None for index in indices[:kept]):
        return None
    if any(index.ndim != 1 or index.dtype != torch.int64 for index in given):
        return None
    if len({len(index) for index in given}) > 1:
        return None
    places, exist = given[0].new_zeros(()), torch.tensor(True)
    for index, size in zip(given, of.shape[kept:], strict=True):
        # Negative ones count from the end.
        places = places * size + torch.where(index < 0, index + size, index)
        exist = exist & (index < size) & (index >= -size)
    places = torch.where(exist, places, -1)  # which torch refuses, as it does the index itself
    shape = (*of.shape[:kept], len(given[0]))
    places = places.expand(shape)
    if values is None:
        return of.reshape((*of.shape[:kept], -1)).gather(-1, places)
    flat = of.reshape((*of.shape[:kept], -1))
    write = flat.scatter_add if accumulate else flat.scatter  # vmap has no writes in place
    written = write(-1, places, values.expand(shape)).reshape(of.shape)
    return of.copy_(written) if function in _PUT_IN_PLACE else written


SMALL = 400
"""Multiplications in a product of two matrices below which torch's CPU kernel multiplies number by
number, one matrix after the other: 0.25 us for two of shape (5, 5)."""

MANY = 100
"""Products of one network from which it pays to compute them side by side."""


def _are_small(left: Tensor, right: Tensor) -> bool:
    """Return whether these are many products of small matrices, and not of vectors."""
    number, rows, inner = left.shape
    columns = right.shape[2]
    is_outer, is_of_vectors = inner == 1, 1 in (rows, columns)
    small = rows * inner * columns < SMALL and (is_outer or not is_of_vectors)
    return left.device.type == "cpu" and number >= MANY and small


def _small_products(left: Tensor, right: Tensor) -> Tensor:
    """Return products of matrices, with the matrices side by side in memory."""
    if left.shape[2] == 1:
        return left * right
    lefts, rights = (matrices.permute(1, 2, 0).contiguous() for matrices in (left, right))
    found = lefts[:, :1] * rights[:1]
    for k in range(1, len(rights)):
        found = torch.addcmul(found, lefts[:, k : k + 1], rights[k : k + 1])
    return found.permute(2, 0, 1).contiguous()


def remove_views_of_same_layout(graph: fx.Graph) -> None:
    """Remove views that lay a value out as it, or what it is a view of, is laid out already.

    vmap adds one before and after many operations.

    Args:
        graph: Changed in place. Its nodes' `meta` has "layout", where it is known for certain.
    """
    for node in graph.nodes:
        source = node
        while source.op == "call_function" and source.target in _VIEWS:
            source = source.args[0]
            if _layout(node) is not None and _layout(source) == _layout(node):
                node.replace_all_uses_with(source)
                break
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.target in _VIEWS and not node.users:
            graph.erase_node(node)


def _layout(node: fx.Node) -> Any:
    """Return type, shape and strides of a node's value; None if they are not known."""
    return node.meta.get("layout")
