"""The training loop: assemble, resume, train, conclude."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from copy import deepcopy
from os import PathLike
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from ignite.engine import Events
from ignite.utils import manual_seed
from torch import Tensor, nn
from torch.optim import Optimizer

from sbi_ignite.capture import Report
from sbi_ignite.concurrency import training_in_this_thread
from sbi_ignite.data.foreign import as_batches
from sbi_ignite.data.shards import sharded
from sbi_ignite.exceptions import (
    ArgumentError,
    NonFiniteLossError,
    SbiIgniteWarning,
    SettingsError,
)
from sbi_ignite.handlers.callbacks import as_callbacks
from sbi_ignite.handlers.signals import StoppedInLoader
from sbi_ignite.kernels.denormals import denormals_as_zeros
from sbi_ignite.loggers import RunInfo
from sbi_ignite.runs.fingerprint import INIT_FROM, VALIDATION_DATA
from sbi_ignite.settings import CheckpointConfig, EarlyStopping, TrainConfig, resolve
from sbi_ignite.settings.checkpoint import START_ANEW
from sbi_ignite.summary import TrainingSummary
from sbi_ignite.training.checks import check_arguments
from sbi_ignite.training.datasets import loaders_of
from sbi_ignite.training.options import check_options
from sbi_ignite.training.persistence import NoPersistence, Persistence, persistence
from sbi_ignite.training.schedules import continue_schedule, warn_of_idle
from sbi_ignite.training.shared_pass import Share
from sbi_ignite.training.steps import reads_later
from sbi_ignite.training.training import Training, assemble
from sbi_ignite.training.turns import Pauses
from sbi_ignite.world import ONE, World, join_world, local_card

Model = TypeVar("Model", bound=nn.Module)
"""The class of the module that is trained."""

_LARGEST_SEED_OF_A_USER = 2**32
_logger = logging.getLogger("sbi_ignite.runs")


def run_training(
    config: TrainConfig | None,
    model: Model,
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
    checkpoint: CheckpointConfig | str | PathLike[str] | Literal[False] | None = None,
) -> tuple[Model, TrainingSummary]:
    """Train a torch module and return it, with its best weights, and a summary.

    The standalone runner of sbi's enhancement proposal EP-01. It needs no sbi object; trainers of
    sbi go through the same assembly and the same loop.

    Set each thing once: an `optimizer` beside an `optimizer`, `learning_rate` or `weight_decay` in
    the settings, a `scheduler` beside an `lr_schedule`, another `device`, and loaders with another
    `batch_size`, `validation_fraction` or other `dataloader_kwargs` are refused. Arguments win over
    environment and file if both set the same thing, and the summary's `config` shows what ran.

    Args:
        config: Training settings; None takes environment, file and defaults.
        model: Any torch module. It is put into training mode, and into evaluation mode from the end
            of an epoch on. A part without trainable parameters that is in evaluation mode when
            training starts, such as a pretrained embedding, stays in it, with its BatchNorm and
            Dropout; with `sbi_compat`, all parts are put into training mode, as in sbi.
        loss_fn: `loss_fn(model, batch)` gives losses of shape (batch,), or their mean as a scalar.
            If it has a method `validate` of the same form, that gives the validation losses.
        train_loader: Batches of training data: a torch DataLoader or any iterable with a length,
            which yields that many batches in every pass, each with at least one row. One that
            keeps a random state of its own needs `state_dict` and `load_state_dict` to resume
            exactly. Or a data set: simulations in files (`open_simulations`), any torch `Dataset`
            or an `IterableDataset` with a length, cut into batches of `config.batch_size`. Without
            a `val_loader`, all but an `IterableDataset` are split by `config.validation_fraction`.
            `with_transform(...)` around any of these draws every batch anew.
        val_loader: Batches of validation data, or a data set, likewise. Without either, the
            training loss determines the best weights and when to stop.
        optimizer: Steps over the model's parameters; None makes what `config` asks for. It may hold
            others too, such as a weight inside the loss; parameters it does not hold stay as they
            are, with a warning.
        scheduler: A torch scheduler of that optimizer, stepped after every epoch (`OneCycleLR` and
            `CyclicLR`: after every iteration); None makes what `config` asks for. A `OneCycleLR`
            ends a training without `max_epochs`. `ReduceLROnPlateau` gets the validation loss, so
            its `mode` must be "min".
        callbacks: Objects with methods of `Callback`, or anything with ignite's `attach(engine)`;
            a single one needs no list.
        device: Where to train; None takes `config.device`, else the model's device.
        logging: A `LoggingConfig`, the name of a backend, or a list of these.
        early_stopping: One rule or several, of which any one stops; None waits 20 epochs for a
            lower validation loss.
        checkpoint: Where to keep the run's files; False keeps none. A run that is found there is
            continued, or returned if it is complete, provided that settings, network, data and
            `loss_fn` (its code, arguments bound to it, variables of enclosing functions) are those
            that it began with.

    Returns:
        The model and a `TrainingSummary`.

    Raises:
        SettingsError: If a setting is not valid; nothing has been trained.
        ArgumentError: If an argument has the wrong type, the model or the optimizer has nothing to
            train, or the losses of the first batch have the wrong shape; nothing has been trained.
            Later, if a step of the optimizer or the scheduler fails; the model has the best weights
            so far.
        DataError: If a loader does not yield the promised number of batches, or an empty one.
        CheckpointMismatchError: If the run directory holds a training of something else.
        NonFiniteLossError: If a training or validation loss is NaN or infinite; the model has the
            best weights so far.

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
    settings = resolve(
        train=config, early_stopping=early_stopping, logging=logging, checkpoint=checkpoint
    )
    train_loader, val_loader = loaders_of(settings, train_loader, val_loader)
    check_arguments(model, loss_fn, train_loader, val_loader, optimizer, scheduler)
    train_batches = as_batches(train_loader, "train_loader")
    val_batches = None if val_loader is None else as_batches(val_loader, "val_loader")
    check_options(settings, train_batches, val_batches, optimizer, scheduler, device)
    where = device or settings.train.device or _device_of(model)
    world = world_of(settings.train, where)
    with world.taking_part():
        if settings.train.seed is not None:
            manual_seed(settings.train.seed)
        world.share_random_states()
        if world is not ONE:
            own, device = settings.train.shards == "own", local_card(where)
            train_batches = sharded(world, train_batches, own)
            val_batches = None if val_batches is None else sharded(world, val_batches, own)
        training = assemble(
            settings,
            model,
            loss_fn,
            train_batches,
            val_batches,
            optimizer=optimizer,
            scheduler=scheduler,
            callbacks=as_callbacks(callbacks),
            device=device,
            world=world,
        )
        summary = run(training)
    if settings.train.show_train_summary and world.rank == 0:
        print(summary)
    return model, summary


