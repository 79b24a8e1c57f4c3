"""Record a function of tensors as one flat graph of operations, without Python.

Operations are recorded below autograd, and those without effect are removed. An executor runs them
in the same order with the same kernels: results and random draws are the same, bit for bit.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sbi_ignite.capture.guards import Guards, NoReadsInBulk, Writable, check_repeatable
from sbi_ignite.capture.operations import operation
from sbi_ignite.capture.passes.aliasing import bases, changing
from sbi_ignite.capture.passes.cleanup import (
    merge_equal,
    part_outputs,
    remove_aliases,
    remove_dead,
)
from sbi_ignite.capture.passes.index_put import is_put, without_waiting
from sbi_ignite.capture.private_torch import (
    OpOverload,
    TorchDispatchMode,
    in_backward_pass,
    without_modes,
)
from sbi_ignite.capture.recording import Recording

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
"""Operations that read back from a GPU what they have computed there."""


def record(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    own: Iterable[Tensor] = (),
    with_code: bool = True,
) -> tuple[Recording, fx.Graph]:
    """Run a function once and return what it did.

    Args:
        function: Tensors in, tensors out; it may go through autograd.
        inputs: The tensors to call it with.
        own: Tensors that it may write to.
        with_code: Whether the recording will be compared with others.

    Returns:
        What is known about the recording, and its graph, which an executor takes.

    Raises:
        NotTraceable: If it would do something that a recording cannot repeat; before doing it.
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
    part_outputs(graph, bases(graph))
    nodes = graph.nodes if with_code else ()
    lines = [f"{n.name} = {n.target} {n.args} {n.kwargs}" for n in nodes]
    recording = Recording(
        tuple(captured.values()),
        constants,
        code="\n".join(lines),
        guarded=len(recorder.guards) > 0,
        writes=any(node.op == "placeholder" for node in changed),
        waits=any(node.target in WAITS for node in graph.nodes),
        made=frozenset(position for position, node in enumerate(captured) if node in made),
    )
    return recording, graph


class _Recorder(TorchDispatchMode):
    """Records the operations carried out inside it, below autograd, as a graph.

    torch's own `make_fx` does the same and more: it works out the metadata of every value, which
    took 0.3 s for a flow whose steps take 4 ms. Tensors are known by reference only, so that
    recording a step takes no more memory than computing it.

    Args:
        inputs: Tensors that are inputs of the graph; all others it encounters are captured.
        own: Tensors that may be written to.

    Attributes:
        captured: The captured tensors, by their nodes, which come before the inputs.
        guards: The values that Python has read.
    """

    def __init__(self, inputs: Sequence[Tensor], own: Iterable[Tensor]) -> None:
        super().__init__()
        self.guards, self._writable = Guards(), Writable(own)
        self.captured: dict[fx.Node, Tensor] = {}
        self._graph = fx.Graph()
        self._nodes: dict[int, tuple[weakref.ref[Tensor], fx.Node]] = {}
        self._count = 0
        for number, tensor in enumerate(inputs):
            self._note(tensor, self._graph.placeholder(f"input_{number}"))
        self._last_captured: fx.Node | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Skip torch's precautions for its compiler, which does not run here."""
        return False

    def __torch_dispatch__(
        self,
        func: OpOverload,
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
        # Before it runs: it may write to its arguments.
        node = self._graph.create_node("call_function", func, name=f"op_{self._count}")
        self._count += 1
        # Later arguments are not searched for numbers that matter to torch's compiler.
        node.args = tuple(map(self._named, args))
        if kwargs:
            node.kwargs = {name: self._named(value) for name, value in kwargs.items()}
        if about.written:  # foreign tensors among the arguments are known by now
            self._writable.check(func, about, args, kwargs)
        node.meta["in_backward"] = in_backward_pass()
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
        with without_modes():
            value = tensor.item()
        with self:
            self.guards.add(tensor.clone(), value)
        return value

    def _note(self, tensor: Tensor, node: fx.Node) -> None:
        strides = tensor.stride() if tensor.layout is torch.strided else None
        layout = strides and (tensor.dtype, tensor.shape, strides)
        known = self._known(tensor)
        if known is not None:  # the operation returns its argument, maybe undeclared
            layout = known.meta["layout"] = None
        node.meta.update(device=tensor.device, dtype=tensor.dtype, layout=layout)
        self._nodes[id(tensor)] = weakref.ref(tensor), node

    def _known(self, tensor: Tensor) -> fx.Node | None:
        """Return the node of a tensor; an earlier one may have had the same id."""
        reference, node = self._nodes.get(id(tensor), (None, None))
        return node if reference is not None and reference() is tensor else None

    def _node_of(self, tensor: Tensor) -> fx.Node:
        known = self._known(tensor)
        if known is not None:
            return known
        self._writable.discard(tensor)
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


def _used(captured: Mapping[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
    """Remove captured tensors that are never read; return the others, in their order."""
    for node in [node for node in captured if not node.users]:
        node.graph.erase_node(node)
    return {node: tensor for node, tensor in captured.items() if node.users}


def _is_lifted(node: fx.Node) -> bool:
    """Return whether a tensor has just been made from numbers, as torch marks it."""
    return bool(node.users) and all(user.target is aten.lift_fresh.default for user in node.users)
