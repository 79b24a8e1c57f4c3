"""Compute the steps of several networks of one make at once: one recorded step for all of them.

Small networks spend most of a step on starting operations. A stack records the step of one network,
sees that the others are the same computation (by comparing them, or else by recording them too),
and batches its operations over the networks. Products of matrices are then summed in another order,
so that results are equal up to rounding only; this is checked for every network on the first
batches of every shape.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from sbi_ignite.capture.counterparts import counterparts
from sbi_ignite.capture.executors import Executor, Run, executors_for
from sbi_ignite.capture.gradients import EagerGradients
from sbi_ignite.capture.guards import NotTraceable
from sbi_ignite.capture.passes.batching import batched, remove_views_of_same_layout
from sbi_ignite.capture.passes.draws import without_draws
from sbi_ignite.capture.private_torch import copy_each
from sbi_ignite.capture.python_state import Fingerprint
from sbi_ignite.capture.recorder import record
from sbi_ignite.capture.recording import Recording
from sbi_ignite.capture.report import in_a_line
from sbi_ignite.capture.verification import (
    TracedGradients,
    are_close,
    check_recording,
    freed_at_once,
    gradients_of,
    losses_and_gradients,
    own_tensors,
    refuse_hooks,
)
from sbi_ignite.optim.memory_layout import ALIGNED, Aligned
from sbi_ignite.optim.private_torch import version_of
from sbi_ignite.random_state import OwnRandomState

MAX_SHAPES = 4
"""Shapes of batches for which a stack is recorded; a last, smaller batch is one of them."""


@dataclass
class Member:
    """A network that is to be stacked, and how its steps are computed alone.

    Attributes:
        gradients: Computes its steps alone.
        stepped: The parameters of its optimizer, in the optimizer's order.
        random: Its random states.
    """

    gradients: TracedGradients
    stepped: Sequence[Tensor]
    random: OwnRandomState
    _recorded: dict[Any, _Recorded] = field(default_factory=dict, init=False, repr=False)

    @property
    def eager(self) -> EagerGradients:
        """Its network and loss."""
        return self.gradients.eager

    @property
    def model(self) -> nn.Module:
        """Its network."""
        return self.eager.model

    @property
    def parameters(self) -> list[Tensor]:
        """The leaves whose gradients are needed: the optimizer's in its order, then others."""
        every = [*self.stepped, *self.gradients.parameters()]
        return [p for p in {id(p): p for p in every}.values() if p.requires_grad]

    def recorded(
        self, key: Any, batch: Sequence[Tensor], like: _Recorded | None = None
    ) -> _Recorded:
        """Return the step for batches of one shape, recorded once.

        Args:
            key: Names the shape.
            batch: Such a batch.
            like: The step of another network, which is taken over if this one's is the same.
        """
        found = self._recorded.get(key)
        if found is None or not found.holds():
            taken_over = None if like is None else like.taken_over(self, batch)
            found = self._recorded[key] = taken_over or _Recorded.of(self, batch)
        return found


