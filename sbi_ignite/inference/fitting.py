"""A trainer, its loss and batches come in; its network, trained by `run_training`, goes out.

Private names were read in sbi 0.27.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import torch
from ignite.engine import Engine
from sbi.inference import NeuralInference

from sbi_ignite.callback import TrainingState
from sbi_ignite.engine.optimizers import make_optimizer
from sbi_ignite.engine.persistence import tensors_of
from sbi_ignite.engine.run import Host, run_training
from sbi_ignite.engine.steps import Step
from sbi_ignite.handlers.epoch_mean import StepOutput
from sbi_ignite.inference.arguments import LOSS_KEYWORDS, Call
from sbi_ignite.inference.books import TrainerBooks, TrainersTracker
from sbi_ignite.inference.building import rows_for_builder
from sbi_ignite.inference.losses import is_sbis_own
from sbi_ignite.inference.rounds import Round, begin_round, directory_of, end_round
from sbi_ignite.inference.rules import rules_of
from sbi_ignite.inference.splines import (
    has_splines,
    replaceable_splines,
    splines_for_all_values,
)
from sbi_ignite.inference.tanh import TanhBySigmoid, has_tanh
from sbi_ignite.inference.traceable import is_traceable
from sbi_ignite.inference.within import Within
from sbi_ignite.methods.base import Loss
from sbi_ignite.runs.networks import describe_network
from sbi_ignite.runs.snapshot import Snapshot


def fit(
    trainer: Any,
    call: Call,
    loss: Loss,
    train_loader: Any,
    val_loader: Any,
    loss_args: Any = None,
    summarization_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Train `trainer._neural_net` through `run_training` and keep sbi's books.

    Args:
        trainer: One of sbi's trainers.
        call: The call that is carried out.
        loss: Loss of the trainer's method.
        train_loader: Batches of training data.
        val_loader: Batches of validation data.
        loss_args: sbi's own loss arguments, for overridden epoch methods.
        summarization_kwargs: sbi's arguments for `_summarize_epoch`.
    """
    config, net = call.settings.train, trainer._neural_net
    net.to(trainer._device)
    state, resume_from = _start(trainer, call)
    rules, best = rules_of(trainer, call, continued=state.epoch > 0)
    now = begin_round(trainer, config.resume_training)

    def keep_books(epoch_started: float) -> None:
        trainer._val_loss = state.validation_loss
        # MarginalTrainer has no such method and writes the same three lists in its loop.
        summarize = getattr(trainer, "_summarize_epoch", _summarizer(trainer))
        summarize(
            state.train_loss, trainer._val_loss, epoch_started, dict(summarization_kwargs or {})
        )
        trainer.epoch += 1
        if not call.logs_to_screen:
            trainer._maybe_show_progress(trainer._show_progress_bars, trainer.epoch)

    train_step = validation_step = None
    if hasattr(trainer, "_train_epoch") and not is_sbis_own(trainer, "_train_epoch"):
        train_step = _whole_epoch(trainer._train_epoch, config.clip_max_norm, loss_args)
        train_loader = [train_loader]
    if hasattr(trainer, "_validate_epoch") and not is_sbis_own(trainer, "_validate_epoch"):
        validation_step = _whole_epoch(trainer._validate_epoch, loss_args)
        val_loader = [val_loader]

    traceable, splines = is_traceable(trainer, loss), nullcontext()
    rounds_otherwise = not config.sbi_compat or config.precision != "32"
    if rounds_otherwise and has_splines(net):
        loss, splines = Within(loss, splines_for_all_values), replaceable_splines()
    if rounds_otherwise and has_tanh(net) and torch.device(trainer._device).type == "cpu":
        loss = Within(loss, TanhBySigmoid)
    with splines:
        _, trainer.training_summary = run_training(
            None,
            net,
            loss,
            train_loader,
            val_loader,
            optimizer=trainer.optimizer,
            callbacks=call.callbacks,
            device=trainer._device,
            host=Host(
                method=type(trainer).__name__,
                settings=call.settings,
                state=state,
                rules=rules,
                best_weights=best,
                train_step=train_step,
                validation_step=validation_step,
                resume_from=resume_from,
                parts={"books": TrainerBooks(trainer)},
                loggers=_trackers(trainer, call),
                identity=getattr(trainer, "_ignite_identity", {}),
                keep_identity=_keep_on(trainer, "_ignite_identity"),
                directory=directory_of(trainer, call, now, train_loader),
                manifest=_manifest(trainer, call, now, train_loader),
                round_index=now.index,
                first_step=now.first_step,
                first_iteration=now.first_iteration,
                show_progress=trainer._show_progress_bars,
                traceable=traceable,
                on_epoch_end=keep_books,
                keep_snapshot=None if config.sbi_compat else _keep_on(trainer, "_ignite_snapshot"),
            ),
        )
    end_round(trainer, state.iteration)


