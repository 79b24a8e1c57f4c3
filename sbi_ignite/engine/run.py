"""A model, a loss, batches and settings come in; the trained model and a summary go out.

This is the whole training, top to bottom. Everything besides forward, backward and step is a
handler that is attached below, in the order in which it acts.
"""

from __future__ import annotations

import logging as python_logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim import Optimizer

from sbi_ignite.callback import TrainingState
from sbi_ignite.data.in_memory import Batches
from sbi_ignite.engine.optimizers import make_optimizer, make_scheduler
from sbi_ignite.engine.persistence import Persistence, tensors_of
from sbi_ignite.engine.state import Stateful, restore, snapshot
from sbi_ignite.engine.steps import (
    Step,
    TrainStep,
    ValidationStep,
    fixed_random_state,
    summed,
    summed_as_sbi,
)
from sbi_ignite.exceptions import ArgumentError, NonFiniteLossError, NotYetError
from sbi_ignite.handlers.best_weights import BestWeights
from sbi_ignite.handlers.callbacks import UserCallbacks
from sbi_ignite.handlers.epoch_mean import EpochMean
from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.handlers.gradient_clipping import GradientClipping
from sbi_ignite.handlers.schedule import Schedule
from sbi_ignite.handlers.stopping import (
    LearningRateThreshold,
    Patience,
    Rule,
    StopOnRules,
    TwoStandardDeviations,
    When,
)
from sbi_ignite.handlers.time_limit import TimeLimit
from sbi_ignite.loggers import Loggers, RunInfo, make_loggers
from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.manifest import make_manifest
from sbi_ignite.settings import CheckpointConfig, EarlyStopping, Resolved, TrainConfig, resolve
from sbi_ignite.summary import TrainingSummary

VALIDATION_SEED = 20201127
"""Seed of the random state under which every validation runs, the same in all trainings."""

_logger = python_logging.getLogger("sbi_ignite.engine")
# Without a handler of its own, ignite's messages about errors, which are raised anyway, would reach
# the terminal of users who never configured logging.
_logger.addHandler(python_logging.NullHandler())


