"""Train the network of an sbi trainer and keep sbi's records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine

from sbi_ignite.bridge.arguments import Call
from sbi_ignite.bridge.convergence import rules_of
from sbi_ignite.bridge.in_context import InContext
from sbi_ignite.bridge.initial_weights import load_initial_weights
from sbi_ignite.bridge.lines import SbiTrainer, private
from sbi_ignite.bridge.loss_arguments import (
    check_kernel,
    kept_loss_arguments,
    loss_arguments,
    used_atoms,
)
from sbi_ignite.bridge.memory import Round, memory_of
from sbi_ignite.bridge.network_builder import batches_for_builder
from sbi_ignite.bridge.networks import describe_network
from sbi_ignite.bridge.options import kept_on_resume
from sbi_ignite.bridge.rounds import begin_round, directory_of, end_round, next_round
from sbi_ignite.bridge.sbi_summary import TrainerRecords, TrainersTracker
from sbi_ignite.bridge.split import holds_part
from sbi_ignite.bridge.traceable import is_traceable
from sbi_ignite.callback import TrainingState
from sbi_ignite.data.fingerprint import fingerprint_data
from sbi_ignite.data.foreign import WholePass, as_batches
from sbi_ignite.data.in_memory import InMemoryBatches
from sbi_ignite.data.shards import sharded
from sbi_ignite.data.source import Batches
from sbi_ignite.exceptions import ArgumentError, DataError, NonFiniteLossError
from sbi_ignite.handlers.best_weights import BestWeights
from sbi_ignite.handlers.epoch_mean import StepOutput
from sbi_ignite.handlers.rules.base import Rule
from sbi_ignite.kernels.linear import NARROW
from sbi_ignite.kernels.replacing import Replacing, Ways
from sbi_ignite.kernels.softplus import CONTIGUOUS
from sbi_ignite.kernels.splines import (
    has_splines,
    replaceable_splines,
    splines_for_all_values,
)
from sbi_ignite.kernels.tanh import BY_SIGMOID, has_tanh
from sbi_ignite.methods.base import Loss
from sbi_ignite.methods.nre import BalancedRatioLoss
from sbi_ignite.optim.make import make_optimizer
from sbi_ignite.runs.directory import read_manifest
from sbi_ignite.runs.fingerprint import INIT_FROM, VALIDATION_DATA
from sbi_ignite.runs.loss_record import describe_loss
from sbi_ignite.runs.snapshot import Snapshot
from sbi_ignite.summary import TrainingSummary
from sbi_ignite.training.checks import check_loader
from sbi_ignite.training.hooks import Place, Steps, TrainingHooks
from sbi_ignite.training.options import rates_of
from sbi_ignite.training.run import run
from sbi_ignite.training.training import Training, assemble
from sbi_ignite.world import ONE, World

Run = Callable[[Training], TrainingSummary]
_run: ContextVar[tuple[Any, Run] | None] = ContextVar("sbi_ignite_run", default=None)

_in_loop: ContextVar[Any] = ContextVar("sbi_ignite_in_loop", default=None)


@contextmanager
def run_by(trainer: Any, run: Run) -> Iterator[None]:
    """Let a function run the training of a trainer inside the block, in place of `run`.

    Args:
        trainer: One of sbi's trainers; others are not affected.
        run: Returns the summary of a training.
    """
    token = _run.set((trainer, run))
    try:
        yield
    finally:
        _run.reset(token)


def _run_of(trainer: Any) -> Run:
    asked = _run.get()
    return asked[1] if asked is not None and asked[0] is trainer else run


def refuse_nested_training(trainer: Any) -> None:
    """Refuse to train a trainer that is going through its epochs already.

    Raises:
        ArgumentError: If it does, because one of its callbacks, rules or methods called `train()`.
    """
    if _in_loop.get() is trainer:
        raise ArgumentError(
            f"{type(trainer).__name__}.train(): expected a trainer that is not training, got one "
            "whose callback, stopping rule or loss calls train() on it again. Train it after this "
            "call has ended, or train another trainer."
        )


@contextmanager
def _marked(trainer: Any) -> Iterator[None]:
    token = _in_loop.set(trainer)
    try:
        yield
    finally:
        _in_loop.reset(token)


def fit(
    trainer: Any,
    call: Call,
    loss: Loss,
    train_loader: Any,
    val_loader: Any,
    loss_args: Any = None,
    summarization_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Train the network of a trainer and keep sbi's records.

    Args:
        trainer: One of sbi's trainers.
        call: The call that is carried out.
        loss: Loss of the trainer's method.
        train_loader: Batches of training data.
        val_loader: Batches of validation data.
        loss_args: sbi's own loss arguments, for overridden epoch methods.
        summarization_kwargs: sbi's arguments for the summary of an epoch.
    """
    own, memory, config = private(trainer), memory_of(trainer), call.settings.train
    net = own.network
    net.to(own.device)
    _load_initial_weights(trainer, call, train_loader)
    state, resume_from = _start(trainer, call)
    rules, best = rules_of(trainer, call, state)
    now = begin_round(trainer, config.resume_training)
    for name, loader in (("train_loader", train_loader), ("val_loader", val_loader)):
        check_loader(loader, name)
    train_batches, val_batches = as_batches(train_loader), as_batches(val_loader, "val_loader")
    check_kernel(trainer, call, train_batches)
    if call.world is not ONE:
        train_batches = _share_of(call, loss, train_batches)
        val_batches = _share_of(call, loss, val_batches)
    place = Place(
        method=type(trainer).__name__,
        directory=directory_of(trainer, call, now, train_batches),
        manifest=_manifest(trainer, call, now, train_batches),
        round_index=now.index,
        first_step=now.first_step,
        first_iteration=now.first_iteration,
        logged_to=memory.logged_to,
        show_progress=own.shows_progress,
    )

    train_step = validation_step = None
    refuse = not config.sbi_compat
    if own.is_overridden(own.TRAIN_EPOCH):
        args = (config.clip_max_norm, loss_args)
        train_step = _WholeEpoch(trainer, own.TRAIN_EPOCH, args, refuse)
        train_batches = WholePass(train_batches)
    if own.is_overridden(own.VALIDATE_EPOCH):
        validation_step = _WholeEpoch(trainer, own.VALIDATE_EPOCH, (loss_args,), refuse)
        val_batches = WholePass(val_batches, "val_loader")
    met = getattr(loss, "met", ())
    waits = isinstance(loss, BalancedRatioLoss) and call.world is not ONE
    traceable = is_traceable(trainer, loss) and not waits  # for other processes, in every step
    steps = Steps(train_step, validation_step, traceable, same_draws=bool(met))

    splines = nullcontext()
    on_cpu = torch.device(own.device).type == "cpu"
    rounds_otherwise = not config.sbi_compat or config.precision != "32"
    if rounds_otherwise and has_splines(net):
        loss, splines = InContext(loss, splines_for_all_values), replaceable_splines()
    ways: Ways = BY_SIGMOID if rounds_otherwise and has_tanh(net) and on_cpu else {}
    # Splines call so many functions that looking at each costs eager steps more than it saves.
    if not config.sbi_compat and traceable and on_cpu and not has_splines(net):
        ways = {**ways, **NARROW, **CONTIGUOUS}
    if ways:
        loss = InContext(loss, partial(Replacing, ways))
    split = (train_batches, val_batches)
    hooks = SbiHooks(
        trainer, call, state, rules, best, place, steps, summarization_kwargs or {}, split
    )
    hooks.resume_from = resume_from
    with splines, _marked(trainer):
        _run_of(trainer)(
            assemble(
                call.settings,
                net,
                loss,
                train_batches,
                val_batches,
                optimizer=trainer.optimizer,
                callbacks=call.callbacks,
                device=own.device,
                hooks=hooks,
                world=call.world,
            )
        )
    end_round(memory, now, state.iteration)


