"""A model, a loss, batches and settings come in; the trained model and a summary go out.

This is the whole training, top to bottom. Everything besides forward, backward and step is a
handler that is attached below, in the order in which it acts.
"""

from __future__ import annotations

import logging as python_logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal

import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.optim import Optimizer

from sbi_ignite.callback import TrainingState
from sbi_ignite.capture import Compiler, Report
from sbi_ignite.data.placing import indexed
from sbi_ignite.engine.checks import check_arguments, check_device
from sbi_ignite.engine.denormals import denormals_as_zeros
from sbi_ignite.engine.epochs import Epochs, validation_randomness
from sbi_ignite.engine.flat import FlatOptimizer
from sbi_ignite.engine.host import Host
from sbi_ignite.engine.length import sure_epochs
from sbi_ignite.engine.optimizers import make_optimizer
from sbi_ignite.engine.persistence import NoPersistence, Persistence, persistence
from sbi_ignite.engine.recipe import filled_in
from sbi_ignite.engine.schedules import epochs_to_train, make_schedulers
from sbi_ignite.engine.state import Snapshots, Stateful
from sbi_ignite.engine.steps import (
    Step,
    TrainStep,
    ValidationStep,
    reads_later,
    summed,
    summed_as_sbi,
)
from sbi_ignite.exceptions import NonFiniteLossError
from sbi_ignite.handlers.averaging import AveragedWeights, TrainedWeights
from sbi_ignite.handlers.best_weights import BestWeights
from sbi_ignite.handlers.callbacks import UserCallbacks
from sbi_ignite.handlers.epoch_mean import EpochMean
from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.handlers.gradient_clipping import GradientClipping
from sbi_ignite.handlers.schedule import Schedule, Schedulers
from sbi_ignite.handlers.spread import ValidationSpread
from sbi_ignite.handlers.stages import StageChanges, StageRule
from sbi_ignite.handlers.stopping import Rule, StopOnRules, make_rule
from sbi_ignite.handlers.time_limit import TimeLimit
from sbi_ignite.loggers import Loggers, RunInfo, make_loggers
from sbi_ignite.settings import CheckpointConfig, EarlyStopping, Resolved, TrainConfig, resolve
from sbi_ignite.summary import TrainingSummary

_logger = python_logging.getLogger("sbi_ignite.engine")
# ignite logs errors that are raised anyway; whoever wants them twice adds a handler by name.
_logger.addHandler(python_logging.NullHandler())
_logger.propagate = False