@dataclass(frozen=True)
class _Recorded:
    """The recorded step of a network by itself.

    Attributes:
        member: The network.
        recording: What is known about it.
        graph: Its graph, with losses and gradients as outputs, and last, if the recording is
            guarded, whether it holds.
        parameters: The parameters that have gradients.
        drawing: The graph of what draws; None if there is nothing to draw.
        draw: Draws the random numbers of a step, which are further inputs of the graph; None if
            there are none.
    """

    member: Member
    recording: Recording
    graph: fx.Graph
    parameters: list[Tensor]
    drawing: fx.Graph | None
    draw: Run | None
    _python: Fingerprint
    _fixed: list[tuple[Tensor, object]]

    @classmethod
    def of(cls, member: Member, batch: Sequence[Tensor]) -> _Recorded:
        """Record a step.

        Raises:
            NotTraceable: If it cannot be stacked, whatever the other networks are.
        """
        refuse_hooks(member.model)
        python, parameters = Fingerprint(*member.gradients.roots), member.parameters
        used: list[Tensor] = []

        def step(*tensors: Tensor) -> list[Tensor]:
            losses, gradients = losses_and_gradients(member.eager, parameters, tuple(tensors))
            pairs = zip(parameters, gradients, strict=True)
            used[:] = [p for p, gradient in pairs if gradient is not None]
            return [losses, *(g for g in gradients if g is not None)]

        own = own_tensors(member.model)
        with freed_at_once():
            recording, graph = record(step, [tensor.clone() for tensor in batch], own=own)
        check_recording(recording, member.model, parameters)
        if recording.writes:
            raise NotTraceable("its steps write to the network's buffers, as batch norms do")
        if not used:
            raise NotTraceable("its loss has no gradients")
        return cls._of(member, recording, graph, used, without_draws(graph), python, batch)

    @classmethod
    def _of(
        cls,
        member: Member,
        recording: Recording,
        graph: fx.Graph,
        parameters: list[Tensor],
        drawing: fx.Graph | None,
        python: Fingerprint,
        batch: Sequence[Tensor],
    ) -> _Recorded:
        trained = set(map(id, parameters))
        fixed = [(t, version_of(t)) for t in recording.captured if id(t) not in trained]
        draw = None
        if drawing is not None:
            nothing = replace(recording, guarded=False, waits=False)
            draw = prepared(executors_for(False), nothing, drawing, batch)[0]
        return cls(member, recording, graph, parameters, drawing, draw, python, fixed)

    def taken_over(self, member: Member, batch: Sequence[Tensor]) -> _Recorded | None:
        """Return the step of another network, given that it does the same with its own tensors.

        Recording it would take ten times as long.

        Args:
            member: The other network.
            batch: One of its batches.

        Returns:
            Its step; None if it has to be recorded to know.

        Raises:
            NotTraceable: If it cannot be stacked.
        """
        refuse_hooks(member.model)
        if type(member.eager.loss) is not type(self.member.eager.loss):
            return None
        python = Fingerprint(*member.gradients.roots)
        its = counterparts(self.member.gradients.roots, member.gradients.roots)
        mine, made = self.recording.captured, self.recording.made
        if its is None or any(i not in made and id(t) not in its for i, t in enumerate(mine)):
            return None
        if not _are_same([its.get(id(p)) for p in self.member.parameters], member.parameters):
            return None  # an optimizer has them in another order, or only some of them
        captured = tuple(t if i in made else its[id(t)] for i, t in enumerate(mine))
        recording = replace(self.recording, captured=captured)
        check_recording(recording, member.model, member.parameters)
        parameters = [its[id(p)] for p in self.parameters]
        return self._of(member, recording, self.graph, parameters, self.drawing, python, batch)

    def holds(self) -> bool:
        """Return whether nothing has changed but the values of parameters that are trained."""
        return self._python.holds() and all(version_of(t) == before for t, before in self._fixed)