def meeting_others(call: Call, loader: Any) -> World:
    """Return the processes of a call, if batches can have the rows of all that a loss meets.

    Args:
        call: The call.
        loader: Batches of training data.
    """
    return call.world if isinstance(loader, InMemoryBatches) else ONE


def _share_of(call: Call, loss: Loss, batches: Batches) -> Batches:
    """Return this process's share of batches that all processes have."""
    world, met = call.world, getattr(loss, "met", ())
    own = holds_part(call)
    if not isinstance(batches, InMemoryBatches):
        return sharded(world, batches, own)
    if own:
        batches = batches.joined(world, met)
    if isinstance(loss, BalancedRatioLoss) and (
        (smallest := min(world.gather(batches.smallest_batch))) < (1 if own else world.size)
    ):
        raise DataError(
            f"{batches.name}: expected at least one row of each batch for every one of the "
            f"{world.size} processes, because the regulariser of BNRE takes all of them in every "
            f"step, got a batch of {smallest}. Take a larger batch_size, or fewer processes."
        )
    return batches if own else batches.shard(world.rank, world.size, met)


class SbiHooks(TrainingHooks):
    """What an sbi trainer decides about its training, and what it records during training.

    Args:
        trainer: One of sbi's trainers.
        call: The call that is carried out.
        state: The numbers to count on from.
        rules: Its stopping rules.
        best: Its keeper of the best weights.
        place: Its round, run directory and loggers.
        steps: How its batches are computed.
        summarization_kwargs: sbi's arguments for the summary of an epoch.
        batches: Batches of training and of validation data.
    """

    def __init__(
        self,
        trainer: Any,
        call: Call,
        state: TrainingState,
        rules: Sequence[Rule],
        best: BestWeights,
        place: Place,
        steps: Steps,
        summarization_kwargs: Mapping[str, Any],
        batches: Sequence[Batches],
    ) -> None:
        self._trainer, self._call, self._state = trainer, call, state
        self._rules, self._best = rules, best
        self._summarization_kwargs = dict(summarization_kwargs)
        self.place, self.steps = place, steps
        self.loggers = _trackers(trainer, call)
        self.parts = {"books": TrainerRecords(trainer, batches)}
        if not call.sbi_compat:
            self.keep_snapshot = self._keep_snapshot

    def state(self, model: Any) -> TrainingState:
        """Return the numbers that the trainer counts on from."""
        return self._state

    def rules(self) -> Sequence[Rule]:
        """Return the trainer's rules."""
        return self._rules

    def best_weights(self, state: TrainingState) -> BestWeights:
        """Return the trainer's keeper of the best weights."""
        return self._best

    def on_epoch_validated(self, epoch_started: float) -> None:
        """Record the epoch in sbi's summary, as sbi does before it asks for convergence."""
        private(self._trainer).end_epoch(
            (self._state.train_loss, self._state.validation_loss),
            epoch_started,
            self._summarization_kwargs,
            show=not self._call.logs_to_screen and not self._call.world.rank,
        )

    def on_summary(self, summary: TrainingSummary) -> None:
        """Put the summary where users look for it."""
        self._trainer.training_summary = summary

    def on_end(self, logged_to: Mapping[str, Any]) -> None:
        """Let the next round continue the same loggers."""
        memory_of(self._trainer).logged_to = logged_to

    def _keep_snapshot(self, snapshot: Snapshot | None) -> None:
        memory_of(self._trainer).snapshot = snapshot