def world_of(config: TrainConfig, device: Any) -> World:
    """Return the processes that a training's settings let take part in it.

    Args:
        config: The settings.
        device: Where training will run.
    """
    return ONE if config.shards == "alone" else join_world(device, config.process_timeout)


def _device_of(model: nn.Module) -> torch.device:
    """Return where a model's first parameter is."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def run(training: Training) -> TrainingSummary:
    """Run a training to its end and leave the best weights in its model.

    Args:
        training: What `assemble` put together; it runs once.

    Raises:
        ArgumentError: If it shares its batches with other trainings.
        DataError: If a pass does not yield as many batches as their length promises.
        NonFiniteLossError: If a training or validation loss is NaN or infinite; the model has the
            best weights so far.
        KeyboardInterrupt: After Ctrl-C, when everything is saved.
        SystemExit: After SIGTERM or SIGUSR1, when everything is saved. A handler that the user has
            installed for the signal is called before, and may raise something else.
    """
    if isinstance(training.train_batches, Share):
        raise ArgumentError(
            "training: expected batches of its own, got a share of a SharedPass. Pass the training "
            "to run_together(), in a list."
        )
    turns = in_turns(training)
    while True:
        try:
            next(turns)
        except StopIteration as end:
            summary: TrainingSummary = end.value
            break
    _say_how_to_continue(training, summary)
    training.signals.pass_on()
    training.world.share_random_states()  # what the script draws next is the same in all processes
    return summary


def in_turns(
    training: Training, pauses: Pauses | None = None
) -> Generator[None, None, TrainingSummary]:
    """Run a training that pauses, so that several can take turns; see `run`.

    It pauses once when it stands where it continues, before loggers and callbacks are told; then,
    if its batches are shared, before each batch. A signal that ended it is not passed on.

    Args:
        training: What `assemble` put together; it runs once.
        pauses: Where else it pauses, on the training's engine. Denormal numbers are then treated as
            they are outside.

    Returns:
        The summary.
    """
    with training_in_this_thread(), training.signals, persistence(training) as files:
        files.attach(training.engine)
        _draw_own_noise(training)
        resumed_from = _resume(training, files)
        training.world.copy_from_first([*training.model.parameters(), *training.model.buffers()])
        yield
        began_at, trains = training.state.iteration, training.has_epochs_left
        if trains:
            files.require_writable()
        _begin(training, files, trains)

        def summary_now() -> TrainingSummary:
            took_steps = training.state.iteration > began_at
            how = training.how_computed() if took_steps else Report(*files.earlier_report)
            return _summary(training, files, resumed_from, how)

        with _errors_reported(training, summary_now), files.running(trains):
            yield from _loop(training, pauses)
        if training.state.stop_reason == "signal":
            training.signals.tell_others()
        summary = _conclude(training, files, summary_now)
    training.callbacks.on_saved(summary)
    return summary


def _draw_own_noise(training: Training) -> None:
    """Let every process but the first draw random numbers of its own, if the loss allows it."""
    rank = training.world.rank
    if rank and not training.hooks.steps.same_draws:
        seed = np.random.SeedSequence((torch.initial_seed() % 2**63, _drawn(), rank))
        manual_seed(int(seed.generate_state(1)[0]))


def _drawn() -> int:
    """Return a number that follows from the state of torch's generator, and leave it as it is."""
    with torch.random.fork_rng(devices=[]):
        return int(torch.empty((), dtype=torch.int64).random_().item())


