"""Train several networks of one make stacked: one recorded step for all of them."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from ignite.engine import Events
from torch import Tensor

from sbi_ignite.capture import Report
from sbi_ignite.capture.gradients import Backward, hand_over
from sbi_ignite.capture.guards import NotTraceable
from sbi_ignite.capture.stacking import Member, Stack, kinds_of
from sbi_ignite.capture.verification import TracedGradients, gradients_of
from sbi_ignite.data.in_memory import InMemoryBatches
from sbi_ignite.handlers.epoch_mean import StepOutput
from sbi_ignite.handlers.signals import hold_together
from sbi_ignite.handlers.stop_mid_epoch import ends_epoch
from sbi_ignite.kernels.denormals import denormals_as_zeros
from sbi_ignite.optim.flat import FlatOptimizer
from sbi_ignite.random_state import OwnRandomState
from sbi_ignite.summary import TrainingSummary
from sbi_ignite.training.joint_update import JointUpdate
from sbi_ignite.training.run import in_turns
from sbi_ignite.training.steps import on_device
from sbi_ignite.training.training import Training
from sbi_ignite.training.turns import Call, InTurns, Pauses, called, check_directories, ends_all
from sbi_ignite.world import ONE

WORTH_IT = 0.9
"""Largest share of the time of single steps that a stacked one may take to be chosen. Clipping and
optimizers cost less in a stack too; what is missing to 1 pays for recording it."""

READY_AFTER = 60
"""Steps after which "auto" measures, although not all members repeat recordings of their own."""

MEASURED = 5
"""How often both ways are timed."""

MAX_CHANGES = 3
"""Changes of a network between steps after which a stack is given up."""

_logger = logging.getLogger("sbi_ignite.ensembles")


class Stacking:
    """Whether trainings are to run stacked, and what came of it.

    Args:
        wanted: True, or "auto" to measure whether it pays.

    Attributes:
        wanted: The same.
        chosen: Whether steps have been stacked; None before this was decided.
        because: What was measured, or why they were not.
    """

    def __init__(self, wanted: Literal[True, "auto"]) -> None:
        self.wanted = wanted
        self.chosen: bool | None = None
        self.because = ""

    def accept(self, because: str) -> None:
        """Note that steps are stacked."""
        if self.chosen is None:
            self.chosen, self.because = True, because
            _logger.info("Members train stacked: %s.", because)

    def refuse(self, because: str) -> None:
        """Note that they are not, or no longer."""
        if self.chosen is None:
            self.chosen, self.because = False, because
            _logger.info("Members train one after the other: %s.", because)
        elif self.chosen:
            self.because += f"; later one after the other: {because}"
            _logger.info("Members train one after the other from now on: %s.", because)


def run_stacked(
    trainings: Sequence[Training], stacking: Stacking, calls: Sequence[Call] = ()
) -> list[TrainingSummary | Exception]:
    """Run trainings in lockstep, with one recorded step for all, and leave the best weights.

    Each keeps its own batches, random states, rules, best weights, schedule, run directory and
    loggers. Losses and gradients are computed together, and clipping and the steps of fused Adam
    and AdamW are done at once; each does all else itself, such as validation. One that ends leaves
    the stack; the last one goes on alone. Results are those of `run` up to rounding, which grows in
    the course of a training as any rounding does.

    Time limits and durations of epochs are of the clock, and include the turns of the others.

    Where steps cannot be stacked, or it would not pay, each training runs to its end, one after the
    other, with bit for bit the results of `run`.

    Args:
        trainings: What `assemble` put together, each with batches of its own. They run once.
        stacking: Whether to measure; it is told what was decided, and why.
        calls: For each training what calls it in its turns; it is called directly without.

    Returns:
        For each training in turn its summary, or the error that ended it.

    Raises:
        ArgumentError: If two have one run directory.
        KeyboardInterrupt: After Ctrl-C, when everything is saved.
        SystemExit: After SIGTERM or SIGUSR1, when everything is saved.

    Example:
        >>> from sbi_ignite import TrainConfig
        >>> from sbi_ignite.data.foreign import ForeignBatches
        >>> from sbi_ignite.settings import resolve
        >>> from sbi_ignite.training.training import assemble
        >>> def loss(model, batch):
        ...     return model(*batch).square().mean(dim=1)
        >>> settings = resolve(train=TrainConfig(max_epochs=2, compile="trace"))
        >>> trainings = [
        ...     assemble(
        ...         settings,
        ...         torch.nn.Linear(2, 1),
        ...         loss,
        ...         ForeignBatches([(torch.randn(8, 2),) for _ in range(4)]),
        ...     )
        ...     for _ in range(3)
        ... ]
        >>> [summary.executor for summary in run_stacked(trainings, Stacking(True))]
        ['stacked', 'stacked', 'stacked']
    """
    check_directories(trainings)
    signals = [training.signals for training in trainings]
    hold_together(signals)
    pairs = zip(trainings, calls or [called] * len(trainings), strict=True)
    members = [_Member(training, call) for training, call in pairs]
    as_sbi = any(training.settings.train.sbi_compat for training in trainings)
    with OwnRandomState().in_force(), denormals_as_zeros(wanted=not as_sbi):
        _train(members, _Steps(members, stacking))
    signals[0].pass_on()
    return [member.outcome for member in members if member.outcome is not None]


def why_not_stacked(training: Training) -> str:
    """Return why the steps of a training cannot be stacked; "" if they may be."""
    if training.settings.train.sbi_compat:
        return (
            "sbi's own keywords ask for sbi's numbers bit for bit, and stacked steps round "
            "differently (pass a TrainConfig)"
        )
    if training.world is not ONE:
        return "several processes train each network together"
    if training.train_step is None:
        return "the trainer's own epoch method computes its steps"
    reason = training.compiler.not_stacked
    known = isinstance(training.train_step.gradients, TracedGradients)
    return reason or ("" if known else "its steps are not recorded")


def _train(members: Sequence[_Member], steps: _Steps) -> None:
    """Let all members take turns until each has an outcome."""
    with ends_all(members):
        for member in members:
            member.resume_or_fail()
        for member in members:
            member.turn_if_it_runs()
        while waiting := [member for member in members if member.outcome is None]:
            for member in steps.compute(waiting):
                member.turn()


class _Member(InTurns):
    """One of several trainings whose steps are stacked.

    Args:
        training: The training.
        call: Calls it in its turns.

    Attributes:
        pauses: Where it pauses: between a batch and its step.
        slot: Where it finds the losses and gradients of that step.
    """

    def __init__(self, training: Training, call: Call) -> None:
        self.pauses = Pauses(training.engine, Events.ITERATION_STARTED)
        super().__init__(training, in_turns(training, self.pauses), call)
        optimizers = type(training.optimizer).__module__.startswith("torch.")
        batches = type(training.train_batches).__module__ == InMemoryBatches.__module__
        self._draws_inside = not (optimizers and batches)
        self.slot: _Slot | None = None

    def resume_or_fail(self) -> None:
        """Go to where the training continues; an error is its outcome."""
        try:
            self.resume()
        except Exception as error:
            self.outcome = error

    def turn_if_it_runs(self) -> None:
        """Go on to the next pause, unless the training could not be continued."""
        if self.outcome is None:
            self.turn()

    def may_draw(self) -> bool:
        """Return whether random numbers may be drawn in the next turn: at the end of an epoch.

        Inside it only losses draw, which are not stacked then, and what is not ours.
        """
        left_alone = self.slot is None or self.slot.is_empty
        return left_alone or self._draws_inside or ends_epoch(self.training.engine)

    def batch(self) -> Any:
        """Return the batch of the step that it waits with, where it is computed."""
        state = self.training.engine.state
        state.batch = on_device(state.batch, self.training.device)
        return state.batch

    @property
    def place(self) -> int:
        """Batches of its epoch that it has behind it."""
        state = self.training.engine.state
        return (state.iteration - 1) % (state.epoch_length or 1)

    @property
    def epoch(self) -> int:
        """Epochs that it has behind it."""
        return self.training.state.epoch

    def go_on_alone(self) -> None:
        """Let it run to its end in its next turn."""
        self.pauses.wanted = False


class _Slot:
    """What there is for a member's step: the step itself, or its gradients, or nothing.

    Args:
        own: Computes its steps alone.
        stepping: Its optimizer.
    """

    def __init__(self, own: TracedGradients, stepping: FlatOptimizer) -> None:
        self.own, self._stepping = own, stepping
        self._given: tuple[Any, Tensor, Backward] | None = None
        self._taken: StepOutput | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing for the step that is waiting."""
        return self._given is None and self._taken is None

    def note(self, output: StepOutput) -> None:
        """Keep what came of the step that is waiting, which has been taken."""
        self._taken = output

    def taken(self) -> StepOutput | None:
        """Return what came of the step that is waiting; None if it is still to be taken."""
        output, self._taken = self._taken, None
        return output

    def give(
        self,
        batch: Any,
        losses: Tensor,
        gradient: Tensor,
        parameters: Sequence[Tensor],
        parted: Callable[[Tensor], list[Tensor]],
    ) -> None:
        """Keep losses and gradients for the step that is waiting."""
        self._given = batch, losses, partial(self._store, gradient, parameters, parted)

    def __call__(self, batch: Any) -> tuple[Tensor, Backward]:
        """Return the losses of a batch, and what stores its gradients."""
        given, self._given = self._given, None
        if given is None or given[0] is not batch:  # a handler has replaced it
            return self.own(batch)
        return given[1], given[2]

    def _store(
        self,
        gradient: Tensor,
        parameters: Sequence[Tensor],
        parted: Callable[[Tensor], list[Tensor]],
    ) -> None:
        if not self._stepping.hand_over(gradient, parameters):
            hand_over(parameters, parted(gradient))


