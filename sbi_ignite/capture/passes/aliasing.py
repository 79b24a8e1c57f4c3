"""Find which values of a recorded graph share memory, and which memory is written to."""

from __future__ import annotations

from torch import fx

from sbi_ignite.capture.operations import operation
from sbi_ignite.capture.private_torch import OpOverload


def bases(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Return for every node the first one that used its memory: itself if the memory is its own."""
    base: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        shared, _ = aliases(node)
        base[node] = base[shared] if shared is not None else node
    return base


def changing(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose memory is written to at any time, through them or through a view."""
    base: dict[fx.Node, fx.Node] = {}
    written: set[fx.Node] = set()
    for node in graph.nodes:
        shared, targets = aliases(node)
        base[node] = base[shared] if shared is not None else node
        written.update(base[target] for target in targets)
    return {node for node, its in base.items() if its in written}


def aliases(node: fx.Node) -> tuple[fx.Node | None, list[fx.Node]]:
    """Return the node whose memory a node shares, if any, and the nodes that it writes to."""
    if node.op != "call_function":
        return None, []
    if not isinstance(node.target, OpOverload):  # an item of several results
        source = node.args[0]
        return source if isinstance(source, fx.Node) and _returns_views(source) else None, []
    shared: fx.Node | None = None
    targets: list[fx.Node] = []
    about = operation(node.target)
    for position in about.aliased:
        argument = about.arguments[position]
        value = argument.given(position, node.args, node.kwargs)
        items = value if isinstance(value, list | tuple) else [value]
        nodes = [item for item in items if isinstance(item, fx.Node)]
        # The tensors of a list are written to one by one; no operation returns views of a list.
        if nodes and argument.is_shared and nodes[0] is value:
            shared = nodes[0]
        if argument.is_written:
            targets += nodes
    return shared, targets


def _returns_views(node: fx.Node) -> bool:
    known = isinstance(node.target, OpOverload)
    return not known or operation(node.target).returns_views  # type: ignore[arg-type] # known says so
