"""Turn the numbers in a recorded graph into tensors once, instead of on every run.

torch turns a number that is added to or multiplied with a tensor into a tensor, and converts it:
four steps of half a microsecond each from TorchScript, 7 us in all from Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

NUMBERS_AS_TENSORS: Mapping[Any, Any] = {
    aten.add.Tensor: aten.add.Tensor,
    aten.sub.Tensor: aten.sub.Tensor,
    aten.mul.Tensor: aten.mul.Tensor,
    aten.div.Tensor: aten.div.Tensor,
    aten.rsub.Scalar: aten.rsub.Tensor,
    **{form: form for form in (aten.add.out, aten.sub.out, aten.mul.out, aten.div.out)},
}
"""Operations on a tensor and a number, and their forms for two tensors, which torch uses to carry
them out."""


def make_tensors_of_numbers(graph: fx.Graph) -> None:
    """Give operations on the CPU tensors of the result's type, shape (), in place of numbers.

    On a GPU, kernels take the number itself, which is faster.

    Args:
        graph: Changed in place. Its nodes' `meta` has "dtype" and "device"; the nodes that are
            added, of the kind "get_attr", have "value", their tensor.
    """
    known: dict[tuple[str, torch.dtype], fx.Node] = {}
    for node in list(graph.nodes):
        number = _number_of(node)
        if number is None:
            continue
        key = repr(node.args[1]), number.dtype
        if key not in known:
            known[key] = _constant(graph, f"number_{len(known)}", number)
        node.target = NUMBERS_AS_TENSORS[node.target]
        if len(node.args) > 2:  # rsub: the form for tensors takes it only by name
            node.kwargs = {**node.kwargs, "alpha": node.args[2]}
        node.args = (node.args[0], known[key])


def _constant(graph: fx.Graph, name: str, value: Tensor) -> fx.Node:
    """Add a tensor to the beginning of a graph."""
    with graph.inserting_before():
        constant = graph.create_node("get_attr", name, name=name)
    constant.meta["value"] = value
    return constant


def _number_of(node: fx.Node) -> Tensor | None:
    """Return the number that an operation could take as a tensor."""
    if node.op != "call_function" or node.target not in NUMBERS_AS_TENSORS or len(node.args) < 2:
        return None
    tensor, number = node.args[:2]
    dtype = node.meta.get("dtype")
    if (
        type(number) not in (int, float)
        or dtype not in (torch.float32, torch.float64)
        or not isinstance(tensor, fx.Node)
        or tensor.meta.get("dtype") is not dtype
        or node.meta["device"].type != "cpu"
    ):
        return None
    return torch.tensor(number, dtype=dtype)