def _summarizer(trainer: Any) -> Callable[..., None]:
    """Return sbi's plain way of noting an epoch in its summary, bound to a trainer."""
    return NeuralInference._summarize_epoch.__get__(trainer)


def _manifest(trainer: Any, call: Call, now: Round, train_loader: Any) -> dict[str, Any]:
    """Return what a run directory is told about the trainer."""
    manifest = {"round": now.index, "loss_arguments": _loss_arguments(call)}
    if call.settings.checkpoint is None:
        return manifest
    known = getattr(trainer, "_ignite_network", None)
    if known is None or call.settings.train.retrain_from_scratch:
        # Masks come third and are nothing to a builder, which sees training rows alone.
        tensors = (tensors_of(train_loader) or ())[:2]
        rows = rows_for_builder(trainer, call, tensors)
        known = describe_network(trainer._build_neural_net, *(t[rows] for t in tensors))
        trainer._ignite_network = known
    return {**manifest, "estimator": known}


def _trackers(trainer: Any, call: Call) -> list[TrainersTracker]:
    """Return sbi's tracker as a logger, unless the call wants none at all."""
    unwanted = any(getattr(logger, "backend", None) == "none" for logger in call.settings.logging)
    return [] if unwanted else [TrainersTracker(trainer)]


def _loss_arguments(call: Call) -> dict[str, Any]:
    """Return the loss arguments that were passed, as plain data."""
    passed = {name: call.keywords[name] for name in LOSS_KEYWORDS if name in call.keywords}
    plain = (bool, int, float, str, type(None))
    return {n: v if isinstance(v, plain) else type(v).__name__ for n, v in passed.items()}


def _start(trainer: Any, call: Call) -> tuple[TrainingState, Mapping[str, Any] | None]:
    """Return the state from which training counts on, and the snapshot that it continues."""
    config = call.settings.train
    state = TrainingState(model=trainer._neural_net)
    if not config.resume_training or not hasattr(trainer, "optimizer"):
        trainer.optimizer = make_optimizer(config, trainer._neural_net.parameters())
        trainer.epoch, trainer._val_loss = 0, math.inf
        trainer._ignite_state, trainer._ignite_snapshot = None, None
        trainer._ignite_rate = config.learning_rate
        return _noted(trainer, state), None
    state.epoch = trainer.epoch
    earlier: TrainingState | None = getattr(trainer, "_ignite_state", None)
    if earlier is not None:
        state.history, state.best_epoch = deepcopy(earlier.history), earlier.best_epoch
        state.iteration = earlier.iteration
    _noted(trainer, state)
    snapshot: Snapshot | None = getattr(trainer, "_ignite_snapshot", None)
    if config.sbi_compat or snapshot is None:
        return state, None
    states = snapshot.states()
    if call.settings.origin("train.learning_rate").source == "default":
        return state, states
    factor = config.learning_rate / trainer._ignite_rate
    trainer._ignite_rate = config.learning_rate
    return state, _with_rate(states, factor)


def _noted(trainer: Any, state: TrainingState) -> TrainingState:
    """Keep a state on its trainer, where a later call finds it also after an exception."""
    trainer._ignite_state = state
    return state


def _with_rate(states: Mapping[str, Any], factor: float) -> Mapping[str, Any]:
    """Return states whose learning rates are scaled, for a new rate given on resume."""
    if factor == 1.0:
        return states
    return {**states, **{n: _scaled(states[n], factor) for n in ("optimizer", "schedule")}}


_RATES = frozenset({"lr", "initial_lr", "max_lr", "min_lr", "base_lrs", "_last_lr", "rates"})


def _scaled(state: Any, factor: float, is_rate: bool = False) -> Any:
    """Return a state in which everything that goes by the name of a rate is scaled."""
    if isinstance(state, Mapping):
        return {name: _scaled(v, factor, name in _RATES) for name, v in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_scaled(value, factor, is_rate) for value in state)
    return state * factor if is_rate and state is not None else state


def _keep_on(trainer: Any, name: str) -> Callable[[Any], None]:
    """Return what stores something on a trainer, for a later call."""

    def keep(value: Any) -> None:
        setattr(trainer, name, value)

    return keep


def _whole_epoch(epoch: Callable[..., float], *args: Any) -> Step:
    """Return a step that hands the whole loader to an epoch method that a user has overridden."""

    def step(engine: Engine, loader: Any) -> StepOutput:
        return StepOutput(float(epoch(loader, *args)), rows=1)

    return step
