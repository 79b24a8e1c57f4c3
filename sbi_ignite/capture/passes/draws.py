"""Take the random draws out of a recorded graph, so that they become inputs of it."""

from __future__ import annotations

from torch import fx

from sbi_ignite.capture.guards import NotTraceable
from sbi_ignite.capture.operations import operation
from sbi_ignite.capture.passes.aliasing import aliases, bases, changing
from sbi_ignite.capture.passes.cleanup import copied, remove_dead
from sbi_ignite.capture.private_torch import OpOverload


def without_draws(graph: fx.Graph) -> fx.Graph | None:
    """Move the random draws of a graph into a graph of their own.

    Args:
        graph: Changed in place: draws become inputs, after those that it has.

    Returns:
        A graph with the same placeholders as before, whose outputs are the draws in their order;
        None if there are none.

    Raises:
        NotTraceable: If something is written over draws, or over what they are made from.
    """
    if not any(map(_draws, graph.nodes)):
        return None
    drawing = copied(graph)
    _keep_draws_only(drawing)
    _make_inputs(graph)
    return drawing


def _draws(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and operation(node.target).draws


def _keep_draws_only(graph: fx.Graph) -> None:
    """Let a graph return its draws and compute nothing else."""
    drawn = [node for node in graph.nodes if _draws(node)]
    written = changing(graph)
    needed: set[fx.Node] = set()
    waiting = list(drawn)
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in needed:
                needed.add(source)
                waiting.append(source)
    filled = {target for node in drawn for target in aliases(node)[1]}
    if any(node in written and node not in filled and not _draws(node) for node in needed):
        raise NotTraceable("its loss draws random numbers from values that it writes to")
    (output,) = graph.find_nodes(op="output")
    output.args = (drawn,)
    for node in reversed(list(graph.nodes)):
        kept = node in needed or _draws(node) or node.op in ("placeholder", "output")
        if not kept:
            graph.erase_node(node)


def _make_inputs(graph: fx.Graph) -> None:
    """Put placeholders in the place of draws."""
    base, written = bases(graph), changing(graph)
    placeholders = list(graph.find_nodes(op="placeholder"))
    for number, node in enumerate([node for node in graph.nodes if _draws(node)]):
        source = base[node]
        if source in written and _is_written_elsewhere(graph, base, source, node):
            raise NotTraceable("its loss writes to random numbers that it has drawn")
        with graph.inserting_after(placeholders[-1]):
            drawn = graph.placeholder(f"drawn_{number}")
        placeholders.append(drawn)
        drawn.meta.update(node.meta)
        node.replace_all_uses_with(drawn)
        graph.erase_node(node)
        if source is not node:  # drawn in place: the memory was made for it
            source.replace_all_uses_with(drawn)
    remove_dead(graph)


def _is_written_elsewhere(
    graph: fx.Graph, base: dict[fx.Node, fx.Node], source: fx.Node, node: fx.Node
) -> bool:
    return any(
        other is not node and any(base.get(target) is source for target in aliases(other)[1])
        for other in graph.nodes
    )