def run_training(
    config: TrainConfig | None,
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    train_loader: Any,
    val_loader: Any | None = None,
    optimizer: Optimizer | None = None,
    scheduler: Any | None = None,
    callbacks: Iterable[Any] | None = None,
    device: str | torch.device | None = None,
    *,
    logging: Any | None = None,
    early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
    checkpoint: CheckpointConfig | str | Literal[False] | None = None,
    host: Host | None = None,
) -> tuple[nn.Module, TrainingSummary]:
    """Train a torch module and return it, with its best weights, and a summary.

    The runner that sbi's enhancement proposal EP-01 asks for. It needs no sbi object, and sbi's
    trainers go through it.

    Args:
        config: Training settings; None takes environment, file and defaults.
        model: Any torch module.
        loss_fn: `loss_fn(model, batch)` gives losses of shape (batch,), or their mean as a scalar.
            If it has a method `validate` of the same form, that gives the validation losses.
        train_loader: Batches of training data: a torch DataLoader or any iterable with a length.
        val_loader: Batches of validation data. Without it, the training loss decides about the best
            weights and about stopping.
        optimizer: Steps over the model's parameters; None makes what `config` asks for.
        scheduler: A torch scheduler, stepped after every epoch (`OneCycleLR` and `CyclicLR`: after
            every iteration); None makes what `config` asks for.
        callbacks: Objects with methods of `Callback`, or anything with ignite's `attach(engine)`.
        device: Where to train; None takes `config.device`, else the model's device.
        logging: A `LoggingConfig`, the name of a backend, or a list of these.
        early_stopping: One rule or several, of which any one stops; None waits 20 epochs for a
            lower validation loss.
        checkpoint: Where to keep the run's files; False keeps none.
        host: For libraries that train through this function, see `Host`.

    Returns:
        The model and a `TrainingSummary`.

    Raises:
        SettingsError: If a setting is not valid; nothing has been trained.
        ArgumentError: If an argument has the wrong type; nothing has been trained.
        NonFiniteLossError: If a loss is NaN or infinite; the model has the best weights so far.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> batches = [(torch.randn(8, 2), torch.randn(8, 1)) for _ in range(4)]
        >>> def squared_error(model, batch):
        ...     x, y = batch
        ...     return (model(x) - y).square().mean(dim=1)
        >>> model, summary = run_training(TrainConfig(max_epochs=2), model, squared_error, batches)
        >>> summary.epochs_trained
        2
    """
    host = host or Host()
    settings = host.settings or resolve(
        train=config, early_stopping=early_stopping, logging=logging, checkpoint=checkpoint
    )
    settings = filled_in(settings, train_loader)
    config, as_sbi = settings.train, settings.train.sbi_compat
    check_arguments(model, loss_fn, train_loader, val_loader, optimizer, scheduler)
    loggers = make_loggers((*settings.logging, *host.loggers))

    # What is trained, and by which rules.
    device = _device(device or config.device, model)
    check_device(config, device)
    model.to(device)
    optimizer = optimizer or make_optimizer(config, model.parameters())
    callbacks = tuple(callbacks or ())
    state = host.state or TrainingState(model=model)
    state.validated = val_loader is not None
    schedulers = (
        Schedulers(scheduler) if scheduler else make_schedulers(config, optimizer, train_loader)
    )
    schedule = Schedule(schedulers, optimizer, state)
    stepping = FlatOptimizer(optimizer)
    averages = AveragedWeights(model, config.averages.share, stepping) if config.averages else None
    best = host.best_weights or BestWeights()
    rules = tuple(host.rules if host.rules is not None else map(make_rule, settings.early_stopping))
    stage_rule = StageRule(config.stages, config.weight_decay) if config.stages else None
    rules = rules if stage_rule is None else (*rules, stage_rule)
    stopping = StopOnRules(rules, state)
    users = UserCallbacks(callbacks, state)

    # Two engines: one trains, one validates.
    # The norm of one tensor is found faster and rounded otherwise, as is a fused step.
    flat = stepping if stepping.fused else None
    clipping = GradientClipping(model.parameters(), config.clip_max_norm, flat)
    train_loss = _epoch_mean(train_loader, as_sbi)
    validation_loss = _epoch_mean(() if val_loader is None else val_loader, as_sbi)
    spread = ValidationSpread()
    asks_for_spread = any(stage.min_improvement for stage in config.stages)

    def validate() -> float:
        with validation_randomness(as_sbi, device):
            evaluator.run(val_loader, max_epochs=1, epoch_length=len(val_loader or ()))
        return validation_loss.value

    def validate_epoch() -> float:
        loss = validate()
        state.validation_error = spread.error
        return loss

    stages = None
    if stage_rule is not None:
        stages = StageChanges(
            stage_rule,
            model,
            optimizer,
            schedule,
            best,
            averages,
            state,
            validate if state.validated else None,
        )
        stages.begin()
    epochs = Epochs(
        state,
        train_loss,
        clipping,
        validate_epoch if state.validated else None,
        host.on_epoch_end,
        best.update,
    )
    add_up = summed_as_sbi if as_sbi else summed
    # Handlers that attach to the engine may change the network between any two steps.
    watchful = any(hasattr(callback, "attach") for callback in callbacks)
    sure = sure_epochs(settings, len(train_loader))
    sure = min(sure, epochs_to_train(config, schedulers) - state.epoch)
    compiler = Compiler(
        config,
        model,
        loss_fn,
        device,
        known_safe=host.traceable,
        watchful=watchful,
        epoch=lambda: epochs.now()[0],
        sure_steps=sure * len(train_loader),
        sure_validation_steps=sure * len(() if val_loader is None else val_loader),
    )
    gradients, losses = compiler.gradients(optimizer), compiler.losses()
    trainer = _engine(host.train_step or TrainStep(gradients, stepping, device, add_up, epochs.now))
    evaluator = _engine(
        host.validation_step
        or ValidationStep(
            model,
            losses,
            device,
            add_up,
            epochs.now,
            refuse_non_finite=as_sbi,
            keep_losses=asks_for_spread,
        )
    )
    validation_loss.attach(evaluator)
    if asks_for_spread:
        spread.attach(evaluator)

    # What happens when: handlers act in the order in which they are attached.
    if averages is not None:
        averages.attach(trainer)
    for handler in (train_loss, clipping, epochs, schedule, stopping, users):
        handler.attach(trainer)
    if config.max_time is not None:
        TimeLimit(config.max_time, state).attach(trainer)
    loggers.attach(trainer, state)
    if stages is not None:
        stages.attach(trainer)

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
            "batches": train_loader,
            "indices": getattr(train_loader, "batch_sampler", None),
            **{f"rule-{i}": rule for i, rule in enumerate(rules)},
            **host.parts,
        }
    )
    snapshots = Snapshots(parts, state, host.keep_snapshot, extra={"loggers": loggers})
    snapshots.attach(trainer)

    with persistence(settings, host, model, parts, state, train_loader, snapshots) as files:
        files.attach(trainer)
        files.resume()
        if files.found is not None:
            schedule.note_rate()
            epochs.continue_at(len(train_loader), parts, files.found)
        resumed_from, began_at = state.epoch, state.iteration
        budget = epochs_to_train(config, schedulers)
        stopping.ask_before_training()
        loggers.start(_run_info(settings, host, files, state, rules, budget))
        users.on_train_start()

        undo = _kept_aside(model, optimizer) if reads_later(device) else _nothing
        with (
            _errors_reported(model, best, users, loggers, undo),
            files.running(),
            denormals_as_zeros(wanted=not as_sbi),
            stepping.lent_memory(),
        ):
            if state.stop_reason is None and state.epoch < budget:
                trainer.run(
                    train_loader,
                    max_epochs=budget - epochs.before_this_engine,
                    epoch_length=len(train_loader),
                )
            train_loss.read()

        state.stop("max_epochs" if state.epoch >= budget else "callback")
        snapshots.conclude()
        files.finish()
        if averages is not None:
            averages.show()
        best.conclude(model)
        model.zero_grad(set_to_none=True)
        took_steps = state.iteration > began_at
        how = _report(compiler, stepping, host) if took_steps else Report(*files.earlier_report)
        summary = _summary(files, state, settings, resumed_from, device, how)
        loggers.finish(summary)
        if host.keep_identity is not None:
            host.keep_identity(loggers.state_dict())
        users.on_train_end(summary)
        files.conclude(summary)
    return model, summary


