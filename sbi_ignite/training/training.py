"""Assemble a training from settings, a model, a loss and batches into one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.optim import Optimizer

from sbi_ignite.callback import TrainingState
from sbi_ignite.capture import Compiler, Report
from sbi_ignite.data.source import Batches
from sbi_ignite.data.transfer import indexed
from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.handlers.averaging import AveragedWeights, TrainedWeights
from sbi_ignite.handlers.best_weights import BestWeights
from sbi_ignite.handlers.callbacks import UserCallbacks
from sbi_ignite.handlers.epoch_mean import EpochMean
from sbi_ignite.handlers.gradient_averaging import Together, together_in, without_empty
from sbi_ignite.handlers.gradient_clipping import GradientClipping
from sbi_ignite.handlers.schedule import Schedule, Schedulers
from sbi_ignite.handlers.signals import StopOnSignals, signals_to_stop_on
from sbi_ignite.handlers.stages import StageChanges, StageRule
from sbi_ignite.handlers.stopping import StopOnRules, make_rule
from sbi_ignite.handlers.time_limit import TimeLimit
from sbi_ignite.loggers import Loggers, make_loggers
from sbi_ignite.optim.flat import FlatOptimizer
from sbi_ignite.optim.make import make_optimizer
from sbi_ignite.random_state import OwnRandomState
from sbi_ignite.runs.fingerprint import LOSS
from sbi_ignite.runs.loss_record import describe_loss
from sbi_ignite.runs.objects import describe_optimizer, describe_scheduler
from sbi_ignite.settings import Resolved
from sbi_ignite.training.checks import check_model, check_optimizer, check_schedulers
from sbi_ignite.training.epochs import Epochs
from sbi_ignite.training.first_batch import check_gradients
from sbi_ignite.training.hooks import Place, TrainingHooks
from sbi_ignite.training.make_engine import make_engine
from sbi_ignite.training.minimum_epochs import sure_epochs
from sbi_ignite.training.mode import FrozenParts, set_training
from sbi_ignite.training.options import (
    check_compile,
    checked_device,
    decay_of,
    left_out_of_recipe,
    observed,
)
from sbi_ignite.training.passes import Passes
from sbi_ignite.training.recipe import filled_in
from sbi_ignite.training.schedules import check_rates, epochs_to_train, make_schedulers, of_user
from sbi_ignite.training.state import Snapshots, Stateful
from sbi_ignite.training.steps import TrainStep, ValidationStep, summed, summed_as_sbi
from sbi_ignite.training.validation import Validation
from sbi_ignite.world import ONE, World


@dataclass(frozen=True)
class Training:
    """One training, ready to run: see `run`.

    Trainings share nothing unless it was passed to them, so a program can hold several.

    Attributes:
        settings: All settings with their origins, recipes filled in.
        hooks: What the host library decides.
        model: The network.
        device: Where it trains.
        train_batches: Batches of training data.
        passes: The same, checked against the number of batches that they promise.
        val_batches: Batches of validation data; None without.
        optimizer: Steps over the network's parameters.
        stepping: The same, on all parameters as one flat tensor where possible.
        schedule: Changes the learning rate.
        averages: Running average of the weights; None without.
        best: Keeper of the best weights.
        stopping: Asks the stopping rules.
        state: Epoch, losses, stop reason: what callbacks see.
        epochs: Counts, validates, keeps the history.
        train_loss: Mean training loss of the epoch.
        clipping: Clips gradients.
        train_step: Takes its steps; None if other code does.
        engine: The ignite engine that trains.
        loggers: All loggers as one.
        callbacks: The user's callbacks.
        parts: Everything with a state, by the name under which checkpoints hold it.
        snapshots: Takes snapshots of the parts.
        signals: Holds signals off and turns them into a clean stop.
        compiler: Decides how steps are computed.
        budget: Maximum number of epochs, counted over all legs of the training.
        rate_may_change: Whether a schedule or a callback may change the learning rate.
        users_optimizer: Options of the user's own optimizer; None for one of ours.
        users_scheduler: Options of the user's own scheduler; None for one of ours.
        random: The random states in which it was put together, for trainings that take turns.
        world: The processes that train it.
        together: Averages their gradients and decides for all of them.
    """

    settings: Resolved
    hooks: TrainingHooks
    model: nn.Module
    device: torch.device
    train_batches: Batches
    passes: Passes
    val_batches: Batches | None
    optimizer: Optimizer
    stepping: FlatOptimizer
    schedule: Schedule
    averages: AveragedWeights | None
    best: BestWeights
    stopping: StopOnRules
    state: TrainingState
    epochs: Epochs
    train_loss: EpochMean
    clipping: GradientClipping
    train_step: TrainStep | None
    engine: Engine
    loggers: Loggers
    callbacks: UserCallbacks
    parts: Mapping[str, Stateful]
    snapshots: Snapshots
    signals: StopOnSignals
    compiler: Compiler
    budget: int
    rate_may_change: bool
    users_optimizer: list[dict[str, Any]] | None
    users_scheduler: dict[str, Any] | None
    random: OwnRandomState
    world: World
    together: Together

    def how_computed(self) -> Report:
        """Return how steps were computed, and what made them slower than they could be."""
        found = self.compiler.report()
        slower = self.stepping.slower and f"optimizer: {self.stepping.slower}"
        return Report(found.executor, "; ".join(filter(None, (found.reason, slower))))

    @property
    def has_epochs_left(self) -> bool:
        """Whether there is anything left to train."""
        return self.state.stop_reason is None and self.state.epoch < self.budget

    @property
    def method(self) -> str:
        """Name of the method: the host's, or else the class of the model."""
        return self.hooks.place.method or type(self.model).__name__