@dataclass(frozen=True)
class Host:
    """What a library that trains through `run_training` may bring along instead of the defaults.

    Attributes:
        method: Name of the method in the summary; None takes the model's class.
        settings: Settings that are resolved already.
        state: State to count on from, for a training that an earlier call began.
        rules: Stopping rules instead of those that the settings name.
        best_weights: Keeper of the best weights.
        train_step: Process function of the training engine.
        validation_step: Process function of the validation engine.
        resume_from: Snapshot of an earlier call to continue exactly.
        parts: More objects with a state, saved and continued with the training.
        on_epoch_end: Called after validation, before any rule is asked, with the time at which the
            epoch started (seconds since 1970).
        keep_snapshot: Receives a snapshot of the last weights after every epoch and at the end,
            from which a later call can go on, also after an exception.
        loggers: Loggers besides those that the settings name.
        directory: Run directory instead of the one in the settings.
        manifest: What the run directory and loggers are told besides settings and versions.
        round_index: Round of a sequential method, from 0.
        first_step: Epochs of earlier rounds, so that rounds share one axis.
        first_iteration: Optimizer steps of earlier rounds.
        show_progress: Whether a progress bar is welcome.
    """

    method: str | None = None
    settings: Resolved | None = None
    state: TrainingState | None = None
    rules: Sequence[Rule] | None = None
    best_weights: BestWeights | None = None
    train_step: Step | None = None
    validation_step: Step | None = None
    resume_from: Mapping[str, Any] | None = None
    parts: Mapping[str, Stateful] = field(default_factory=dict)
    on_epoch_end: Callable[[float], None] | None = None
    keep_snapshot: Callable[[dict[str, Any]], None] | None = None
    loggers: Sequence[Any] = ()
    directory: Path | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    round_index: int = 0
    first_step: int = 0
    first_iteration: int = 0
    show_progress: bool = True


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
    checkpoint: CheckpointConfig | str | None = None,
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
        checkpoint: Where to keep the run's files.
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
    config = settings.train
    _refuse_what_is_not_built(config)
    _check_arguments(model, loss_fn, train_loader, val_loader, optimizer, scheduler)

    on = _device(device or config.device, model)
    model.to(on)
    optimizer = optimizer or make_optimizer(config, model.parameters())
    state = host.state or TrainingState(model=model)
    state.validated = val_loader is not None
    schedule = Schedule(scheduler or make_scheduler(config, optimizer), optimizer, state)
    best = host.best_weights or BestWeights()
    clipping = GradientClipping(model.parameters(), config.clip_max_norm)
    rules = tuple(host.rules if host.rules is not None else map(make_rule, settings.early_stopping))
    users = UserCallbacks(callbacks or (), state)
    loggers = make_loggers((*settings.logging, *host.loggers))
    add_up = summed_as_sbi if config.sbi_compat else summed

    first_epoch, first_iteration, epoch_started = state.epoch, state.iteration, 0.0

    def now() -> tuple[int, int]:
        return first_epoch + trainer.state.epoch, first_iteration + trainer.state.iteration

    trainer = _engine(host.train_step or TrainStep(model, loss_fn, optimizer, on, add_up, now))
    train_loss = _epoch_mean(train_loader, config.sbi_compat)
    train_loss.attach(trainer)
    clipping.attach(trainer)

    evaluator = _engine(
        host.validation_step or ValidationStep(model, loss_fn, on, add_up, now, config.sbi_compat)
    )
    validation_loss = _epoch_mean(() if val_loader is None else val_loader, config.sbi_compat)
    validation_loss.attach(evaluator)

    @trainer.on(Events.EPOCH_STARTED)
    def train_mode() -> None:
        nonlocal epoch_started
        model.train()
        epoch_started = time.time()

    @trainer.on(Events.ITERATION_COMPLETED)
    def count() -> None:
        state.iteration = first_iteration + trainer.state.iteration

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate() -> None:
        model.eval()
        state.epoch = first_epoch + trainer.state.epoch
        state.train_loss = train_loss.value
        if val_loader is not None:
            with _validation_randomness(config, on):
                evaluator.run(val_loader, max_epochs=1, epoch_length=len(val_loader))
            state.validation_loss = validation_loss.value
        state.gradient_norm = clipping.mean_norm
        _record(state, time.time() - epoch_started)
        trainer.state.metrics.update(_metrics(state))
        if host.on_epoch_end is not None:
            host.on_epoch_end(epoch_started)
        best.update(state)
        trainer.fire_event(TrainingEvents.VALIDATED)
        if host.keep_snapshot is not None:
            host.keep_snapshot(snapshot(parts))

    schedule.attach(trainer)
    stopping = StopOnRules(rules, state)
    stopping.attach(trainer)
    users.attach(trainer)
    if config.max_time is not None:
        TimeLimit(config.max_time, state).attach(trainer)
    loggers.attach(trainer, state)

    parts: dict[str, Stateful] = {
        "model": model,
        "optimizer": optimizer,
        "state": state,
        "best_weights": best,
        "train_loss": train_loss,
        "clipping": clipping,
        **{f"rule-{i}": rule for i, rule in enumerate(rules)},
        **host.parts,
    }
    if schedule.scheduler is not None:
        parts["schedule"] = schedule.scheduler
    for name, source in (("batches", train_loader), ("indices", _sampler(train_loader))):
        if hasattr(source, "state_dict"):
            parts[name] = source

    with _run_directory(settings, host) as directory:
        method = host.method or type(model).__name__
        manifest = _manifest(method, settings, host, model, train_loader)
        saved = None
        if directory is not None and settings.checkpoint is not None:
            mid_epoch = isinstance(train_loader, Batches)
            saved = Persistence(
                directory, settings.checkpoint, manifest, parts, state, mid_epoch=mid_epoch
            )
            saved.resume()
            saved.attach(trainer, {"loggers": loggers})
        elif host.resume_from is not None:
            restore(parts, host.resume_from)
        found = host.resume_from if saved is None else saved.found
        if found is not None:
            first_epoch = first_iteration = 0
            schedule.note_rate()
            _continue_at(trainer, state, len(train_loader), parts, found)

        # sbi's budget is one epoch longer than its name says.
        budget = config.max_epochs + config.sbi_compat
        resumed_from = state.epoch
        stopping.ask_before_training()
        loggers.start(
            RunInfo(
                method=method,
                round_index=host.round_index,
                config=settings.to_dict(),
                manifest=manifest,
                run_directory=None if saved is None else saved.path,
                first_step=host.first_step,
                first_iteration=host.first_iteration,
                epochs_done=state.epoch,
                max_epochs=config.max_epochs,
                patience=next((getattr(r, "patience", None) for r in rules), None),
                show_progress=host.show_progress,
                identity=(saved.found or {}).get("loggers", {}) if saved is not None else {},
            )
        )
        users.on_train_start()
        with (
            _errors_reported(model, best, users, loggers),
            nullcontext() if saved is None else saved.running(),
        ):
            if state.stop_reason is None and state.epoch < budget:
                trainer.run(
                    train_loader, max_epochs=budget - first_epoch, epoch_length=len(train_loader)
                )
        state.stop("max_epochs" if state.epoch >= budget else "callback")
        if host.keep_snapshot is not None:
            host.keep_snapshot(snapshot(parts))
        if saved is not None:
            saved.finish()
        best.conclude(model)
        model.zero_grad(set_to_none=True)
        where = None if saved is None else saved.path
        summary = _summary(method, state, settings, resumed_from, on, where)
        loggers.finish(summary)
        users.on_train_end(summary)
        if saved is not None:
            saved.conclude(summary)
    return model, summary