def _load_initial_weights(trainer: Any, call: Call, train_loader: Any) -> None:
    """Load the weights that the call names, unless it continues a training."""
    memory, config = memory_of(trainer), call.settings.train
    if config.resume_training and hasattr(trainer, "optimizer"):
        return

    def has_begun() -> bool:
        checkpoint = call.settings.checkpoint
        if checkpoint is None or checkpoint.resume == "never":
            return False
        now = next_round(trainer, config.resume_training)
        directory = directory_of(trainer, call, now, as_batches(train_loader))
        return directory is not None and read_manifest(directory) is not None

    memory.init_from = None
    if call.init_from is not None:
        network = private(trainer).network
        memory.init_from = load_initial_weights(network, call.init_from, has_begun)


def _manifest(trainer: Any, call: Call, now: Round, batches: Batches) -> dict[str, Any]:
    """Return what a run directory records about the trainer."""
    memory = memory_of(trainer)
    arguments = loss_arguments(trainer, call)
    manifest = {
        "round": now.index,
        "loss_arguments": arguments,
        **used_atoms(arguments, batches.batch_size),
        INIT_FROM: memory.init_from,
    }
    if memory.validation is not None:
        manifest[VALIDATION_DATA] = fingerprint_data(memory.validation)
    kernel = call.keywords.get("calibration_kernel")
    if kernel is not None:
        manifest["calibration_kernel"] = describe_loss(kernel)
    if call.settings.checkpoint is None:
        return manifest
    if memory.network is None or call.settings.train.retrain_from_scratch:
        seen = batches_for_builder(trainer, call, batches.tensors)
        memory.network = describe_network(private(trainer).builder, *seen)
    return {**manifest, "estimator": memory.network}