def assemble(
    settings: Resolved,
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    train_batches: Batches,
    val_batches: Batches | None = None,
    *,
    optimizer: Optimizer | None = None,
    scheduler: Any | None = None,
    callbacks: Sequence[Any] = (),
    device: str | torch.device | None = None,
    hooks: TrainingHooks | None = None,
    world: World = ONE,
) -> Training:
    """Put a training together; nothing is trained, read or written yet.

    Args:
        settings: All settings.
        model: Any torch module; it moves to the device.
        loss_fn: `loss_fn(model, batch)` gives losses of shape (batch,), or their mean as a scalar;
            `loss_fn.validate`, where it exists, the validation losses.
        train_batches: Batches of training data.
        val_batches: Batches of validation data; without them, the training loss decides.
        optimizer: Steps over the model's parameters; None makes what the settings ask for.
        scheduler: A torch scheduler; None makes what the settings ask for.
        callbacks: Objects with methods of `Callback`, or with ignite's `attach(engine)`.
        device: Where to train; None takes the settings' device, or else the model's.
        hooks: What a host library decides; with None, optimizer, scheduler and device are taken to
            be the arguments of a user, which are recorded in the settings.
        world: The processes that train together; with several, both batches are shards.

    Raises:
        SettingsError: If settings and arguments are incompatible.
        ArgumentError: If there is nothing to train, optimizer or scheduler belong to something
            else, or two loggers write to the same place.
    """
    check_model(model)
    arguments: dict[str, Any] = {}
    if hooks is None:
        arguments = {"optimizer": optimizer, "scheduler": scheduler, "device": device}
        hooks = TrainingHooks()
        hooks.place = Place(manifest={LOSS: describe_loss(loss_fn)})
    settings = filled_in(settings, train_batches, left_out_of_recipe(arguments))
    config, as_sbi = settings.train, settings.train.sbi_compat
    kept = settings.checkpoint
    directory = hooks.place.directory or (None if kept is None else kept.directory)
    asked = (*settings.logging, *hooks.loggers) if world.rank == 0 else ()
    loggers = make_loggers(asked, directory)

    # What is trained, and by which rules.
    device = _device(settings, device, model)
    check_compile(settings, device)
    model.to(device)
    given = optimizer is not None
    optimizer = optimizer or make_optimizer(config, model.parameters())
    check_optimizer(model, optimizer)
    settings = observed(settings, optimizer, train_batches, val_batches, arguments)
    check_rates(settings, optimizer)
    made_by_user = callable(config.optimizer) or arguments.get("optimizer") is not None
    users_optimizer = describe_optimizer(optimizer) if made_by_user else None
    state = hooks.state(model)
    state.validated = val_batches is not None
    signals = signals_to_stop_on(settings, state, hooks.keep_snapshot is not None)
    schedulers = (
        of_user(scheduler, len(train_batches))
        if scheduler
        else make_schedulers(config, optimizer, train_batches)
    )
    check_schedulers(filter(None, (schedulers.main, schedulers.warmup)), optimizer, given)
    made_by_user = callable(config.lr_schedule) or scheduler is not None
    users_scheduler = describe_scheduler(schedulers.main) if made_by_user else None
    schedule = Schedule(schedulers, optimizer, state)
    stepping = FlatOptimizer(optimizer)
    averages = AveragedWeights(model, config.averages.share, stepping) if config.averages else None
    best = hooks.best_weights(state)
    rules = hooks.rules()
    rules = tuple(map(make_rule, settings.early_stopping)) if rules is None else tuple(rules)
    decay = decay_of(config, optimizer, arguments)
    stage_rule = StageRule(config.stages, decay) if config.stages else None
    stopping = StopOnRules(rules if stage_rule is None else (*rules, stage_rule), state)
    users = UserCallbacks(callbacks, state)

    # How batches are computed.
    own_steps = hooks.steps.train or hooks.steps.validate
    if own_steps is not None and world is not ONE:
        raise ArgumentError(
            "train(): expected a trainer with sbi's own _train_epoch and _validate_epoch, because "
            f"{world.size} processes share every step, got one that overrides them. Train it in "
            'one process, or with TrainConfig(shards="alone").'
        )
    groups = optimizer.param_groups
    together = together_in(world, (p for group in groups for p in group["params"]), state)
    signals.decide_with(world, together.decide)
    train_loss = _epoch_mean(train_batches, as_sbi and hooks.steps.train is None, world)
    # The norm of one tensor is faster to compute and rounds differently, as does a fused step.
    flat = stepping if stepping.fused else None
    clipping = GradientClipping(model.parameters(), config.clip_max_norm, flat)
    asks_for_error = any(stage.min_improvement for stage in config.stages)
    validation = None
    if val_batches is not None:
        mean = _epoch_mean(val_batches, as_sbi and hooks.steps.validate is None, world)
        validation = Validation(
            val_batches,
            mean,
            as_sbi,
            device,
            asks_for_error,
            signals.guard,
            world,
            hooks.steps.same_draws,
        )
    stages = None
    if stage_rule is not None:
        validate = None if validation is None else validation.loss_of_trial
        stages = StageChanges(
            stage_rule, model, optimizer, schedule, best, averages, state, validate
        )
        stages.begin()
    frozen = None if as_sbi else FrozenParts(model)
    epochs = Epochs(
        state,
        train_loss,
        clipping,
        validation,
        hooks.on_epoch_validated,
        best.update,
        users.on_measure,
        partial(set_training, model, True) if frozen is None else frozen.train,
    )
    sure = sure_epochs(settings, len(train_batches))
    budget = epochs_to_train(config, schedulers)
    sure = min(sure, budget - state.epoch)
    compiler = Compiler(
        config,
        model,
        loss_fn,
        device,
        known_safe=hooks.steps.traceable,
        # Handlers that attach to the engine may change the network between any two steps.
        watchful=any(hasattr(callback, "attach") for callback in callbacks),
        epoch=lambda: epochs.now()[0],
        sure_steps=sure * len(train_batches),
        sure_validation_steps=0 if val_batches is None else sure * len(val_batches),
        replaced_by=None if hooks.steps.train is None else "the trainer's own epoch method",
    )
    add_up = summed
    if as_sbi:
        add_up = partial(summed_as_sbi, mean_over=getattr(loss_fn, "mean_over", None))
    gradients = compiler.gradients(optimizer, stepping.hand_over)
    check = partial(check_gradients, model, optimizer, config.clip_max_norm)
    train_step = TrainStep(gradients, stepping, device, add_up, epochs.now, check)
    engine = make_engine(signals.guard_step(hooks.steps.train) or together.guard_step(train_step))
    if validation is not None:
        step = ValidationStep(
            model, compiler.losses(), device, add_up, epochs.now, keep_losses=asks_for_error
        )
        trial = replace(step, refuse_non_finite=False)
        if world is not ONE:
            step, trial = without_empty(step), without_empty(trial)
        validation.compute_with(
            signals.guard_step(hooks.steps.validate) or step,
            signals.guard_step(hooks.steps.validate) or trial,
        )

    # What happens when: handlers act in the order in which they are attached.
    # sbi does not tell samplers the epoch.
    passes = Passes(
        train_batches, signals.guard, None if as_sbi else lambda: max(0, epochs.now()[0] - 1)
    )
    passes.attach(engine)
    if averages is not None:
        averages.attach(engine)
    together.attach_to_steps(engine)
    for handler in (train_loss, clipping, epochs, schedule):
        handler.attach(engine)
    together.attach_to_epochs(engine)
    stopping.attach(engine)
    if stages is not None:
        stages.attach_averaging(engine)
    users.attach(engine)
    if config.max_time is not None:
        TimeLimit(config.max_time, state, decide=together.decide).attach(engine)
    if stages is not None:
        stages.attach(engine)
    loggers.attach(engine, state)

    parts = _parts(
        {
            "model": model if averages is None else TrainedWeights(model, averages),
            "optimizer": optimizer,
            "averages": averages,
            "schedule": schedule,
            "state": state,
            "best_weights": best,
            "best_epochs": None if stages is None else stages.best_epochs,
            "train_loss": train_loss,
            "clipping": clipping,
            "frozen": frozen,
            "compiled": compiler.compiled,
            "batches": train_batches,
            "rules": stopping,
            **hooks.parts,
        }
    )
    snapshots = Snapshots(
        parts,
        state,
        hooks.keep_snapshot,
        extra={"loggers": loggers},
        mid_epoch=train_batches.resumes_inside_epoch,
    )
    snapshots.attach(engine)
    if settings.checkpoint is None:
        signals.may_cut = lambda: snapshots.up_to_date
    return Training(
        settings=settings,
        hooks=hooks,
        model=model,
        device=device,
        train_batches=train_batches,
        passes=passes,
        val_batches=val_batches,
        optimizer=optimizer,
        stepping=stepping,
        schedule=schedule,
        averages=averages,
        best=best,
        stopping=stopping,
        state=state,
        epochs=epochs,
        train_loss=train_loss,
        clipping=clipping,
        train_step=train_step if hooks.steps.train is None else None,
        engine=engine,
        loggers=loggers,
        callbacks=users,
        parts=parts,
        snapshots=snapshots,
        signals=signals,
        compiler=compiler,
        budget=budget,
        rate_may_change=bool(callbacks) or schedulers != Schedulers(),
        users_optimizer=users_optimizer,
        users_scheduler=users_scheduler,
        random=OwnRandomState(),
        world=world,
        together=together,
    )


def _device(
    settings: Resolved, device: str | torch.device | None, model: nn.Module
) -> torch.device:
    """Return where to train: as asked, or else where the model is."""
    if device is not None:
        return indexed(checked_device(device, "the call run_training(device=...)"))
    if settings.train.device is not None:
        return indexed(checked_device(settings.train.device, settings.origin("train.device")))
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _epoch_mean(batches: Batches, sbi_compat: bool, world: World) -> EpochMean:
    """Return the mean over the rows seen, or over as many rows as sbi assumes."""
    size = batches.batch_size if sbi_compat else None
    return EpochMean(len(batches) * size if size else None, world)


def _parts(candidates: Mapping[str, Any]) -> dict[str, Stateful]:
    """Return the candidates that have a state to save."""
    return {name: part for name, part in candidates.items() if hasattr(part, "state_dict")}
