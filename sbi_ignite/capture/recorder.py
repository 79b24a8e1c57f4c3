"""A function of tensors comes in; the same computation as one flat graph, without Python, goes out.

Operations are recorded below autograd, cleaned of what has no effect, and handed to TorchScript's
interpreter, which runs them in the same order with the same kernels: results and random draws are
the same, bit for bit. No optimisation of TorchScript's takes part, for fused arithmetic rounds
differently.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from sbi_ignite.capture.executors.torchscript import Script
from sbi_ignite.capture.guards import (
    Guards,
    NoReadsInBulk,
    Writable,
    check_repeatable,
)
from sbi_ignite.capture.operations import operation
from sbi_ignite.capture.passes.aliasing import bases, changing
from sbi_ignite.capture.passes.cleanup import merge_equal, part_outputs, remove_aliases, remove_dead
from sbi_ignite.capture.passes.index_put import is_put, without_waiting
from sbi_ignite.capture.passes.memory_reuse import reuse_memory

aten = torch.ops.aten

WAITS = frozenset(
    (
        aten._local_scalar_dense.default,
        aten.equal.default,
        aten.masked_select.default,
        aten.multinomial.default,
        aten.nonzero.default,
    )
)
"""Operations that read from a GPU what they have computed there."""


@dataclass(frozen=True)
class Graph:
    """A recorded computation.

    Attributes:
        script: The computation: captured tensors and inputs in, outputs out.
        captured: The tensors that it reads, and may write to, besides its inputs.
        constants: The positions of those that may lie on any device: it made them from numbers,
            so that nobody else can reach them, as indices or to be put somewhere.
        code: The computation in words, equal for equal computations.
        guarded: Whether it took decisions by values: the last output, a bool of shape (), says
            whether they would be the same again.
        writes: Whether it writes to captured tensors.
        waits: Whether it has an operation that waits for the device which computes it.
    """

    script: Callable[..., tuple[Tensor, ...]]
    captured: tuple[Tensor, ...]
    constants: frozenset[int]
    code: str
    guarded: bool
    writes: bool
    waits: bool

    def same_as(self, other: Graph) -> bool:
        """Return whether two recordings are of the same computation on the same tensors."""
        tensors = zip(self.captured, other.captured, strict=False)
        same_tensors = len(self.captured) == len(other.captured) and all(
            a is b or (not a.requires_grad and _equal_values(a, b)) for a, b in tensors
        )
        return self.code == other.code and same_tensors

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run it.

        Args:
            inputs: Tensors of the shapes, strides, types and devices it was recorded with.

        Returns:
            What the recorded function returned, without autograd's history.
        """
        # Nothing asks for gradients of gradients: autograd need not look at the operations.
        with _interpreted(), torch._C._AutoDispatchBelowADInplaceOrView():
            return self.script(*self.captured, *inputs)


@contextmanager
def _interpreted() -> Iterator[None]:
    """Let TorchScript run graphs as they are, in this thread."""
    before = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(False)
    try:
        yield
    finally:
        torch._C._set_graph_executor_optimize(before)


def record(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], own: Iterable[Tensor] = ()
) -> Graph:
    """Run a function once and return the graph of what it did.

    Args:
        function: Tensors in, tensors out; it may go through autograd.
        inputs: What to call it with.
        own: Tensors that it may write to.

    Raises:
        NotTraceable: Before anything is done that a recording could not repeat, or if TorchScript
            does not know an operation.
    """
    recorder = _Recorder(inputs, own)
    with recorder, NoReadsInBulk():
        outputs = list(function(*inputs))
        if recorder.guards:
            outputs.append(recorder.guards.hold())
    graph = recorder.finish(outputs)
    made = {node for node in recorder.captured if _is_lifted(node)}
    remove_aliases(graph)
    remove_dead(graph)
    captured = _used(recorder.captured)
    without_waiting(graph)
    constants = frozenset(
        position
        for position, (node, tensor) in enumerate(captured.items())
        if node in made and (tensor.ndim or all(is_put(node, user) for user in node.users))
    )
    changed = changing(graph)
    merge_equal(graph, changed)
    base = bases(graph)
    part_outputs(graph, base)
    reuse_memory(graph, base, changed)
    lines = [f"{n.name} = {n.target} {n.args} {n.kwargs}" for n in graph.nodes]
    return Graph(
        torch._C._create_function_from_graph("recorded", Script().translate(graph)),
        tuple(captured.values()),
        constants,
        code="\n".join(lines),
        guarded=len(recorder.guards) > 0,
        writes=any(node.op == "placeholder" for node in changed),
        waits=any(node.target in WAITS for node in graph.nodes),
    )