def make_rule(early_stopping: EarlyStopping, smoothing: float = 0.1) -> Rule:
    """Return the rule that a setting describes.

    Args:
        early_stopping: The setting.
        smoothing: Weight of the newest loss for the rule of two standard deviations.
    """
    if early_stopping.kind == "validation_loss":
        return Patience(early_stopping.patience, early_stopping.min_delta)
    if early_stopping.kind == "two_standard_deviations":
        return TwoStandardDeviations(early_stopping.patience, smoothing)
    if early_stopping.kind == "lr_threshold":
        return LearningRateThreshold(early_stopping.min_lr)
    if early_stopping.kind == "when" and early_stopping.rule is not None:
        return When(early_stopping.rule)
    return When(lambda state: False)


def _refuse_what_is_not_built(train: TrainConfig) -> None:
    """Raise before training for settings that are announced but not built."""
    missing = {
        "ema_decay": train.ema_decay is not None,
        f"compile={train.compile!r}": train.compile not in ("auto", "off"),
        f"precision={train.precision!r}": train.precision != "32",
    }
    for name in (name for name, asked in missing.items() if asked):
        raise NotYetError(f"{name} is not built yet; leave it out for now.")


@contextmanager
def _run_directory(settings: Resolved, host: Host) -> Iterator[RunDirectory | None]:
    """Hold the run directory that the settings or the host name; None without one."""
    if settings.checkpoint is None:
        yield None
        return
    path = host.directory or settings.checkpoint.directory
    with RunDirectory.open(path, settings.checkpoint.keep_last) as directory:
        yield directory


def _manifest(
    method: str, settings: Resolved, host: Host, model: nn.Module, train_loader: Any
) -> dict[str, Any]:
    """Return what run directory and loggers are told; empty if there are none to tell."""
    if settings.checkpoint is None and not settings.logging:
        return {}
    manifest = make_manifest(
        method=method,
        settings=settings.to_dict(),
        seed=settings.train.seed,
        data=tensors_of(train_loader),
        network=model,
    )
    return {**manifest, **host.manifest}


