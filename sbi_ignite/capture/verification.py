"""Replace eager computations by recordings that have proved equal to them.

There is one recording per shape of batch. It is made when the shape has been seen often enough to
make it worthwhile, or is sure to be, and is used only after it has given, on several batches, bit
for bit what the eager computation gave: losses, gradients, what is written to the network's
buffers, and the random states afterwards. Because both are equal, a training may switch between
them at any step.

Recordings that are compiled into fused kernels round differently. They must be equal up to
rounding, and take over at once: the batches that prove them already count as they compute them.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from sbi_ignite.capture.executors import CudaGraphs, Run, executors_for
from sbi_ignite.capture.gradients import Backward, EagerGradients, LossFunction, hand_over
from sbi_ignite.capture.guards import NotTraceable
from sbi_ignite.capture.private_torch import (
    HOOKS,
    global_hooks,
    has_hooks,
    is_script_module,
    pytree,
    structure_key,
)
from sbi_ignite.capture.python_state import PLAIN, Fingerprint
from sbi_ignite.capture.recorder import record
from sbi_ignite.capture.recording import Recording
from sbi_ignite.capture.report import Compiled, Report, SlowerWays
from sbi_ignite.capture.rules import TracingRules
from sbi_ignite.concurrency import others_may_draw, others_train
from sbi_ignite.freed_memory import return_freed_memory
from sbi_ignite.optim.memory_layout import Aligned
from sbi_ignite.random_state import random_states, set_random_states

Outputs = list[Tensor | None]
HandOver = Callable[[Tensor, Sequence[Tensor]], bool]

MAX_SHAPES = 16
"""Maximum number of batch shapes to track; batches of further shapes are left alone."""
LARGE = 1024
"""Rows from which a batch's intermediate results use much memory."""
MAX_MISSES = 10
"""Number of batches on which a recording may fail to hold before it is given up."""
MAX_CHANGES = 3
"""Number of changes of the network between steps after which it is left alone."""
MAX_DISTURBED = 5
"""Failed proofs, while other threads run that may draw random numbers, until one counts."""
SMALL = 1e-2
"""Tensors with a smaller part of the largest norm are compared as if they had this part of it."""
PAUSE = 8
"""Batches left alone after the first such failure; the number doubles with each further one."""


@dataclass
class _Shape:
    """What is known about the batches of one shape.

    Attributes:
        parameters: The leaves whose gradients are asked for.
        used: For each output that is asked for, whether there is one.
        given: The parameters that have a part in the loss.
        places: Where their gradients lie in the one tensor in which a recording returns them; None
            if it returns them one by one.
    """

    is_large: bool = False
    seen: int = 0
    recording: Recording | None = None
    run: Run | None = None
    is_exact: bool = True
    parameters: tuple[Tensor, ...] = ()
    used: tuple[bool, ...] = ()
    given: tuple[Tensor, ...] = ()
    places: Aligned | None = None
    proofs: int = 0
    misses: int = 0
    eager_seconds: float = math.inf
    replayed_seconds: float = math.inf

    def make_room(self) -> None:
        """Return the memory of a large batch's results, which another way cannot fit into."""
        if self.is_large:
            return_freed_memory()

    @property
    def is_slower(self) -> bool:
        """Whether the fastest run of the recording took longer than the fastest without it."""
        return self.replayed_seconds > self.eager_seconds