class _Steps:
    """The steps of all members: stacked, or left to each.

    Args:
        members: The members.
        stacking: Whether to measure; it is told what was decided.
    """

    def __init__(self, members: Sequence[_Member], stacking: Stacking) -> None:
        self._stacking, self._rounds, self._changes = stacking, 0, 0
        self._stack: Stack | None = None
        self._update: JointUpdate | None = None
        self._stacked: list[_Member] = []
        self._epochs: list[int] = []
        self._made: dict[int, Member] = {}
        reasons = (why_not_stacked(member.training) for member in members)
        self._refused = next(filter(None, reasons), "")
        if len(members) < 2 and not self._refused:
            self._refused = "there is only one member"
        for member in members if not self._refused else ():
            training = member.training
            step = training.train_step
            assert step is not None
            assert isinstance(step.gradients, TracedGradients)
            member.slot = _Slot(step.gradients, training.stepping)
            groups = training.optimizer.param_groups
            stepped = [p for group in groups for p in group["params"]]
            self._made[id(member)] = Member(step.gradients, stepped, training.random)
            step.gradients, step.taken = member.slot, member.slot.taken

    def compute(self, waiting: Sequence[_Member]) -> Sequence[_Member]:
        """Compute the steps that members wait with, or leave each to its member.

        Returns:
            The members that are to take their steps.
        """
        self._rounds += 1
        if not self._refused and len(waiting) < 2:
            waiting[0].go_on_alone()
            return waiting
        if not self._refused:
            try:
                batches = [member.batch() for member in waiting]
                behind = _behind_others(waiting, batches)
                if behind:
                    return behind
                self._compute(waiting, batches)
            except NotTraceable as reason:
                self._refused = str(reason)
        if self._refused:
            self._stacking.refuse(self._refused)
            for member in waiting:
                member.go_on_alone()
        return waiting

    def _compute(self, waiting: Sequence[_Member], batches: Sequence[Any]) -> None:
        """Compute a step of all members, unless it is not yet known whether this pays."""
        self._follow(waiting)
        stack = self._stack
        if stack is None:
            if self._stacking.wanted == "auto" and not self._are_ready(waiting):
                return
            stack = self._made_stack(waiting)
            stack.prepare(batches)
            self._choose(stack, waiting, batches)
            self._stack, self._stacked = stack, list(waiting)
        computed = stack.step(batches)
        assert self._update is not None
        outputs = self._update.take(batches, computed)
        for k, (member, output) in enumerate(zip(waiting, outputs, strict=True)):
            found = computed[k]
            assert member.slot is not None
            if output is not None:
                member.slot.note(output)
            elif found is not None:
                member.slot.give(batches[k], *found, stack.parameters[k], stack.parted)

    def _follow(self, waiting: Sequence[_Member]) -> None:
        """Make a new stack when members have left, or networks have changed between epochs."""
        if self._stack is None:
            return
        epochs = [member.epoch for member in waiting]
        if list(waiting) != self._stacked:
            self._stack = None
        elif epochs != self._epochs and not self._stack.holds():
            self._changes += 1
            if self._changes >= MAX_CHANGES:
                raise NotTraceable("the networks or their losses keep changing between steps")
            self._stack = None
        self._epochs = epochs

    def _made_stack(self, waiting: Sequence[_Member]) -> Stack:
        compiler = waiting[0].training.compiler
        members = [self._made[id(member)] for member in waiting]
        return Stack(members, compiler.captures, members[0].gradients.rules.rounding)

    def _are_ready(self, waiting: Sequence[_Member]) -> bool:
        """Return whether members compute their own steps as they will from now on."""
        reports = [member.training.compiler.report_alone() for member in waiting]
        recorded = all(report.executor != "eager" for report in reports)
        return recorded or self._rounds > READY_AFTER

    def _choose(self, stack: Stack, waiting: Sequence[_Member], batches: Sequence[Any]) -> None:
        """Say that steps are stacked, or raise with what was measured if it does not pay."""
        because = f"one step for {len(waiting)} networks"
        if self._stacking.wanted == "auto":
            together, alone = _measured(stack, waiting, batches)
            because = (
                f"a step of {len(waiting)} networks takes {together * 1e3:.2f} ms stacked and "
                f"{alone * 1e3:.2f} ms one after the other"
            )
            if together > WORTH_IT * alone:
                raise NotTraceable(because)
        self._stacking.accept(because)
        how = f"by {stack.executor}, {len(waiting)} networks at once"
        trainings = [member.training for member in waiting]
        self._update = JointUpdate(trainings, stack.parameters, stack.values)
        for training in trainings:
            training.compiler.stacked = Report("stacked", how)