def _device(device: str | torch.device | None, model: nn.Module) -> torch.device:
    """Return where to train: as asked, else where the model is."""
    if device is not None:
        return indexed(device)
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _engine(step: Step) -> Engine:
    """Return an Engine that knows our events."""
    engine = Engine(step)
    engine.logger = _logger
    engine.register_events(*TrainingEvents)
    return engine


def _epoch_mean(loader: Any, sbi_compat: bool) -> EpochMean:
    """Return the mean over the rows seen, or over as many as sbi takes for granted."""
    size: int | None = getattr(loader, "batch_size", None)
    return EpochMean(rows=len(loader) * size if sbi_compat and size else None)


def _parts(candidates: Mapping[str, Any]) -> dict[str, Stateful]:
    """Return those that have a state to save."""
    return {name: part for name, part in candidates.items() if hasattr(part, "state_dict")}


def _run_info(
    settings: Resolved,
    host: Host,
    files: Persistence | NoPersistence,
    state: TrainingState,
    rules: Sequence[Rule],
    budget: int,
) -> RunInfo:
    """Return what loggers are told before the first step."""
    patience = [rule.patience for rule in rules if hasattr(rule, "patience")]  # type: ignore[attr-defined] # just asked
    return RunInfo(
        method=files.method,
        round_index=host.round_index,
        config=settings.to_dict(),
        manifest=files.manifest,
        run_directory=files.path,
        first_step=host.first_step,
        first_iteration=host.first_iteration,
        epochs_done=state.epoch,
        max_epochs=budget - settings.train.sbi_compat,
        patience=patience[0] if patience else None,
        show_progress=host.show_progress,
        identity=(files.found or {}).get("loggers") or host.identity,
    )


def _nothing() -> None:
    """Undo nothing: losses are read before anything is done with them."""


def _kept_aside(model: nn.Module, optimizer: Optimizer) -> Callable[[], None]:
    """Return what undoes steps that were taken before a loss was known not to be finite.

    Weights and optimizer go back to where the call found them, until the best weights are put in.
    """
    weights, memory = deepcopy(model.state_dict()), deepcopy(optimizer.state_dict())

    def undo() -> None:
        model.load_state_dict(weights)
        optimizer.load_state_dict(memory)

    return undo


@contextmanager
def _errors_reported(
    model: nn.Module,
    best: BestWeights,
    users: UserCallbacks,
    loggers: Loggers,
    undo: Callable[[], None],
) -> Iterator[None]:
    """Keep the best weights when a loss is not finite; tell callbacks and loggers about errors."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, NonFiniteLossError):
            undo()
            best.restore(model)
            model.zero_grad(set_to_none=True)
        loggers.fail(error)
        users.on_exception(error)
        raise


def _report(compiler: Compiler, stepping: FlatOptimizer, host: Host) -> Report:
    """Return which way steps were computed, and what made them slower."""
    found = compiler.report()
    if host.train_step is not None:
        found = Report("eager", "the trainer's own epoch method was asked")
    reasons = filter(None, (found.reason, stepping.slower and f"optimizer: {stepping.slower}"))
    return Report(found.executor, "; ".join(reasons))


def _summary(
    files: Persistence | NoPersistence,
    state: TrainingState,
    settings: Resolved,
    resumed_from: int,
    device: torch.device,
    how: Report,
) -> TrainingSummary:
    """Return the summary of a training that has ended."""
    history = state.history
    reason = state.stop_reason or "callback"
    return TrainingSummary(
        method=files.method,
        epochs_trained=state.epoch,
        best_epoch=state.best_epoch,
        best_validation_loss=state.best_validation_loss,
        training_loss=tuple(history.training_loss),
        validation_loss=tuple(history.validation_loss),
        learning_rate=tuple(history.learning_rate),
        gradient_norm=tuple(history.gradient_norm),
        epoch_durations_sec=tuple(history.epoch_durations_sec),
        stop_reason=reason,
        stop_message=state.stop_message,
        complete=reason not in ("time_limit", "signal"),
        resumed_from_epoch=resumed_from,
        run_directory=None if files.path is None else str(files.path),
        device=str(device),
        executor=how.executor,
        executor_reason=how.reason,
        config=settings.to_dict(),
    )


__all__ = ["Host", "run_training"]