def _resume(training: Training, files: Persistence | NoPersistence) -> int:
    """Continue where a checkpoint or an earlier call stopped; return the epochs already done."""
    files.resume()
    state, schedule, epoch_length = training.state, training.schedule, len(training.train_batches)
    resumed_from = state.epoch
    with _best_weights_if_refused(training, files):
        if files.found is not None:
            schedule.note_rate()
            training.epochs.continue_at(epoch_length, training.parts, files.found)
            if training.train_batches.resumes_inside_epoch:  # others start a new pass
                training.passes.continue_after(state.iteration % epoch_length)
        training.stopping.ask_before_training()
        _warn_of_resume(training, files)
        if training.has_epochs_left:
            files.note_resume()
            settings, budget = training.settings, training.budget
            continue_schedule(settings, schedule, budget, epoch_length)
            warn_of_idle(
                settings, training.optimizer, training.rate_may_change, budget, epoch_length
            )
    return resumed_from


def _warn_of_resume(training: Training, files: Persistence | NoPersistence) -> None:
    """Say what a run that is resumed from its directory does otherwise than one would expect."""
    if isinstance(files, NoPersistence) or files.found is None:
        return
    state, batches = training.state, training.train_batches
    _warn_of_seed(training, files)
    if state.epoch > training.budget:
        warnings.warn(
            f"{files.path}: this run has {state.epoch} epochs already, so max_epochs="
            f"{training.settings.train.max_epochs} changes nothing. Its result is returned as it "
            "is; take another directory to train anew.",
            SbiIgniteWarning,
            stacklevel=5,
        )
    elif batches.unsaved_state and training.has_epochs_left:
        warnings.warn(
            f"{files.path}: this run continues with other batches than an uninterrupted one, "
            f"because {batches.unsaved_state} ({batches.name}). Take persistent_workers=False for "
            "an exact resume.",
            SbiIgniteWarning,
            stacklevel=5,
        )