class Stack:
    """One recorded step for several networks; their parameters lie in the rows of one tensor.

    Args:
        members: The networks, at least two.
        capture: Whether to run as a CUDA graph where possible.
        rounding: Largest relative difference from the steps of each network alone.
    """

    def __init__(self, members: Sequence[Member], capture: bool, rounding: float) -> None:
        self.members, self._capture, self._rounding = list(members), capture, rounding
        self._shapes: dict[Any, _Shape] = {}
        self._rows: _Rows | None = None
        self.executor = ""

    @property
    def values(self) -> Tensor:
        """Where all parameters are read, shape (num_members, num_numbers); once it is prepared."""
        assert self._rows is not None
        return self._rows.values

    @property
    def parameters(self) -> list[list[Tensor]]:
        """The parameters of each member that lie in its row, in their order."""
        return [] if self._rows is None else self._rows.parameters

    def parted(self, gradient: Tensor) -> list[Tensor]:
        """Return the gradients of a member's parameters, given all of them as one tensor."""
        assert self._rows is not None
        return self._rows.places.parted(gradient)

    def holds(self) -> bool:
        """Return whether all recordings are still those of the networks as they are."""
        return all(r.holds() for member in self.members for r in member._recorded.values())

    def step(self, batches: Sequence[Sequence[Tensor]], refresh: bool = True) -> Computed:
        """Return losses and gradients of all members.

        Random numbers are drawn from the states of each member.

        Args:
            batches: A batch per member, all of the same kinds, see `kinds_of`.
            refresh: Whether parameters that members have elsewhere are copied to the rows.

        Returns:
            Losses and gradients. The random states of a member that has none are as before.

        Raises:
            NotTraceable: If the members cannot be stacked, or not for such batches.
        """
        return self._run(self.prepare(batches), batches, refresh)

    def prepare(self, batches: Sequence[Sequence[Tensor]]) -> _Shape:
        """Record a step for batches of this shape, unless this was done; see `step`."""
        key = kinds_of(batches[0])
        if key is None:
            raise NotTraceable("its batches are more than a few tensors")
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= MAX_SHAPES:
                raise NotTraceable(f"there are more than {MAX_SHAPES} shapes of batches")
            shape = self._recorded(key, batches)
            self._check(shape, batches)
            self._shapes[key] = shape
        return shape

    def _run(
        self, shape: _Shape, batches: Sequence[Sequence[Tensor]], refresh: bool = True
    ) -> Computed:
        assert self._rows is not None
        if refresh:
            self._rows.refresh()
        inputs, undo = self._drawn(shape, batches)
        found = shape.run([torch.stack(tensors) for tensors in zip(*inputs, strict=True)])
        held = found[2].tolist() if shape.guarded else ()
        missed = tuple(k for k, holds in enumerate(held) if not holds)
        for k in missed:
            undo[k]()
        return Computed(found[0], found[1], missed)

    def _drawn(
        self, shape: _Shape, batches: Sequence[Sequence[Tensor]]
    ) -> tuple[list[Sequence[Tensor]], list[Callable[[], None]]]:
        """Return batches with the random numbers of a step, and what takes their drawing back."""
        if not shape.draw:
            return list(batches), [_nothing] * len(batches)
        inputs: list[Sequence[Tensor]] = []
        undo: list[Callable[[], None]] = []
        for member, batch, draw in zip(self.members, batches, shape.draw, strict=True):
            before = member.random.state_dict() if shape.guarded else None
            with member.random.in_force():
                inputs.append((*batch, *draw(batch)))
            undo.append(
                _nothing if before is None else partial(member.random.load_state_dict, before)
            )
        return inputs, undo

    @torch.no_grad()
    def _recorded(self, key: Any, batches: Sequence[Sequence[Tensor]]) -> _Shape:
        """Record one step of all members."""
        pairs = zip(self.members[1:], batches[1:], strict=True)
        with torch.enable_grad():
            first = self.members[0].recorded(key, batches[0])
            recorded = [first, *(member.recorded(key, batch, first) for member, batch in pairs)]
        if any(other.recording.code != first.recording.code for other in recorded):
            raise NotTraceable("the members' networks are different computations")
        if self._rows is None:
            self._rows = _Rows([each.parameters for each in recorded])
        elif not self._rows.are_of([each.parameters for each in recorded]):
            raise NotTraceable("other parameters have gradients in batches of another shape")
        values, is_batched = self._captured(recorded)
        drawn = [
            [] if r.draw is None else r.draw(b) for r, b in zip(recorded, batches, strict=True)
        ]
        pairs = zip(batches, drawn, strict=True)
        inputs = [torch.stack(ts) for ts in zip(*((*b, *d) for b, d in pairs), strict=True)]
        compute = batched(first.graph, [*is_batched, *(True for _ in inputs)])
        true = torch.ones(len(recorded), dtype=torch.bool, device=inputs[0].device)
        places = self._rows

        def step(*batch: Tensor) -> list[Tensor]:
            losses, *gradients = compute(true, [*values, *batch])
            holds = [gradients.pop()] if first.recording.guarded else []
            return [losses, places.joined(gradients), *holds]

        try:
            with freed_at_once():
                recording, graph = record(step, inputs)
        except RuntimeError as error:
            raise NotTraceable(f"its operations cannot be batched ({in_a_line(error)})") from error
        remove_views_of_same_layout(graph)
        run, self.executor = prepared(executors_for(self._capture), recording, graph, inputs)
        draw = [r.draw for r in recorded if r.draw is not None]
        return _Shape(run, first.recording.guarded, draw)

    def _captured(self, recorded: Sequence[_Recorded]) -> tuple[list[Tensor], list[bool]]:
        """Return what the recordings read besides batches, and whether it differs by member."""
        assert self._rows is not None
        first = recorded[0]
        device = first.parameters[0].device
        number = {id(parameter): i for i, parameter in enumerate(first.parameters)}
        values: list[Tensor] = []
        is_batched: list[bool] = []
        for position, tensor in enumerate(first.recording.captured):
            each = [r.recording.captured[position] for r in recorded]
            i = number.get(id(tensor))
            if i is not None:
                if any(t is not r.parameters[i] for t, r in zip(each, recorded, strict=True)):
                    raise NotTraceable("the members' networks are different computations")
                value, differs = self._rows.of_all[i], True
            else:
                if any((t.shape, t.dtype) != (tensor.shape, tensor.dtype) for t in each):
                    raise NotTraceable("the members' networks are different computations")
                differs = not all(torch.equal(t, tensor) for t in each)
                value = torch.stack([t.detach() for t in each]) if differs else tensor.detach()
                if value.ndim or differs:
                    value = value.to(device)
            values.append(value)
            is_batched.append(differs)
        return values, is_batched

    def _check(self, shape: _Shape, batches: Sequence[Sequence[Tensor]]) -> None:
        """Refuse a recording that does not give what each network gives alone, up to rounding.

        Random states are afterwards as they were.
        """
        before = [member.random.state_dict() for member in self.members]
        found = self._run(shape, batches)
        for member, state in zip(self.members, before, strict=True):
            member.random.load_state_dict(state)
        for k, (member, batch) in enumerate(zip(self.members, batches, strict=True)):
            given = found[k]
            with member.random.in_force():
                alone, backward = member.eager(tuple(batch))
            member.random.load_state_dict(before[k])
            if given is None or not torch.isfinite(alone).all():
                continue  # the step ends with an error, whoever computes it
            expected = gradients_of(self.parameters[k], backward)
            values = [given[0], *self.parted(given[1])]
            if not are_close([alone.detach(), *expected], values, self._rounding):
                raise NotTraceable("a stacked step differs from those of each member alone")


