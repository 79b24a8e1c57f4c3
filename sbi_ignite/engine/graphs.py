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

from sbi_ignite.engine.indexing import is_put, without_waiting
from sbi_ignite.engine.operations import Operation, operation
from sbi_ignite.engine.watching import (
    Guards,
    NoReadsInBulk,
    NotTraceable,
    Writable,
    check_repeatable,
)

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
    _remove_aliases(graph)
    _remove_dead(graph)
    captured = _used(recorder.captured)
    without_waiting(graph)
    constants = frozenset(
        position
        for position, (node, tensor) in enumerate(captured.items())
        if node in made and (tensor.ndim or all(is_put(node, user) for user in node.users))
    )
    changing = _changing(graph)
    _merge_equal(graph, changing)
    _part_outputs(graph)
    lines = [f"{n.name} = {n.target} {n.args} {n.kwargs}" for n in graph.nodes]
    return Graph(
        torch._C._create_function_from_graph("recorded", _Script().translate(graph)),
        tuple(captured.values()),
        constants,
        code="\n".join(lines),
        guarded=len(recorder.guards) > 0,
        writes=any(node.op == "placeholder" for node in changing),
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
        self._nodes[id(tensor)] = node
        node.meta.update(device=tensor.device, dtype=tensor.dtype)
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


def _remove_aliases(graph: fx.Graph) -> None:
    """Take out what hands its argument on, for others than the kernels."""
    for node in list(graph.nodes):
        if node.target in (aten.detach.default, aten.lift_fresh.default):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _remove_dead(graph: fx.Graph) -> None:
    """Take out what nobody reads, except random draws and writes."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not _has_effect(node) and not node.users:
            graph.erase_node(node)


def _has_effect(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    about = operation(node.target)
    return bool(about.written) or about.draws


def _changing(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose memory is written to at any time, through them or through a view."""
    base: dict[fx.Node, fx.Node] = {}
    written: set[fx.Node] = set()
    for node in graph.nodes:
        aliased, targets = _aliases(node)
        base[node] = base[aliased] if aliased is not None else node
        written.update(base[target] for target in targets)
    return {node for node, its in base.items() if its in written}


def _aliases(node: fx.Node) -> tuple[fx.Node | None, list[fx.Node]]:
    """Return the node whose memory a node shares, if any, and the nodes that it writes to."""
    if node.op != "call_function":
        return None, []
    if not isinstance(node.target, torch._ops.OpOverload):  # an item of several results
        source = node.args[0]
        return source if isinstance(source, fx.Node) and _returns_views(source) else None, []
    shared: fx.Node | None = None
    targets: list[fx.Node] = []
    for position, argument in enumerate(operation(node.target).arguments):
        if not (argument.is_shared or argument.is_written):
            continue
        value = argument.given(position, node.args, node.kwargs)
        items = value if isinstance(value, list | tuple) else [value]
        nodes = [item for item in items if isinstance(item, fx.Node)]
        # A list's tensors are written to, one by one; no operation returns views of one.
        if nodes and argument.is_shared and nodes[0] is value:
            shared = nodes[0]
        if argument.is_written:
            targets += nodes
    return shared, targets


def _returns_views(node: fx.Node) -> bool:
    known = isinstance(node.target, torch._ops.OpOverload)
    return not known or operation(node.target).returns_views  # type: ignore[arg-type] # known says so


def _merge_equal(graph: fx.Graph, changing: set[fx.Node]) -> None:
    """Compute once what is computed twice, and take out transpositions back and forth."""
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


def _part_outputs(graph: fx.Graph) -> None:
    """Copy those outputs that share memory with inputs or with other outputs."""
    base: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        shared, _ = _aliases(node)
        base[node] = base[shared] if shared is not None else node
    (output,) = graph.find_nodes(op="output")
    taken = {node for node in graph.nodes if node.op == "placeholder"}
    parted: list[fx.Node] = []
    with graph.inserting_before(output):
        for node in output.args[0]:
            free = base[node] not in taken
            parted.append(node if free else graph.call_function(aten.clone.default, (node,)))
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


class _Script:
    """TorchScript's form of a flat graph: the same operations, found by their full schemas.

    `torch.jit.trace` would do for most graphs, but it knows no lists of bools, which backward
    passes of normalisations and convolutions take.
    """

    def __init__(self) -> None:
        self._graph: Any = torch._C.Graph()
        self._values: dict[fx.Node, Any] = {}
        self._lists: dict[fx.Node, list[Any]] = {}

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
            elif isinstance(node.target, torch._ops.OpOverload):
                number = _number_of(node)
                target = node.target if number is None else NUMBERS_AS_TENSORS[node.target]
                self._operation(node, operation(target), number)
            else:  # an item of several results
                source, index = node.args
                self._values[node] = self._lists[source][index]
        return self._graph

    def _append(self, kind: str, inputs: Sequence[Any], outputs: int = 1) -> Any:
        return self._graph.appendNode(self._graph.create(kind, inputs, outputs))

    def _operation(self, node: fx.Node, about: Operation, number: Tensor | None) -> None:
        """Append one operation, and note its results.

        Args:
            node: The operation.
            about: What is known about it.
            number: What takes the place of its second argument, a number.
        """
        given = [
            node.args[position]
            if position < len(node.args)
            else node.kwargs.get(argument.name, argument.default)
            for position, argument in enumerate(about.arguments)
        ]
        if number is not None:
            given[1] = number
        pairs = list(zip(given, about.arguments, strict=True))
        inputs = [self._input(value, argument.type) for value, argument in pairs]
        result = self._append(about.name, inputs, len(about.results))
        results = _outputs(result, len(about.results))
        for value, kind in zip(results, about.results, strict=True):
            if not isinstance(kind, torch._C.TensorType):  # which they are to begin with
                value.setType(kind)
        try:
            found = result.schema()
        except RuntimeError:
            found = None
        # A number where a tensor is due: the overload for numbers, which makes a tensor of it.
        same = found == about.schema or (
            str(found).startswith(f"{about.name}.Scalar")
            and any(
                isinstance(value, int | float) and isinstance(argument.type, torch._C.TensorType)
                for value, argument in pairs
            )
        )
        if not same:
            raise NotTraceable(f"TorchScript has no {node.target}")
        if len(results) == 1 and isinstance(about.results[0], torch._C.ListType):
            results = self._unpacked(results[0], node)
            self._lists[node] = results
        elif len(results) > 1:
            self._lists[node] = results
        else:
            self._values[node] = results[0] if results else None

    def _unpacked(self, value: Any, node: fx.Node) -> list[Any]:
        """Return the items of a list of tensors, as many as the graph takes."""
        length = node.meta["length"]
        unpacked = self._append("prim::ListUnpack", [value], length)
        return _outputs(unpacked, length)

    def _input(self, value: Any, kind: Any) -> Any:
        """Return an argument of an operation, of the type that its schema names."""
        if isinstance(value, fx.Node):
            return self._values[value]
        wanted = kind.getElementType() if isinstance(kind, torch._C.OptionalType) else kind
        if value is None or not isinstance(wanted, torch._C.ListType):
            return self._graph.insertConstant(_constant(value, wanted))
        items = list(value) if isinstance(value, list | tuple) else [value]
        of = wanted.getElementType()
        if items and not any(item is None or isinstance(item, fx.Node) for item in items):
            return self._graph.insertConstant([_constant(item, of) for item in items])
        listed = self._append("prim::ListConstruct", [self._input(item, of) for item in items])
        listed.output().setType(wanted)
        return listed.output()


NUMBERS_AS_TENSORS: Mapping[Any, Any] = {
    aten.add.Tensor: aten.add.Tensor,
    aten.sub.Tensor: aten.sub.Tensor,
    aten.mul.Tensor: aten.mul.Tensor,
    aten.div.Tensor: aten.div.Tensor,
    aten.rsub.Scalar: aten.rsub.Tensor,
}
"""Operations of a tensor with a number, and their forms for two tensors, by which torch carries
them out."""


def _number_of(node: fx.Node) -> Tensor | None:
    """Return the number that an operation takes as a tensor of the result's type, shape ().

    torch makes a tensor of the number and converts it, in four steps of half a microsecond each
    whenever the operation runs, and comes to the same. On a GPU, kernels are given the number.
    """
    if node.target not in NUMBERS_AS_TENSORS or len(node.args) < 2:
        return None
    tensor, number = node.args[:2]
    dtype = node.meta["dtype"]
    if (
        type(number) not in (int, float)
        or dtype not in (torch.float32, torch.float64)
        or not isinstance(tensor, fx.Node)
        or tensor.meta.get("dtype") is not dtype
        or node.meta["device"].type != "cpu"
    ):
        return None
    return torch.tensor(number, dtype=dtype)


def _outputs(node: Any, number: int) -> list[Any]:
    """Return a TorchScript node's results; to ask its iterator for one more costs 8 us."""
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
    """Return a value as TorchScript wants it to be written."""
    if isinstance(value, torch.memory_format):
        return MEMORY_FORMATS[value]
    return float(value) if isinstance(wanted, torch._C.FloatType) and value is not None else value