def _warn_of_seed(training: Training, files: Persistence) -> None:
    """Say that a complete run is returned although the script has asked for another seed.

    A run that is continued restores its random states anyway, whatever the script has drawn.
    """
    before, now = files.torch_seeds
    if training.settings.train.seed is not None or before == now or training.has_epochs_left:
        return
    # Without a seed, torch takes one with more digits than people write.
    if before is None or now is None or max(before, now) >= _LARGEST_SEED_OF_A_USER:
        return
    warnings.warn(
        f"{files.path}: the run here is complete and is returned as it is. It began after "
        f"torch.manual_seed({before}); this script's torch.manual_seed({now}) changes nothing. "
        f"Take another directory, or {START_ANEW}, for a training with that seed.",
        SbiIgniteWarning,
        stacklevel=6,
    )


@contextmanager
def _best_weights_if_refused(
    training: Training, files: Persistence | NoPersistence
) -> Iterator[None]:
    """Give a model its best weights back if continuing its training is refused."""
    try:
        yield
    except (SettingsError, ArgumentError):
        if files.found is not None:
            training.best.restore(training.model)
        raise


def _begin(training: Training, files: Persistence | NoPersistence, trains: bool) -> None:
    """Tell loggers and callbacks that training begins."""
    training.loggers.start(_run_info(training, files, trains))
    training.callbacks.on_train_start()


def _loop(training: Training, pauses: Pauses | None) -> Iterator[None]:
    """Train until a rule, the budget, a limit or a signal ends it; pause where others take part."""
    epochs_left = training.budget - training.epochs.before_this_engine
    share = training.train_batches if isinstance(training.train_batches, Share) else None
    # Asking takes time in every turn: who hands in pauses has seen to it for all of them.
    as_zeros = pauses is None and not training.settings.train.sbi_compat
    if share is not None:
        pauses = Pauses(training.engine, Events.GET_BATCH_STARTED)
    with training.stepping.lent_memory(), closing(training.passes), suppress(StoppedInLoader):
        training.signals.ask_before_training()
        goes_on = training.has_epochs_left
        while goes_on:
            with denormals_as_zeros(wanted=as_zeros):
                training.engine.run(
                    training.passes, max_epochs=epochs_left, epoch_length=len(training.passes)
                )
            goes_on = pauses is not None and pauses.is_waiting()
            if goes_on:
                yield
            if share is not None and share.is_ahead:  # it has not trained yet
                training.signals.ask_before_training()
                goes_on = training.has_epochs_left
    training.train_loss.read()


def _say_how_to_continue(training: Training, summary: TrainingSummary) -> None:
    """Tell whoever finds that a signal has ended the process that nothing is lost."""
    received, directory = training.signals.received, summary.run_directory
    if received is None or directory is None or summary.complete or training.world.rank:
        return
    _logger.warning(
        "%s ended training after %d epochs. All is saved in %s: the same script, started again, "
        "continues there.",
        received.name,
        summary.epochs_trained,
        directory,
    )


def _conclude(
    training: Training,
    files: Persistence | NoPersistence,
    summary_now: Callable[[], TrainingSummary],
) -> TrainingSummary:
    """Save the last state, put the best weights into the model, and report how it went."""
    state = training.state
    state.stop("max_epochs" if state.epoch >= training.budget else "callback")
    if not training.signals.cut_in_loader:
        training.snapshots.conclude()
    files.finish()
    if training.averages is not None:
        training.averages.show()
    training.best.conclude(training.model)
    training.model.zero_grad(set_to_none=True)
    summary = summary_now()
    training.hooks.on_summary(summary)
    training.loggers.finish(summary)
    training.hooks.on_end(training.loggers.state_dict())
    training.callbacks.on_train_end(summary)
    files.conclude(summary)
    if (
        not summary.epochs_trained
        and state.stop_reason == "time_limit"
        and training.settings.checkpoint is None
    ):
        warnings.warn(
            "The time limit ended training before its first epoch was complete: the network is "
            "returned with the weights of the last step, and nothing was validated. Take a longer "
            "TrainConfig(max_time=...), or checkpoint=... to continue later.",
            SbiIgniteWarning,
            stacklevel=5,
        )
    return summary