@dataclass(frozen=True)
class Computed:
    """Losses and gradients of all members of a stack.

    Attributes:
        losses: Shape (num_members, batch) or (num_members,).
        gradients: Shape (num_members, num_numbers).
        missed: The members whose losses decide otherwise for this batch, so that their rows mean
            nothing.
    """

    losses: Tensor
    gradients: Tensor
    missed: Sequence[int] = ()

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor] | None:
        """Return losses and gradients of one member; None if it has none."""
        return None if k in self.missed else (self.losses[k], self.gradients[k])


@dataclass(frozen=True)
class _Shape:
    """The recorded step of a stack for batches of one shape.

    Attributes:
        run: Runs it.
        guarded: Whether its last output says for which members it holds.
        draw: What draws the random numbers of each member; empty without any.
    """

    run: Run
    guarded: bool
    draw: Sequence[Run]


def _nothing() -> None:
    """Take nothing back."""


def prepared(
    executors: Sequence[Executor], recording: Recording, graph: fx.Graph, inputs: Sequence[Tensor]
) -> tuple[Run, str]:
    """Return what runs a recording, and its name: the first executor that works.

    Args:
        executors: Ways to run recordings.
        recording: What is known about the recording.
        graph: Its graph.
        inputs: What it was recorded with.

    Raises:
        NotTraceable: If none works, saying why.
    """
    reasons: list[str] = []
    for executor in executors:
        reason = executor.missing()
        if not reason:
            try:
                return executor.prepare(recording, graph, inputs), executor.name
            except Exception as error:
                reason = in_a_line(error)
        reasons.append(reason)
    raise NotTraceable("; ".join(reasons))


