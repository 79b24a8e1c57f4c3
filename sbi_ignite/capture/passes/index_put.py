"""Keep indexed writes in a recorded graph from waiting for the GPU.

Eager steps wait there, too, when a number on the host is put into a tensor on a GPU. A recording
would wait more often: autograd accumulates gradients by index without checking that the indices
are in range, because they were in the forward pass; while being recorded, it takes a path that
checks them.
"""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten

_PUTS = (aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


def without_waiting(graph: fx.Graph) -> None:
    """Accumulate gradients as autograd does, and create zeros on the device where they are put.

    Args:
        graph: Changed in place. Its nodes' `meta` has "device", where a node's tensor is, and
            "in_backward", whether it comes from a backward pass.
    """
    for node in graph.find_nodes(op="call_function", target=aten.index_put.default):
        if _adds_gradients(node):
            _add_in_place(node)
    for node in graph.find_nodes(op="call_function", target=aten.zeros.default):
        places = {user.args[0].meta.get("device") for user in node.users if is_put(node, user)}  # type: ignore[union-attr] # a put's first argument is a node
        only_put = all(is_put(node, user) for user in node.users)
        if only_put and len(places) == 1 and None not in places:
            node.update_kwarg("device", places.pop())


def is_put(value: fx.Node, user: fx.Node) -> bool:
    """Return whether a node is the value that another puts into a tensor, and nothing else."""
    if user.op != "call_function" or user.target not in _PUTS:
        return False
    return user.args[2] is value and user.all_input_nodes.count(value) == 1


def _adds_gradients(node: fx.Node) -> bool:
    """Return whether a node accumulates gradients in zeros that were created for it."""
    into = node.args[0]
    return (
        bool(node.meta.get("in_backward"))
        and len(node.args) > 3
        and node.args[3] is True
        and isinstance(into, fx.Node)
        and into.target is aten.new_zeros.default
        and len(into.users) == 1
    )


def _add_in_place(node: fx.Node) -> None:
    """Replace a node by autograd's own, which writes to the zeros and trusts the indices."""
    with node.graph.inserting_before(node):
        own = node.graph.call_function(aten._index_put_impl_.default, (*node.args[:3], True, True))
    own.meta.update(node.meta)
    node.replace_all_uses_with(own)
    node.graph.erase_node(node)