@contextmanager
def _errors_reported(
    training: Training, summary_now: Callable[[], TrainingSummary]
) -> Iterator[None]:
    """Keep the best weights when a step fails; tell callbacks and loggers about errors.

    After a Ctrl-C that was not held off, the host gets the summary of what was trained.
    """
    undo = _undo(training) if reads_later(training.device) else _nothing
    try:
        yield
    except BaseException as error:
        if isinstance(error, NonFiniteLossError | ArgumentError):
            undo()
            training.best.restore(training.model)
            training.model.zero_grad(set_to_none=True)
        if isinstance(error, KeyboardInterrupt):
            training.state.stop("signal")
            training.hooks.on_summary(summary_now())
        training.loggers.fail(error)
        training.callbacks.on_exception(error)
        raise


def _nothing() -> None:
    """Undo nothing: losses are checked before they are used."""


def _undo(training: Training) -> Callable[[], None]:
    """Return a function that undoes steps taken before a loss was known not to be finite.

    Weights and optimizer return to their state at the call, until the best weights are put in.
    """
    model, optimizer = training.model, training.optimizer
    weights, memory = deepcopy(model.state_dict()), deepcopy(optimizer.state_dict())

    def undo() -> None:
        model.load_state_dict(weights)
        optimizer.load_state_dict(memory)

    return undo


def _run_info(training: Training, files: Persistence | NoPersistence, trains: bool) -> RunInfo:
    """Return what loggers are told before the first step."""
    place = training.hooks.place
    return RunInfo(
        method=training.method,
        round_index=place.round_index,
        config=training.settings.to_dict(),
        manifest=files.manifest,
        run_directory=files.path,
        first_step=place.first_step,
        first_iteration=place.first_iteration,
        epochs_done=training.state.epoch,
        max_epochs=training.budget - training.settings.train.sbi_compat,
        validated=training.state.validated,
        show_progress=place.show_progress,
        identity={**place.logged_to, **files.remembered},
        trains=trains,
    )


def _summary(
    training: Training, files: Persistence | NoPersistence, resumed_from: int, how: Report
) -> TrainingSummary:
    """Return the summary of a training that has ended."""
    state, history = training.state, training.state.history
    reason = state.stop_reason or "callback"
    known = {**training.hooks.place.manifest, **files.manifest}
    validation = training.hooks.place.manifest.get(VALIDATION_DATA)
    return TrainingSummary(
        method=training.method,
        epochs_trained=state.epoch,
        best_epoch=state.best_epoch,
        best_validation_loss=state.best_validation_loss,
        training_loss=tuple(history.training_loss),
        validation_loss=tuple(history.validation_loss),
        learning_rate=tuple(history.learning_rate),
        gradient_norm=tuple(history.gradient_norm),
        epoch_durations_sec=tuple(history.epoch_durations_sec),
        stage=history.stages,
        stop_reason=reason,
        stop_message=state.stop_message,
        complete=reason not in ("time_limit", "signal"),
        resumed_from_epoch=resumed_from,
        run_directory=None if files.path is None else str(files.path),
        device=str(training.device),
        executor=how.executor,
        executor_reason=how.reason,
        config=training.settings.to_dict(),
        validated=state.validated,
        metrics={name: tuple(v.items()) for name, v in history.metrics.items()},
        init_from=known.get(INIT_FROM),
        validation_set=None if validation is None else {"data": validation},
        world_size=training.world.size,
    )