class _Recorder(TorchDispatchMode):
    """Notes the operations that are carried out inside it, below autograd, as a graph.

    torch's own `make_fx` does the same and more: it works out what every value looks like, and
    took 0.3 s for a flow whose steps take 4 ms.

    Args:
        inputs: Tensors that are inputs of the graph; all others that it meets are captured.
        own: Tensors that may be written to.

    Attributes:
        captured: The tensors captured, by their nodes, which stand before the inputs.
        guards: What Python has read of values.
    """

    def __init__(self, inputs: Sequence[Tensor], own: Iterable[Tensor]) -> None:
        super().__init__()
        self.guards, self._writable = Guards(), Writable(own)
        self.captured: dict[fx.Node, Tensor] = {}
        self._graph = fx.Graph()
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Any] = []
        for number, tensor in enumerate(inputs):
            self._note(tensor, self._graph.placeholder(f"input_{number}"))
        self._last_captured: fx.Node | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare every operation torch's precautions for its compiler, which does not run here."""
        return False

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        about = operation(func)
        if about.is_composite:
            with self:
                return func.decompose(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return self._read(args[0])
        check_repeatable(func, about, args, kwargs)
        if about.written:
            self._writable.check(func, about, args, kwargs)
        # Before it runs: it may write to its arguments.
        node = self._graph.call_function(func, name=f"op_{len(self._alive)}")
        # Arguments that come later are not searched for numbers that torch's compiler minds.
        node.args = tuple(map(self._named, args))
        if kwargs:
            node.kwargs = {name: self._named(value) for name, value in kwargs.items()}
        node.meta["in_backward"] = torch._C._current_graph_task_id() != _NO_TASK
        result = func(*args, **kwargs)
        self._writable.add(result, about, args)
        if isinstance(result, Tensor):
            self._note(result, node)
        elif isinstance(result, list | tuple):
            node.meta["length"] = len(result)
            for number, item in enumerate(result):
                if isinstance(item, Tensor):
                    self._note(item, self._graph.call_function(operator.getitem, (node, number)))
        return result

    def finish(self, outputs: Sequence[Tensor]) -> fx.Graph:
        """Return the graph, with these outputs."""
        self._graph.output([self._node_of(tensor) for tensor in outputs])
        return self._graph

    def _read(self, tensor: Tensor) -> Any:
        """Return the value of a tensor that has one, and guard it."""
        with _disable_current_modes():
            value = tensor.item()
        with self:
            self.guards.add(tensor.clone(), value)
        return value

    def _note(self, tensor: Tensor, node: fx.Node) -> None:
        strides = tensor.stride() if tensor.layout is torch.strided else None
        layout = strides and (tensor.dtype, tensor.shape, strides)
        known = self._nodes.get(id(tensor))
        if known is not None:  # an operation that returns its argument, and may not say so
            layout = known.meta["layout"] = None
        node.meta.update(device=tensor.device, dtype=tensor.dtype, layout=layout)
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)  # a number names a tensor for as long as it lives

    def _node_of(self, tensor: Tensor) -> fx.Node:
        known = self._nodes.get(id(tensor))
        if known is not None:
            return known
        last = self._last_captured
        with self._graph.inserting_after(last) if last else self._graph.inserting_before():
            node = self._graph.placeholder(f"captured_{len(self.captured)}")
        self.captured[node], self._last_captured = tensor, node
        self._note(tensor, node)
        return node

    def _named(self, value: Any) -> Any:
        """Return arguments with nodes in place of tensors."""
        kind = type(value)
        if kind is list or kind is tuple:
            return kind(map(self._named, value))
        return self._node_of(value) if isinstance(value, Tensor) else value


_NO_TASK = -1
"""What autograd says while it computes no gradients."""


def _used(captured: Mapping[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
    """Take out captured tensors that nobody reads; return the others, in their order."""
    for node in [node for node in captured if not node.users]:
        node.graph.erase_node(node)
    return {node: tensor for node, tensor in captured.items() if node.users}


def _is_lifted(node: fx.Node) -> bool:
    """Return whether a tensor has just been made from numbers, which torch announces so."""
    return bool(node.users) and all(user.target is aten.lift_fresh.default for user in node.users)


def _equal_values(first: Tensor, second: Tensor) -> bool:
    return (
        first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)
    )
