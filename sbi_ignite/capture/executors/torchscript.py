"""Run a recorded graph in TorchScript's interpreter: the same kernels in the same order.

All of TorchScript's optimisations are off, because fused arithmetic rounds differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from sbi_ignite.capture.executors.base import Run
from sbi_ignite.capture.guards import NotTraceable
from sbi_ignite.capture.operations import Operation, operation
from sbi_ignite.capture.passes.one_by_one import prepare_to_run_one_by_one
from sbi_ignite.capture.private_torch import TORCHSCRIPT, OpOverload, below_autograd, lacks
from sbi_ignite.capture.recording import Recording
from sbi_ignite.capture.report import in_a_line

aten = torch.ops.aten


class TorchScript:
    """Runs recordings in TorchScript's interpreter."""

    name = "torchscript"
    exact = True

    def missing(self) -> str:
        """Return what TorchScript lacks here, or that it gives wrong results."""
        return lacks(TORCHSCRIPT) or _failure()

    def prepare(self, recording: Recording, graph: fx.Graph, inputs: Sequence[Tensor]) -> Run:
        """Return a function that runs a graph, see `Executor`.

        Raises:
            NotTraceable: If TorchScript does not know an operation.
        """
        captured = recording.captured
        prepare_to_run_one_by_one(graph)
        script = torch._C._create_function_from_graph("recorded", Script().translate(graph))

        def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
            # Nobody needs gradients of gradients, so autograd need not see the operations.
            with _interpreted(), below_autograd():
                return script(*captured, *inputs)

        return run


def _failure() -> str:
    """Return why the interpreter fails to compute 2 + 1; "" if it succeeds."""
    graph, two = fx.Graph(), torch.tensor(2.0)
    graph.output([graph.call_function(aten.add.Tensor, (graph.placeholder("x"), 1))])
    nothing = Recording((), frozenset(), "", guarded=False, writes=False, waits=False)
    try:
        (three,) = TorchScript().prepare(nothing, graph, [two])([two])
    except Exception as error:  # a later torch may do anything to private names
        return f"TorchScript's interpreter does not work ({in_a_line(error)})"
    return "" if three.item() == 3 else "TorchScript's interpreter computes something else"


@contextmanager
def _interpreted() -> Iterator[None]:
    """Make TorchScript run graphs unoptimised, in this thread."""
    before = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(False)
    try:
        yield
    finally:
        torch._C._set_graph_executor_optimize(before)