def _trackers(trainer: Any, call: Call) -> list[TrainersTracker]:
    """Return sbi's tracker as a logger, unless the call turns logging off."""
    unwanted = any(getattr(logger, "backend", None) == "none" for logger in call.settings.logging)
    return [] if unwanted else [TrainersTracker(trainer)]


def _start(trainer: Any, call: Call) -> tuple[TrainingState, Mapping[str, Any] | None]:
    """Return the state from which training counts on, and the snapshot that it continues from."""
    own, memory, config = private(trainer), memory_of(trainer), call.settings.train
    state, earlier = TrainingState(model=own.network, trainer=trainer), memory.state
    if not config.resume_training or not hasattr(trainer, "optimizer"):
        parameters = own.trained_parameters() if config.sbi_compat else own.network.parameters()
        trainer.optimizer = make_optimizer(config, parameters)
        own.reset()
        memory.state, memory.snapshot = state, None
        memory.rate = rates_of(trainer.optimizer)[0]
        memory.kept_on_resume = kept_on_resume(call.settings)
        memory.loss_arguments = kept_loss_arguments(trainer, call)
        return state, None
    state.epoch = trainer.epoch
    if earlier is not None:
        state.history, state.best_epoch = deepcopy(earlier.history), earlier.best_epoch
        state.iteration = earlier.iteration
        state.metrics = dict(earlier.metrics)
    memory.state = state  # now, so that a later call finds it even after an exception
    if config.sbi_compat or memory.snapshot is None:
        return state, None
    states = memory.snapshot.states()
    if call.settings.origin("train.learning_rate").source == "default":
        return state, states
    factor = config.learning_rate / memory.rate
    memory.rate = config.learning_rate
    return state, _with_rate(states, factor)


def _with_rate(states: Mapping[str, Any], factor: float) -> Mapping[str, Any]:
    """Return states with scaled learning rates, for a new rate given on resume."""
    if factor == 1.0:
        return states
    return {**states, **{n: _scaled(states[n], factor) for n in ("optimizer", "schedule")}}


_RATES = frozenset({"lr", "initial_lr", "max_lr", "min_lr", "base_lrs", "_last_lr", "rates"})


def _scaled(state: Any, factor: float, is_rate: bool = False) -> Any:
    """Return a state in which everything named as a learning rate is scaled."""
    if isinstance(state, Mapping):
        return {name: _scaled(v, factor, name in _RATES) for name, v in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_scaled(value, factor, is_rate) for value in state)
    return state * factor if is_rate and state is not None else state


@dataclass(frozen=True)
class _WholeEpoch:
    """A step that passes the whole loader to an epoch method that a user has overridden.

    In sbi's form, what the method returns is used as it is, as in sbi.

    Attributes:
        trainer: One of sbi's trainers.
        method: Name of the method, which returns the mean loss.
        args: Its arguments besides the loader.
        refuse_non_finite: Raise if that loss is NaN or infinite.
    """

    trainer: Any
    method: str
    args: tuple[Any, ...]
    refuse_non_finite: bool

    def __call__(self, engine: Engine, loader: Any) -> StepOutput:
        """Train or validate for an epoch."""
        loss = float(getattr(self.trainer, self.method)(loader, *self.args))
        if self.refuse_non_finite and not math.isfinite(loss):
            epoch = self.trainer.epoch + 1
            raise NonFiniteLossError(
                f"{type(self.trainer).__name__}.{self.method}() returned the loss {loss} in epoch "
                f"{epoch}; the best weights so far are kept.",
                epoch=epoch,
                validation=self.method == SbiTrainer.VALIDATE_EPOCH,
            )
        return StepOutput(loss, rows=1)
