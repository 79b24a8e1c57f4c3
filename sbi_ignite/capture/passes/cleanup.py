"""Remove from a recorded graph what has no effect or is computed twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sbi_ignite.capture.operations import operation
from sbi_ignite.capture.private_torch import OpOverload

aten = torch.ops.aten


def copied(graph: fx.Graph) -> fx.Graph:
    """Return a copy of a graph, with what is known about its nodes."""
    copy = fx.Graph()
    places: dict[fx.Node, fx.Node] = {}
    outputs = copy.graph_copy(graph, places)
    copy.output(outputs)
    for node, place in places.items():
        place.meta = dict(node.meta)
    return copy


def remove_aliases(graph: fx.Graph) -> None:
    """Remove operations that return their argument and matter to no kernel."""
    for node in list(graph.nodes):
        if node.target in (aten.detach.default, aten.lift_fresh.default):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def remove_dead(graph: fx.Graph) -> None:
    """Remove results that are never read, except random draws and writes."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not _has_effect(node) and not node.users:
            graph.erase_node(node)


def _has_effect(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return False
    about = operation(node.target)
    return bool(about.written) or about.draws


def merge_equal(graph: fx.Graph, changing: set[fx.Node]) -> None:
    """Compute once what is computed twice, and remove transpositions back and forth."""
    first: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or _has_effect(node):
            continue
        if node in changing or any(source in changing for source in node.all_input_nodes):
            continue
        same = _transposed_back(node) or first.setdefault(_key(node), node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def part_outputs(graph: fx.Graph, base: dict[fx.Node, fx.Node]) -> None:
    """Copy outputs that share memory with inputs or with other outputs.

    Args:
        graph: Changed in place.
        base: See `bases`; updated with the nodes that are added.
    """
    (output,) = graph.find_nodes(op="output")
    taken = {node for node in graph.nodes if node.op == "placeholder"}
    parted: list[fx.Node] = []
    with graph.inserting_before(output):
        for node in output.args[0]:
            if base[node] in taken:
                node = graph.call_function(aten.clone.default, (node,))
                base[node] = node
            parted.append(node)
            taken.add(base[node])
    output.args = (parted,)


def _transposed_back(node: fx.Node) -> fx.Node | None:
    source = node.args[0] if node.args else None
    if (
        node.target is aten.t.default
        and isinstance(source, fx.Node)
        and source.target is node.target
    ):
        before = source.args[0]
        return before if isinstance(before, fx.Node) else None
    return None


def _key(node: fx.Node) -> Any:
    """Return a value that equal computations share."""
    arguments = fx.node.map_arg((node.args, node.kwargs), lambda source: source.name)  # type: ignore[arg-type] # any value may stand for a node
    return node.target, repr(arguments)