def _continue_at(
    trainer: Engine,
    state: TrainingState,
    epoch_length: int,
    parts: Mapping[str, Stateful],
    found: Mapping[str, Any],
) -> None:
    """Let the engine begin where the saved training stood, in mid-epoch if need be."""
    trainer.load_state_dict(
        {
            "iteration": state.iteration,
            "max_epochs": state.iteration // epoch_length + 1,
            "epoch_length": epoch_length,
        }
    )
    inside_epoch = {n: p for n, p in parts.items() if n in ("train_loss", "clipping")}
    in_mid_epoch = state.iteration % epoch_length != 0

    @trainer.on(Events.EPOCH_STARTED(once=state.iteration // epoch_length + 1))
    def restore_again() -> None:
        # The start of an epoch resets its sums, and users' handlers may have drawn random numbers.
        restore(inside_epoch if in_mid_epoch else {}, found)


def _check_arguments(
    model: Any, loss_fn: Any, train_loader: Any, val_loader: Any, optimizer: Any, scheduler: Any
) -> None:
    """Refuse arguments of the wrong type with a sentence that says what is expected."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}.")
    if not callable(loss_fn):
        raise ArgumentError(
            f"loss_fn: expected a callable (model, batch) -> losses, got {loss_fn!r}."
        )
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise ArgumentError(
            f"optimizer: expected a torch Optimizer of the model's parameters, got {optimizer!r}. "
            "Names such as 'adamw' go into TrainConfig(optimizer=...)."
        )
    if scheduler is not None and not callable(getattr(scheduler, "step", None)):
        raise ArgumentError(
            f"scheduler: expected a torch scheduler, got {scheduler!r}. Names such as 'plateau' go "
            "into TrainConfig(lr_schedule=...)."
        )
    loaders: dict[str, Any] = {"train_loader": train_loader}
    if val_loader is not None:
        loaders["val_loader"] = val_loader
    for name, loader in loaders.items():
        if not (hasattr(loader, "__iter__") and hasattr(loader, "__len__")):
            raise ArgumentError(
                f"{name}: expected an iterable of batches with a length, such as a torch "
                f"DataLoader, got {type(loader).__name__}."
            )
        if len(loader) == 0:
            raise ArgumentError(f"{name}: expected at least one batch, got none.")


def _device(device: str | torch.device | None, model: nn.Module) -> torch.device:
    """Return where to train: as asked, else where the model is."""
    if device is not None:
        return torch.device(device)
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


@contextmanager
def _validation_randomness(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Validate under one fixed random state; in sbi's form under the running one, as sbi does."""
    if config.sbi_compat:
        yield
    else:
        with fixed_random_state(VALIDATION_SEED, device):
            yield


def _record(state: TrainingState, seconds: float) -> None:
    """Append the values of the epoch to the history."""
    history = state.history
    history.training_loss.append(state.train_loss)
    history.validation_loss.append(state.validation_loss)
    history.learning_rate.append(state.learning_rate)
    history.gradient_norm.append(state.gradient_norm)
    history.epoch_durations_sec.append(seconds)


def _metrics(state: TrainingState) -> dict[str, float]:
    """Return what ignite handlers of users find in `engine.state.metrics`."""
    return {
        "training_loss": state.train_loss,
        "validation_loss": state.validation_loss,
        "learning_rate": state.learning_rate,
        "gradient_norm": state.gradient_norm,
    }


def _sampler(loader: Any) -> Any:
    """Return a DataLoader's source of indices, whose passes are counted for resuming."""
    return getattr(loader, "batch_sampler", None)


@contextmanager
def _errors_reported(
    model: nn.Module, best: BestWeights, users: UserCallbacks, loggers: Loggers
) -> Iterator[None]:
    """Keep the best weights when a loss is not finite; tell callbacks and loggers about errors."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, NonFiniteLossError):
            best.restore(model)
            model.zero_grad(set_to_none=True)
        loggers.fail(error)
        users.on_exception(error)
        raise


def _summary(
    method: str,
    state: TrainingState,
    settings: Resolved,
    resumed_from: int,
    device: torch.device,
    directory: Path | None,
) -> TrainingSummary:
    """Return the summary of a training that has ended."""
    history = state.history
    reason = state.stop_reason or "callback"
    return TrainingSummary(
        method=method,
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
        run_directory=None if directory is None else str(directory),
        device=str(device),
        config=settings.to_dict(),
    )


__all__ = ["Host", "make_rule", "run_training"]