def _behind_others(waiting: Sequence[_Member], batches: Sequence[Any]) -> list[_Member]:
    """Return the members that have to catch up, so that all have batches of one shape.

    The batches of an epoch may differ by a row. Members that are resumed may stand at different
    places of their epochs.
    """
    if len(set(map(kinds_of, batches))) == 1:
        return []
    places = [member.place for member in waiting]
    last = max(places)
    behind = [m for m, place in zip(waiting, places, strict=True) if place < last]
    if not behind:
        raise NotTraceable("the members' batches are of different shapes")
    return behind


def _measured(
    stack: Stack, waiting: Sequence[_Member], batches: Sequence[Any]
) -> tuple[float, float]:
    """Return the seconds of a stacked step, and of steps one after the other, in turn."""
    together, alone = [], []
    device = waiting[0].training.device
    before = [member.training.random.state_dict() for member in waiting]
    pairs = zip(waiting, stack.parameters, strict=True)
    # Flat parameters will lie in the rows from the next step on.
    are_flat = all(m.training.stepping.flat_values(p) is not None for m, p in pairs)
    for _ in range(MEASURED):
        with _timed(device, together):
            stack.step(batches, refresh=not are_flat)
        with _timed(device, alone):
            for member, batch in zip(waiting, batches, strict=True):
                assert member.slot is not None
                with member.training.random.in_force_when_asked():
                    _, backward = member.slot.own(batch)
                gradients_of(member.slot.own.parameters(), backward)
    for member, state in zip(waiting, before, strict=True):
        member.training.random.load_state_dict(state)
    return statistics.median(together), statistics.median(alone)


@contextmanager
def _timed(device: torch.device, seconds: list[float]) -> Iterator[None]:
    """Append how long the block takes, including the work of a GPU."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.thread_time
    if on_gpu:
        torch.cuda.synchronize(device)
    began = clock()
    yield
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds.append(clock() - began)