class Script:
    """TorchScript's form of a flat graph: the same operations, found by their full schemas.

    `torch.jit.trace` would do for most graphs, but it does not support lists of bools, which the
    backward passes of normalisations and convolutions take.
    """

    def __init__(self) -> None:
        self._graph: Any = torch._C.Graph()
        self._values: dict[fx.Node, Any] = {}
        self._lists: dict[fx.Node, list[Any]] = {}
        self._constants: dict[tuple[str, str], Any] = {}
        self._known: set[tuple[Any, ...]] = set()

    def translate(self, graph: fx.Graph) -> Any:
        """Return the graph in TorchScript's form; its result is one tuple.

        Raises:
            NotTraceable: If TorchScript does not know an operation.
        """
        for node in graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._graph.addInput(node.name)
            elif node.op == "output":
                outputs = [self._values[value] for value in node.args[0]]
                types: list[Any] = [torch._C.TensorType.get() for _ in outputs]
                result = self._append("prim::TupleConstruct", outputs)
                result.output().setType(torch._C.TupleType(types))
                self._graph.registerOutput(result.output())
            elif node.op == "get_attr":
                self._values[node] = self._graph.insertConstant(node.meta["value"])
            elif isinstance(node.target, OpOverload):
                self._operation(node, operation(node.target))
            else:  # an item of several results
                source, index = node.args
                self._values[node] = self._lists[source][index]
        return self._graph

    def _append(self, kind: str, inputs: Sequence[Any], outputs: int = 1) -> Any:
        return self._graph.appendNode(self._graph.create(kind, inputs, outputs))

    def _operation(self, node: fx.Node, about: Operation) -> None:
        """Append one operation, and record its results."""
        given = [
            node.args[position]
            if position < len(node.args)
            else node.kwargs.get(argument.name, argument.default)
            for position, argument in enumerate(about.arguments)
        ]
        pairs = list(zip(given, about.arguments, strict=True))
        inputs = [self._input(value, argument.type) for value, argument in pairs]
        result = self._append(about.name, inputs, len(about.results))
        results = _outputs(result, len(about.results))
        for value, kind in zip(results, about.results, strict=True):
            if not isinstance(kind, torch._C.TensorType):  # which they are to begin with
                value.setType(kind)
        # Which overload TorchScript finds follows from the kinds of the arguments.
        key = (node.target, *map(_kind, given))
        if key not in self._known:
            self._check(node, about, pairs, result)
            self._known.add(key)
        if len(results) == 1 and isinstance(about.results[0], torch._C.ListType):
            results = self._unpacked(results[0], node)
            self._lists[node] = results
        elif len(results) > 1:
            self._lists[node] = results
        else:
            self._values[node] = results[0] if results else None

    def _check(
        self, node: fx.Node, about: Operation, pairs: Sequence[tuple[Any, Any]], result: Any
    ) -> None:
        """Refuse an operation for which TorchScript would call another one.

        Raises:
            NotTraceable: If it would, or knows none.
        """
        try:
            found = result.schema()
        except RuntimeError:
            found = None
        # A number where a tensor is expected: use the overload for numbers, which converts it.
        same = found == about.schema or (
            str(found).startswith(f"{about.name}.Scalar")
            and any(
                isinstance(value, int | float) and isinstance(argument.type, torch._C.TensorType)
                for value, argument in pairs
            )
        )
        if not same:
            raise NotTraceable(f"TorchScript has no {node.target}")

    def _unpacked(self, value: Any, node: fx.Node) -> list[Any]:
        """Return the items of a list of tensors, as many as the graph uses."""
        length = node.meta["length"]
        unpacked = self._append("prim::ListUnpack", [value], length)
        return _outputs(unpacked, length)

    def _input(self, value: Any, kind: Any) -> Any:
        """Return an argument of an operation, with the type that its schema names."""
        if isinstance(value, fx.Node):
            return self._values[value]
        wanted = kind.getElementType() if isinstance(kind, torch._C.OptionalType) else kind
        if value is None or not isinstance(wanted, torch._C.ListType):
            return self._constant(_constant(value, wanted))
        items = list(value) if isinstance(value, list | tuple) else [value]
        of = wanted.getElementType()
        if items and not any(item is None or isinstance(item, fx.Node) for item in items):
            return self._constant([_constant(item, of) for item in items])
        listed = self._append("prim::ListConstruct", [self._input(item, of) for item in items])
        listed.output().setType(wanted)
        return listed.output()

    def _constant(self, value: Any) -> Any:
        """Return a constant; equal ones are inserted once, before whatever uses them."""
        if isinstance(value, Tensor):
            return self._graph.insertConstant(value)
        items = value if isinstance(value, list) else [value]
        key = repr(value), repr([type(item) for item in items])
        if key not in self._constants:
            self._constants[key] = self._graph.insertConstant(value)
        return self._constants[key]


def _kind(value: Any) -> Any:
    """Return what tells an argument of an operation from others of another type."""
    if isinstance(value, list | tuple):
        return (type(value), *map(_kind, value))
    return type(value)


def _outputs(node: Any, number: int) -> list[Any]:
    """Return a TorchScript node's results; asking its iterator for one too many costs 8 us."""
    values = node.outputs()
    return [next(values) for _ in range(number)]


MEMORY_FORMATS = {
    torch.contiguous_format: 0,
    torch.preserve_format: 1,
    torch.channels_last: 2,
    torch.channels_last_3d: 3,
}
"""The numbers by which TorchScript knows memory formats."""


def _constant(value: Any, wanted: Any) -> Any:
    """Return a constant in the form that TorchScript expects."""
    if isinstance(value, torch.memory_format):
        return MEMORY_FORMATS[value]
    return float(value) if isinstance(wanted, torch._C.FloatType) and value is not None else value
