"""Write results over arguments that are no longer read.

Allocating a tensor takes half a microsecond, as long as a small operation itself, and a large one
evicts what is needed next from the processor's cache. Reusing memory saves 6 to 11 % of a step of
ratio estimation, 4 to 7 % with a maf, 4 % with a spline flow, and nothing in flow matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import fx

from sbi_ignite.capture.operations import operation
from sbi_ignite.capture.private_torch import OpOverload, has_cpu_kernel, overload_name, schema_of

aten = torch.ops.aten

_ALSO_BY_ELEMENT = (aten.softplus_backward.default,)
"""Operations that work element by element although torch does not tag them so."""


def reuse_memory(graph: fx.Graph, base: dict[fx.Node, fx.Node], changing: set[fx.Node]) -> None:
    """Let elementwise operations write to an argument that is not read after them.

    On a GPU, where torch caches allocations itself, everything stays as it is.

    Args:
        graph: Changed in place. Its nodes' `meta` has "layout", the memory layout of a node's
            tensor.
        base: See `bases`; kept up to date.
        changing: Nodes whose memory is written to anyway; they are left alone.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    sharing: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        sharing.setdefault(base[node], []).append(node)

    def is_free(argument: fx.Node, node: fx.Node) -> bool:
        """Return whether an argument's memory is the graph's own and not needed after a node."""
        its = base[argument]
        return (
            its.op == "call_function"
            and its not in changing
            and _layout(its) == _layout(argument) == _layout(node) is not None
            and sum(base[other] is its for other in node.all_input_nodes) == 1
            and all(order[user] <= order[node] for one in sharing[its] for user in one.users)
        )

    for node in graph.nodes:
        target = node.target
        if not isinstance(target, OpOverload) or node in changing:
            continue
        if base[node] is not node:  # a view allocates no memory that could be saved
            continue
        form = _writing_form(target)
        if form is None:
            continue
        candidates = node.all_input_nodes if form.argument else node.args[:1]
        free = next((one for one in candidates if is_free(one, node)), None)  # type: ignore[arg-type] # the first argument of an operation in place is a tensor
        if free is None:
            continue
        node.target = form.function
        if form.argument:
            node.kwargs = {**node.kwargs, form.argument: free}
        joined = sharing.pop(node)
        sharing[base[free]] += joined
        base.update(dict.fromkeys(joined, base[free]))


def _layout(node: fx.Node) -> object:
    """Return the layout of a node's memory; None if it is not on the CPU or not known."""
    layout = node.meta.get("layout")
    return layout if layout and node.meta["device"].type == "cpu" else None


class _WritingForm(NamedTuple):
    """The form of an operation that writes its result to existing memory.

    Attributes:
        function: That form.
        argument: Name of the output argument; None if it writes to its first argument.
    """

    function: OpOverload
    argument: str | None


@cache
def _writing_form(function: OpOverload) -> _WritingForm | None:
    """Return the form of an operation that writes to an output argument or its first argument.

    Only elementwise operations have one here: they have read an element before they write it. torch
    also generates such forms for operations without a kernel for them; those copy, and do not
    count.

    Example:
        >>> _writing_form(torch.ops.aten.threshold_backward.default).argument
        'grad_input'
    """
    about = operation(function)
    by_element = torch.Tag.pointwise in function.tags or function in _ALSO_BY_ELEMENT
    if not by_element or about.written or about.draws or len(about.results) != 1:
        return None
    packet, taken = function.overloadpacket, _types(schema_of(function).arguments)
    for form in (getattr(packet, overload) for overload in packet.overloads()):
        given = [argument for argument in schema_of(form).arguments if not argument.is_out]
        told = [argument.name for argument in schema_of(form).arguments if argument.is_out]
        if len(told) == 1 and _types(given) == taken and has_cpu_kernel(form):
            return _WritingForm(form, told[0])
    in_place = getattr(aten, f"{packet.__name__}_", None)
    form = getattr(in_place, overload_name(function), None)
    if form is None or _types(schema_of(form).arguments) != taken or not has_cpu_kernel(form):
        return None
    return _WritingForm(form, None)


def _types(arguments: Sequence[Any]) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in arguments]