class _Rows:
    """The parameters of several networks, as the rows of one tensor.

    Args:
        parameters: Those of each network, in one order.

    Attributes:
        parameters: The same.
        places: Where parameters lie in a row.
        values: The rows, shape (num_networks, num_numbers).
        of_all: For each parameter, its values in all networks, shape (num_networks, ...).
    """

    def __init__(self, parameters: Sequence[Sequence[Tensor]]) -> None:
        self.parameters = [list(of_one) for of_one in parameters]
        first = self.parameters[0]
        kinds = {(p.dtype, p.device) for of_one in parameters for p in of_one}
        shapes = {tuple(p.shape for p in of_one) for of_one in parameters}
        if len(shapes) > 1:
            raise NotTraceable("the members' networks are different computations")
        if len(kinds) > 1 or first[0].device.type not in ALIGNED:
            raise NotTraceable("its parameters are of several types, or on several devices")
        if not all(p.is_contiguous() for of_one in parameters for p in of_one):
            raise NotTraceable("its parameters are not contiguous in memory")
        self.places = Aligned([p.detach() for p in first])
        rows = [self.places.joined([p.detach() for p in of_one]) for of_one in parameters]
        self.values = torch.stack(rows)
        self._parts = [self.places.parted(row) for row in self.values.unbind(0)]
        self.of_all = [self._stacked(part) for part in self._parts[0]]
        unit = ALIGNED[first[0].device.type] // first[0].element_size()
        self._gaps = [self.values.new_zeros(len(rows), -p.numel() % unit) for p in first]

    def _stacked(self, part: Tensor) -> Tensor:
        """Return the view of all rows that begins with a view of the first one."""
        shape, strides = (len(self.values), *part.shape), (self.values.stride(0), *part.stride())
        return self.values.as_strided(shape, strides, part.storage_offset())

    def are_of(self, parameters: Sequence[Sequence[Tensor]]) -> bool:
        """Return whether these are the same parameters."""
        return all(map(_are_same, self.parameters, parameters))

    def joined(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return gradients of all networks as rows, laid out as the parameters are."""
        pieces: list[Tensor] = []
        for gradient, gap in zip(gradients, self._gaps, strict=True):
            pieces.append(gradient.reshape(len(gradient), -1))
            if gap.numel():
                pieces.append(gap)
        return torch.cat(pieces, dim=1)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the parameters of those networks that have them elsewhere."""
        for parameters, parts in zip(self.parameters, self._parts, strict=True):
            # Optimizers that step on flat tensors keep all parameters of a network in its row.
            first, last = parameters[0].data_ptr(), parameters[-1].data_ptr()
            if (first, last) != (parts[0].data_ptr(), parts[-1].data_ptr()):
                copy_each(parts, [p.detach() for p in parameters])


def _are_same(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Return whether these are the same objects."""
    return len(first) == len(second) and all(map(operator.is_, first, second))


def kinds_of(batch: Any) -> Any:
    """Return what a recording assumes about a batch; None if it is no tuple of plain tensors."""
    if type(batch) is not tuple or not batch:
        return None
    if not all(type(t) is Tensor and not t.requires_grad for t in batch):
        return None
    return tuple((t.shape, t.dtype, t.device) for t in batch)