class Tracing:
    """Recordings of one computation on a network, by shape of batch.

    Args:
        model: The network.
        also: More objects whose Python state the computation may read.
        rules: When to record, and how much proof to ask for.
        epoch: Returns the current epoch.
        given_up: Called once, with the reason, when recordings are given up for good.
        not_captured: Called with the reason when a recording does not run as a CUDA graph.
        slower_way: Called with how recordings run, and why not in a faster way.
        compiled: Remembers whether they are compiled.

    Attributes:
        model: The network.
        rules: The rules.
        roots: The objects whose Python state the computation may read.
    """

    def __init__(
        self,
        model: nn.Module,
        also: Sequence[Any],
        rules: TracingRules,
        epoch: Callable[[], int],
        given_up: Callable[[str], None],
        not_captured: Callable[[str], None] = lambda reason: None,
        slower_way: SlowerWays | None = None,
        compiled: Compiled | None = None,
    ) -> None:
        self._slower_way, self._compiled = slower_way or SlowerWays(), compiled
        self.model, self.rules, self._not_captured = model, rules, not_captured
        self.roots, self._epoch, self._given_up = (model, *also), epoch, given_up
        self._shapes: dict[Any, _Shape] = {}
        self._last_epoch, self._changes = -1, 0
        self._fingerprint: Fingerprint | None = None
        self._active, self._disturbed, self._pause = True, 0, 0
        self._not_fused = "" if rules.fuse else "not asked for"
        self._executor, self._replayed = Report("eager"), False
        self._eager_because = f"no more than {rules.after} batches of one shape came"

    def report(self) -> Report:
        """Return how batches have been computed so far; for recordings, how the latest one ran."""
        if self._active and self._replayed:
            return self._executor
        return Report("eager", self._eager_because)

    def shape_of(self, batch: Any) -> tuple[_Shape | None, list[Any]]:
        """Return what is known about batches like this one, and its leaves in order.

        For batches that are to be left alone, the first value is None.
        """
        if not self._active:
            return None, []
        if torch.is_anomaly_enabled():
            self._eager_because = "torch looks for anomalies, operation by operation"
            return None, []
        if others_train():
            self._forget()  # what they do to shared state is not a change of this computation
            return None, []
        if self._pause:
            self._pause -= 1
            return None, []
        self._look_for_changes()
        leaves, structure = _flattened(batch)
        key = (structure_key(structure), self.model.training, *map(_kind, leaves))
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= MAX_SHAPES:
                self._eager_because = f"there are more than {MAX_SHAPES} shapes of batches"
                return None, leaves
            if not all(map(_is_data, leaves)):
                self._eager_because = "batches have more in them than plain data"
                return None, leaves
            shape = self._shapes[key] = _Shape(any(map(_is_large, leaves)))
        shape.seen += 1
        return shape, leaves

    def is_due(self, shape: _Shape) -> bool:
        """Return whether the next batch of this shape is to be used as a proof."""
        after = self.rules.after
        if shape.is_large:
            after = max(after, self.rules.after_if_large)
        return shape.seen > after and not self._is_proven(shape)

    def _is_proven(self, shape: _Shape) -> bool:
        """Return whether a recording has given equal results often enough, and is worthwhile."""
        enough = shape.proofs >= self.rules.proofs
        return enough and not (self.rules.must_pay and shape.is_slower)

    def replay(self, shape: _Shape, leaves: Sequence[Any]) -> list[Tensor] | None:
        """Return what the recording returns; None if it is not proven or does not hold."""
        if shape.recording is None or not self._is_proven(shape):
            return None
        outputs = _run(shape, leaves)
        self._replayed = True
        if outputs is None:
            shape.misses += 1
            # How often steps were missed before an interruption must not decide how they round.
            if shape.misses >= MAX_MISSES and shape.is_exact:
                self._give_up("decisions inside it depend on the values in a batch")
        return outputs

    def prove(
        self,
        shape: _Shape,
        leaves: Sequence[Any],
        eager: Callable[[], Outputs | None],
        recordable: Callable[..., list[Tensor]],
    ) -> Outputs | None:
        """Compute a batch eagerly, then check that the recording gives the same.

        Afterwards everything is as the eager computation left it; or as the recording left it, if
        that has been compiled and is equal up to rounding.

        Args:
            shape: What is known about batches like this one.
            leaves: The batch.
            eager: The eager computation; returns None if there is nothing to compare.
            recordable: The same computation as a function of the batch's tensors.

        Returns:
            What to take in place of what the eager computation gave; None if that is to be taken.
        """
        try:
            refuse_hooks(self.model)
        except NotTraceable as reason:
            self._give_up(str(reason))
        before, python = _State.of(self.model), self._fingerprint
        if python is None or not python.holds():
            python = Fingerprint(*self.roots)
        with _timed(leaves) as seconds:
            outputs = eager()
        if outputs is None or not self._active:
            return None
        shape.eager_seconds = min(shape.eager_seconds, *seconds)
        after, same = before.followed(), False
        try:
            if not python.holds():
                raise NotTraceable("Python state that it can reach changes with every batch")
            replayed = self._compare(shape, leaves, before, after, outputs, recordable)
            self._fingerprint, same = python, True
            return replayed
        except NotTraceable as reason:
            self._refuted(str(reason))
        except Exception as error:
            self._refuted(f"{type(error).__name__}: {_first_line(error)}")
        finally:
            if not same:
                after.restore()
            shape.make_room()
        return None

    def _compare(
        self,
        shape: _Shape,
        leaves: Sequence[Any],
        before: _State,
        after: _State,
        outputs: Outputs,
        recordable: Callable[..., list[Tensor]],
    ) -> Outputs | None:
        """Raise `NotTraceable` unless a recording gives what the eager computation gave.

        Without an error, all states are as described in `prove`, as is what is returned.
        """
        if not before.same_outside_torch(after):
            raise NotTraceable("it draws from the generators of python or numpy")
        before.restore(after)
        shape.make_room()
        if shape.recording is None or (self.rules.record_twice and shape.proofs == 1):
            tensors = [_apart(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
            with freed_at_once():
                compared = self.rules.record_twice or self.rules.fuse
                own = own_tensors(self.model)
                recording, graph = record(recordable, tensors, own, with_code=compared)
                if shape.recording is not None and not recording.same_as(shape.recording):
                    raise NotTraceable("it is another computation from batch to batch")
                shape.recording = recording
                check_recording(recording, self.model, shape.parameters)
                shape.run, shape.is_exact = self._prepared(recording, graph, tensors)
                del graph
            before.restore()
            shape.make_room()
        with _timed(leaves) as seconds:
            run = _run(shape, leaves)
        replayed = None if run is None else _by_parameter(shape, run)
        if replayed is None:
            raise NotTraceable("decisions inside it depend on the values in a batch")
        if not shape.is_exact and not self._is_close(outputs, replayed, after):
            self._refuse_fused("a compiled step differs from the eager one by more than rounding")
            shape.recording = None  # the next batch makes one that runs operation by operation
            after.restore()
            return None
        if shape.is_exact and not (all(map(_same_bits, outputs, replayed)) and after.is_now()):
            raise NotTraceable("the recording differs from the eager computation")
        self._eager_because = "no recording was proven by enough batches"
        shape.proofs += 1
        shape.replayed_seconds = min(shape.replayed_seconds, *seconds)
        # The first runs may be slow ones, so timing gets a second chance.
        last = shape.proofs == 2 * self.rules.proofs
        if last and not self._is_proven(shape):
            raise NotTraceable("its recording is not faster")
        return None if shape.is_exact else replayed

    def _is_close(self, outputs: Outputs, replayed: Outputs, after: _State) -> bool:
        """Return whether outputs and states are equal up to rounding, and random draws equal."""
        rounding = self.rules.rounding
        return are_close(outputs, replayed, rounding) and after.is_nearly_now(rounding)

    def _refuse_fused(self, reason: str) -> None:
        """Compile no further recordings."""
        self._not_fused = reason
        self._given_up(reason)

    def _prepared(
        self, recording: Recording, graph: fx.Graph, tensors: Sequence[Tensor]
    ) -> tuple[Run, bool]:
        """Return a function that runs the recording, by the first executor that works.

        Returns:
            The function, and whether it gives what the recording gave bit for bit.

        Raises:
            NotTraceable: If none does.
        """
        reasons: list[str] = [self._not_fused] if self.rules.fuse and self._not_fused else []
        lacking: list[str] = []
        for executor in executors_for(self.rules.capture, fused=not self._not_fused):
            reason = executor.missing()
            if reason:
                lacking.append(reason)
            else:
                try:
                    run = executor.prepare(recording, graph, tensors)
                except Exception as error:
                    reason = _first_line(error)
                else:
                    self._executor = Report(executor.name, "; ".join(reasons))
                    self._slower_way(self._executor, bool(lacking))
                    if self._compiled is not None:
                        self._compiled.note(not executor.exact)
                    return run, executor.exact
            if not executor.exact:
                self._refuse_fused(reason)
            if isinstance(executor, CudaGraphs):
                self._not_captured(f"its steps are launched operation by operation ({reason})")
            if reason not in reasons:
                reasons.append(reason)
        raise NotTraceable("; ".join(reasons))

    def _look_for_changes(self) -> None:
        """Forget all recordings when the network, or what its loss can reach, has changed."""
        epoch = self._epoch()
        due = self.rules.every_step or epoch != self._last_epoch
        self._last_epoch = epoch
        if self._fingerprint is None or not due or self._fingerprint.holds():
            return
        self._forget()
        self._changes += 1
        if self._changes >= MAX_CHANGES:
            self._give_up("the network or its loss keeps changing between steps")

    def _refuted(self, reason: str) -> None:
        """Give up, or try again if other threads may have drawn random numbers meanwhile."""
        if not others_may_draw():
            self._give_up(reason)
            return
        self._disturbed += 1
        if self._disturbed < MAX_DISTURBED:
            self._forget()
            self._pause = PAUSE * 2**self._disturbed
        else:
            self._give_up(f"{reason}, which other threads of this process may have brought about")

    def _give_up(self, reason: str) -> None:
        """Compute eagerly from now on."""
        self._forget()
        self._active, self._eager_because = False, reason
        self._given_up(reason)

    def _forget(self) -> None:
        self._shapes.clear()
        self._fingerprint = None


class TracedGradients:
    """Losses and gradients, computed by recordings once these have proved equal.

    Args:
        eager: The computation that they must equal.
        parameters: Returns the leaves whose gradients are needed.
        tracing: The recordings.
        hand_over: See `FlatOptimizer.hand_over`.
    """

    def __init__(
        self,
        eager: EagerGradients,
        parameters: Callable[[], Sequence[Tensor]],
        tracing: Tracing,
        hand_over: HandOver = lambda gradient, parameters: False,
    ) -> None:
        self._eager, self._parameters, self._tracing = eager, parameters, tracing
        self._hand_over = hand_over

    @property
    def eager(self) -> EagerGradients:
        """The computation that recordings must equal."""
        return self._eager

    @property
    def roots(self) -> tuple[Any, ...]:
        """The objects whose Python state it may read."""
        return self._tracing.roots

    @property
    def rules(self) -> TracingRules:
        """When steps are recorded, and how much they may differ."""
        return self._tracing.rules

    def parameters(self) -> list[Tensor]:
        """Return the leaves whose gradients are needed."""
        return [parameter for parameter in self._parameters() if parameter.requires_grad]

    def __call__(self, batch: Any) -> tuple[Tensor, Backward]:
        """Return losses and a function that stores the gradients of their mean."""
        shape, leaves = self._tracing.shape_of(batch)
        if shape is None:
            return self._eager(batch)
        if self._tracing.is_due(shape):
            return self._proved(batch, shape, leaves)
        outputs = self._tracing.replay(shape, leaves)
        if outputs is None:
            return self._eager(batch)
        losses, *gradients = outputs
        if shape.places is None:
            return losses, partial(hand_over, shape.given, gradients)
        return losses, partial(self._store, shape.given, gradients[0], shape.places)

    def _store(self, parameters: Sequence[Tensor], gradient: Tensor, places: Aligned) -> None:
        """Store gradients that lie side by side."""
        if not self._hand_over(gradient, parameters):
            hand_over(parameters, places.parted(gradient))

    def _proved(self, batch: Any, shape: _Shape, leaves: list[Any]) -> tuple[Tensor, Backward]:
        """Return what the eager computation gives, and compare the recording with it."""
        result: list[tuple[Tensor, Backward]] = []
        parameters = tuple(self.parameters())
        shape.parameters = parameters

        def eager() -> Outputs | None:
            losses, backward = self._eager(batch)
            result.append((losses, backward))
            if not torch.isfinite(losses).all():
                return None  # the step ends with an error, or is undone when its loss is read
            gradients = gradients_of(parameters, backward)
            result.append((losses, partial(hand_over, parameters, gradients)))
            pairs = zip(parameters, gradients, strict=True)
            shape.given = tuple(parameter for parameter, g in pairs if g is not None)
            shape.places = _places_for(shape.given) if self.rules.fuse else None
            return [losses, *gradients]

        def recordable(*tensors: Tensor) -> list[Tensor]:
            rebuilt = _rebuilt(batch, leaves, tensors)
            losses, gradients = losses_and_gradients(self._eager, parameters, rebuilt)
            shape.used = (True, *(gradient is not None for gradient in gradients))
            given = [gradient for gradient in gradients if gradient is not None]
            return [losses, *(given if shape.places is None else [shape.places.joined(given)])]

        replayed = self._tracing.prove(shape, leaves, eager, recordable)
        if replayed is None:
            return result[-1]
        losses, *gradients = replayed
        assert losses is not None
        return losses, partial(hand_over, parameters, gradients)


def losses_and_gradients(
    eager: EagerGradients, parameters: Sequence[Tensor], batch: Any
) -> tuple[Tensor, list[Tensor | None]]:
    """Return losses and the gradients of their mean, in a way that can be recorded.

    Args:
        eager: Has the network and the loss.
        parameters: The leaves whose gradients are needed.
        batch: The batch.

    Returns:
        Losses, and for each parameter its gradient in the parameter's layout; None if it has no
        part in the loss.
    """
    losses = eager.loss(eager.model, batch)
    gradients = torch.autograd.grad(torch.mean(losses), parameters, allow_unused=True)
    pairs = zip(gradients, parameters, strict=True)
    return losses.detach(), [None if g is None else _laid_out(g, p) for g, p in pairs]


class TracedLosses:
    """Losses without gradients, computed by recordings once these have proved equal.

    Args:
        loss: The computation that they must equal.
        tracing: The recordings.
    """

    def __init__(self, loss: LossFunction, tracing: Tracing) -> None:
        self._loss, self._tracing = loss, tracing

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """Return the losses of a batch."""
        shape, leaves = self._tracing.shape_of(batch)
        if shape is None:
            return self._loss(model, batch)
        if self._tracing.is_due(shape):
            return self._proved(model, batch, shape, leaves)
        outputs = self._tracing.replay(shape, leaves)
        return self._loss(model, batch) if outputs is None else outputs[0]

    def _proved(self, model: Any, batch: Any, shape: _Shape, leaves: list[Any]) -> Tensor:
        result: list[Tensor] = []

        def eager() -> Outputs:
            result.append(self._loss(model, batch))
            return [result[0]]

        def recordable(*tensors: Tensor) -> list[Tensor]:
            shape.used = (True,)
            with torch.no_grad():
                return [self._loss(model, _rebuilt(batch, leaves, tensors))]

        replayed = self._tracing.prove(shape, leaves, eager, recordable)
        losses = replayed[0] if replayed is not None else None
        return result[0] if losses is None else losses


def check_recording(recording: Recording, model: nn.Module, parameters: Sequence[Tensor]) -> None:
    """Refuse recordings that could not be undone, or that depend on unknown state.

    Args:
        recording: What is known about the recording.
        model: The network.
        parameters: The leaves whose gradients it computes; none for losses alone.

    Raises:
        NotTraceable: Saying why.
    """
    if recording.writes and recording.guarded:
        raise NotTraceable("it decides by values and writes to the network's buffers")
    own = {id(tensor) for tensor in own_tensors(model)}
    memory = {tensor.untyped_storage().data_ptr() for tensor in own_tensors(model)}
    foreign = (t for t in recording.captured if id(t) not in own)
    if any(tensor.untyped_storage().data_ptr() in memory for tensor in foreign):
        raise NotTraceable("it reaches the network's weights by tensors of its own")
    known = {id(parameter) for parameter in parameters}
    if known and any(t.requires_grad and id(t) not in known for t in recording.captured):
        raise NotTraceable("it trains tensors that are neither network's nor optimizer's")


def refuse_hooks(model: nn.Module) -> None:
    """Refuse networks in which foreign code runs inside the forward or backward pass.

    Raises:
        NotTraceable: If a hook is registered anywhere, or a part has its own way of executing.
    """
    if global_hooks():
        raise NotTraceable("hooks are registered for all modules")
    for name, part in model.named_modules():
        if any(getattr(part, hooks, None) for hooks in HOOKS):
            raise NotTraceable(f"hooks are registered for {name or 'the network'}")
        if is_script_module(part) or isinstance(part, _EXECUTED_ELSEWHERE):
            raise NotTraceable(f"{name or 'the network'} is a {type(part).__name__}")
        if type(part).__module__.startswith("torch._dynamo"):
            raise NotTraceable(f"{name or 'the network'} is compiled already")
    for name, parameter in model.named_parameters():
        if has_hooks(parameter):
            raise NotTraceable(f"hooks are registered for {name}")


_EXECUTED_ELSEWHERE = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class _State:
    """The values of some tensors and the random states at one moment.

    Args:
        tensors: The tensors.
        values: Copies of them.
    """

    def __init__(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self._tensors, self._values = tensors, values
        self._random = random_states()

    @classmethod
    def of(cls, model: nn.Module) -> _State:
        """Return the state of a network's tensors."""
        tensors = own_tensors(model)
        return cls(tensors, [tensor.detach().clone() for tensor in tensors])

    def followed(self) -> _State:
        """Return the current state of the same tensors, most of which have not changed."""
        pairs = zip(self._tensors, self._values, strict=True)
        now = [value if _same_bits(t, value) else t.detach().clone() for t, value in pairs]
        return _State(self._tensors, now)

    def restore(self, now: _State | None = None) -> None:
        """Restore tensors and random states.

        Args:
            now: The current state, if it is known and was obtained by `followed` from this one.
        """
        present = self._tensors if now is None else now._values
        with torch.no_grad():
            for tensor, value, other in zip(self._tensors, self._values, present, strict=True):
                if other is not value and not _same_bits(other, value):
                    tensor.copy_(value)
        if not _equal(self._random, random_states()):
            set_random_states(self._random)

    def is_now(self) -> bool:
        """Return whether this is the current state, bit for bit."""
        same = all(map(_same_bits, self._tensors, self._values))
        return same and _equal(self._random, random_states())

    def is_nearly_now(self, rounding: float) -> bool:
        """Return whether this is the current state up to rounding, and the same random state."""
        tensors = [tensor.detach() for tensor in self._tensors]
        return are_close(self._values, tensors, rounding) and _equal(self._random, random_states())

    def same_outside_torch(self, other: _State) -> bool:
        """Return whether the generators of python and numpy are in the same state."""
        return all(_equal(self._random[of], other._random[of]) for of in ("python", "numpy"))


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Free what the block leaves behind when it ends, if garbage collection is enabled.

    The nodes of a recording reference each other. A few thousand of them left among older objects
    trigger a collection of all objects of a process, which takes 0.3 s with sbi loaded.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
            gc.collect(0)


@contextmanager
def _timed(leaves: Sequence[Any]) -> Iterator[list[float]]:
    """Measure how many seconds the block takes, including the work of the batch's devices.

    On a CPU, time in which other programs have the processor does not count.
    """
    devices = {leaf.device for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_cuda}
    clock = time.perf_counter if devices else time.thread_time
    seconds: list[float] = []
    began = clock()
    yield seconds
    for device in devices:
        torch.cuda.synchronize(device)
    seconds.append(clock() - began)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _flattened(batch: Any) -> tuple[list[Any], Any]:
    """Return the leaves of a batch, and a value that is equal for batches of the same structure."""
    if type(batch) is tuple and all(type(leaf) is Tensor for leaf in batch):
        return list(batch), len(batch)  # for our own batches, in a tenth of the time
    return pytree.tree_flatten(batch)


def own_tensors(model: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a network."""
    return [*model.parameters(), *model.buffers()]


def _is_data(leaf: Any) -> bool:
    """Return whether a leaf of a batch is plain: needs no gradients and hides no tensors."""
    return not leaf.requires_grad if isinstance(leaf, Tensor) else isinstance(leaf, PLAIN)


def _is_large(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) >= LARGE


def _apart(tensor: Tensor) -> Tensor:
    """Return a copy of an input, so that it is not confused with a tensor that the loss holds."""
    copy = tensor.clone()
    return copy if copy.stride() == tensor.stride() else tensor


def _kind(leaf: Any) -> Any:
    """Return what a recording assumes about a leaf of a batch."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    return type(leaf), repr(leaf)


def _run(shape: _Shape, leaves: Sequence[Any]) -> list[Tensor] | None:
    """Return what a recording returns; or None, with the random state restored."""
    assert shape.recording is not None
    assert shape.run is not None
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    before = _torch_random_states(tensors) if shape.recording.guarded else None
    outputs = list(shape.run(tensors))
    if before is not None and not outputs.pop():
        before()
        return None
    return outputs


def _by_parameter(shape: _Shape, outputs: Sequence[Tensor]) -> Outputs:
    """Return losses and gradients, None for parameters that have no part in the loss."""
    if shape.places is not None:
        losses, flat = outputs
        outputs = [losses, *shape.places.parted(flat)]
    flow = iter(outputs)
    return [next(flow) if used else None for used in shape.used]


def _torch_random_states(tensors: Sequence[Tensor]) -> Callable[[], None]:
    """Return a function that restores the current state of torch's generators."""
    on_host = torch.get_rng_state()
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    elsewhere = [(torch.cuda.get_rng_state(device), device) for device in devices]

    def restore() -> None:
        torch.set_rng_state(on_host)
        for state, device in elsewhere:
            torch.cuda.set_rng_state(state, device)

    return restore


def _rebuilt(batch: Any, leaves: Sequence[Any], tensors: Sequence[Tensor]) -> Any:
    """Return a batch with other tensors in it."""
    flow = iter(tensors)
    filled = [next(flow) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return pytree.tree_unflatten(filled, pytree.tree_structure(batch))


def _places_for(parameters: Sequence[Tensor]) -> Aligned | None:
    """Return where gradients of these lie side by side; None if they are not of one kind."""
    kinds = {(p.device.type, p.dtype, p.layout, p.is_contiguous()) for p in parameters}
    on_cpu = kinds <= {("cpu", dtype, torch.strided, True) for dtype in _EXACT}
    return Aligned(parameters) if on_cpu and len(kinds) == 1 else None


_EXACT = (torch.float32, torch.float64)


def gradients_of(parameters: Sequence[Tensor], backward: Backward) -> list[Tensor | None]:
    """Return the gradients of a backward pass, leaving those that parameters already had."""
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    backward()
    gradients = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient
    return gradients


def _laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return a gradient in the memory layout in which a backward pass stores it."""
    wanted, has = parameter.stride(), gradient.stride()
    dims = zip(parameter.shape, wanted, has, strict=True)
    if all(size == 1 or a == b for size, a, b in dims):
        return gradient
    return torch.empty_strided(
        parameter.shape, wanted, dtype=gradient.dtype, device=gradient.device
    ).copy_(gradient)


def _same_bits(first: Tensor | None, second: Tensor | None) -> bool:
    """Return whether two tensors are equal in type, layout and every bit."""
    if first is None or second is None:
        return first is second
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    if first.stride() != second.stride() and first.numel() > 1:
        return False
    if first.dtype is torch.float32 and first.is_contiguous() and second.is_contiguous():
        return torch.equal(first.data.view(torch.int32), second.data.view(torch.int32))
    a, b = (t.detach().reshape(-1).contiguous().view(torch.uint8) for t in (first, second))
    return torch.equal(a, b)


def are_close(
    expected: Sequence[Tensor | None], given: Sequence[Tensor | None], rounding: float
) -> bool:
    """Return whether tensors are equal up to rounding, and alike in type and layout.

    Args:
        expected: Tensors; of small ones among large ones, as among gradients, less is expected.
        given: Tensors to compare with them.
        rounding: Largest difference, relative to norms.
    """
    pairs = [pair for pair in zip(expected, given, strict=True) if pair != (None, None)]
    norms = [0.0 if a is None else float(a.detach().double().norm()) for a, _ in pairs]
    largest = max((norm for norm in norms if math.isfinite(norm)), default=0.0)
    for (a, b), norm in zip(pairs, norms, strict=True):
        if a is None or b is None or (a.shape, a.dtype) != (b.shape, b.dtype):
            return False
        if a.stride() != b.stride() and a.numel() > 1:
            return False
        if not a.is_floating_point() or not math.isfinite(norm):
            if not _same_bits(a, b):
                return False
        else:
            difference = float((a.detach().double() - b.detach().double()).norm())
            if not difference <= rounding * (norm + SMALL * largest):
                return False
    return True


_NUMBERS = frozenset((int, type(None)))


def _equal(first: Any, second: Any) -> bool:
    """Return whether nested containers of plain data and tensors are equal."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and _same_bits(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_equal(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        if _NUMBERS.issuperset(map(type, first)):  # a generator's state has hundreds
            return bool(first == second)
        return len(first) == len(second) and all(map(_equal, first, second))
    return bool(first == second)
