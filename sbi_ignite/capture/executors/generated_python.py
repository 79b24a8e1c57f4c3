"""Run a recorded graph as Python that `torch.fx` writes: it needs nothing of TorchScript.

An operation costs 1 to 3 us more than from TorchScript's interpreter: a step of a maf takes 1.3
times as long, and still two thirds of what it takes eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from sbi_ignite.capture.executors.base import Run
from sbi_ignite.capture.private_torch import OpOverload, below_autograd, kernel_of
from sbi_ignite.capture.recording import Recording

aten = torch.ops.aten

SHORTER: Mapping[Any, Callable[..., Any]] = {
    aten.t.default: torch.Tensor.t,
    aten.view.default: torch.Tensor.view,
    aten.expand.default: torch.Tensor.expand,
    aten.transpose.int: torch.Tensor.transpose,
    aten.permute.default: torch.Tensor.permute,
    aten.select.int: torch.Tensor.select,
    aten.squeeze.dim: torch.Tensor.squeeze,
    aten.unsqueeze.default: torch.Tensor.unsqueeze,
    aten.add.Tensor: torch.Tensor.add,
    aten.sub.Tensor: torch.Tensor.sub,
    aten.mul.Tensor: torch.Tensor.mul,
    aten.div.Tensor: torch.Tensor.div,
    aten.sum.dim_IntList: torch.Tensor.sum,
    aten.mm.default: torch.Tensor.mm,
    aten.addmm.default: torch.addmm,
    aten.neg.default: torch.neg,
    aten.neg.out: torch.neg,
    aten.add.out: torch.add,
    aten.sub.out: torch.sub,
    aten.mul.out: torch.mul,
    aten.div.out: torch.div,
}
"""Frequent operations and the public functions that take the same arguments to the same kernel by
a shorter way: a view takes a third of the time, a small sum four fifths."""


class GeneratedPython:
    """Runs recordings as generated Python."""

    name = "generated_python"

    def missing(self) -> str:
        """Return "": it needs public names of torch only."""
        return ""

    def prepare(self, recording: Recording, graph: fx.Graph, inputs: Sequence[Tensor]) -> Run:
        """Return what runs a graph, see `Executor`."""
        forward, captured = _compiled(graph), recording.captured

        def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
            with below_autograd():
                return forward(*captured, *inputs)

        return run


def _compiled(graph: fx.Graph) -> Callable[..., tuple[Tensor, ...]]:
    """Return a graph as a Python function, which lets go of every tensor after its last use."""
    home, plain = SimpleNamespace(), fx.Graph()
    names: dict[OpOverload, str] = {}
    places: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        args, kwargs = map_arg((node.args, node.kwargs), places.__getitem__)
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            # Found at one object by a short name; torch.fx would write the way from `torch` on.
            name = names.setdefault(node.target, f"op_{len(names)}")
            setattr(home, name, SHORTER.get(node.target) or kernel_of(node.target))
            places[node] = plain.create_node("call_module", name, args, kwargs, name=node.name)
        elif node.op == "output":
            plain.output(tuple(args[0]))
        else:
            if node.op == "get_attr":
                setattr(home, node.target, node.meta["value"])
            places[node] = plain.create_node(node.op, node.target, args, kwargs, name=node.name)
    code = plain.python_code(root_module="self")
    scope = dict(code.globals)
    exec(compile(code.src, "<recorded step>", "exec"), scope)
    return scope["forward"].__get__(home)
