"""Carry out a `.train()` call of an sbi trainer.

sbi's own `train()` still prepares everything (start index, network, loss arguments) and calls two
methods that are replaced here: `get_dataloaders` and `_run_training_loop`. What the call asked for
beyond sbi's keywords reaches them through a context variable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from ignite.utils import manual_seed

from sbi_ignite.bridge.arguments import Call, parse_call
from sbi_ignite.bridge.batches import make_loaders, refused_by_torch
from sbi_ignite.bridge.fit import fit, meeting_others, refuse_nested_training
from sbi_ignite.bridge.lines import check_sbi, private
from sbi_ignite.bridge.losses import loss_of
from sbi_ignite.bridge.memory import memory_of
from sbi_ignite.bridge.network_builder import lean_building
from sbi_ignite.bridge.options import check_call
from sbi_ignite.bridge.sbi_summary import interruption_shown, report_end
from sbi_ignite.bridge.split import num_train_rows, split
from sbi_ignite.bridge.validation_set import own_validation
from sbi_ignite.concurrency import training_in_this_thread
from sbi_ignite.data.foreign import as_batches
from sbi_ignite.data.shards import check_same_rows
from sbi_ignite.data.table import is_stored
from sbi_ignite.exceptions import NonFiniteLossError, NoSimulationsError, SbiIgniteError
from sbi_ignite.settings import Resolved
from sbi_ignite.training.options import checked_device
from sbi_ignite.training.recipe import filled_in
from sbi_ignite.training.run import world_of
from sbi_ignite.world import local_card

_current: ContextVar[Call | None] = ContextVar("sbi_ignite_call", default=None)


def train(
    trainer: Any, sbi_train: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Carry out one call of `.train()`.

    Args:
        trainer: The trainer that was called.
        sbi_train: sbi's own `train` function of its class.
        args: Positional arguments.
        kwargs: Keyword arguments, sbi's and ours.

    Returns:
        What sbi's `train()` returns: the estimator, with the best weights in it.
    """
    refuse_nested_training(trainer)
    if active_call(trainer) is not None:
        return sbi_train(trainer, *args, **kwargs)
    check_sbi()
    call = parse_call(trainer, sbi_train, args, kwargs)
    check_simulations(trainer)
    check_call(trainer, call)
    return carry_out(trainer, sbi_train, call)


def carry_out(trainer: Any, sbi_train: Callable[..., Any], call: Call) -> Any:
    """Carry out a call that has been parsed and checked."""
    config = call.settings.train
    world = world_of(config, config.device or private(trainer).device)
    call = replace(call, world=world)
    with (
        world.taking_part(),
        training_in_this_thread(),
        _activated(call),
        _undone_if_refused(trainer),
        lean_building(trainer, call),
    ):
        prepare(trainer, call.settings)
        world.share_random_states()
        return sbi_train(trainer, **call.keywords)


@contextmanager
def _undone_if_refused(trainer: Any) -> Iterator[None]:
    """Take back the network of a call that is refused before its first step.

    Otherwise sbi refuses the corrected call, because the network "has already been trained".
    """
    own = private(trainer)
    is_new = own.network is None
    try:
        yield
    except SbiIgniteError as error:
        state = memory_of(trainer).state
        has_trained = state is not None and state.iteration > 0
        if is_new and not has_trained and not isinstance(error, NonFiniteLossError):
            own.forget_network()
        raise


def active_call(trainer: Any) -> Call | None:
    """Return the call that this trainer is carrying out, if any."""
    call = _current.get()
    return call if call is not None and call.trainer is trainer else None


@contextmanager
def _activated(call: Call) -> Iterator[None]:
    """Make the call available to the replaced methods."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)


def check_simulations(trainer: Any) -> None:
    """Refuse to train without simulations."""
    if not private(trainer).has_simulations:
        raise NoSimulationsError(
            f"No simulations found. {type(trainer).__name__}.train() needs data: call "
            f".{private(trainer).append_call} first."
        )


def prepare(trainer: Any, settings: Resolved) -> None:
    """Seed and move the trainer as the settings ask.

    In the typed form, simulations that require gradients become constants. sbi fails on them.

    Raises:
        SettingsError: If there is no such device.
    """
    config = settings.train
    if not config.sbi_compat:
        private(trainer).detach_simulations()
    if config.device is not None:
        checked_device(config.device, settings.origin("train.device"))
    if config.seed is not None:
        manual_seed(config.seed)
    if config.device is not None:
        device = config.device if config.shards == "alone" else local_card(config.device)
        private(trainer).move_to(str(device))


def get_dataloaders(
    trainer: Any,
    sbi_get_dataloaders: Callable[..., Any],
    starting_round: int = 0,
    training_batch_size: int = 200,
    validation_fraction: float = 0.1,
    resume_training: bool = False,
    dataloader_kwargs: dict[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Return batches of training and validation data; outside `.train()`, sbi's own loaders."""
    call = active_call(trainer)
    if call is None:
        return sbi_get_dataloaders(
            trainer,
            starting_round,
            training_batch_size,
            validation_fraction,
            resume_training,
            dataloader_kwargs,
        )
    tensors = private(trainer).simulations(starting_round)
    validation = own_validation(trainer, call, tensors)
    if call.settings.train.shards == "same" and not is_stored(tensors):
        check_same_rows(call.world, (*tensors, *(validation or ())), "the simulations")
    split(trainer, call, tensors[1], validation_fraction, resume_training, validation)
    if call.settings.awaits_recipe:
        call = call.with_recipe(num_train_rows(trainer, call))
        _current.set(call)
        training_batch_size = call.settings.train.batch_size
    if dataloader_kwargs is None and not private(trainer).keeps_loaders_to_itself:
        dataloader_kwargs = {}  # torch's own loaders, which a user's method may expect
    as_in_sbi = call.sbi_compat and validation is None and not is_stored(tensors)
    if as_in_sbi and dataloader_kwargs is not None:
        # Splits as it stands: the indices have just been drawn.
        with refused_by_torch(dataloader_kwargs, call):
            return sbi_get_dataloaders(
                trainer,
                starting_round,
                training_batch_size,
                validation_fraction,
                True,
                dataloader_kwargs,
            )
    return make_loaders(
        trainer,
        call,
        tensors,
        training_batch_size,
        validation_fraction,
        dataloader_kwargs,
        validation,
    )


def run_training_loop(
    trainer: Any,
    train_loader: Any,
    val_loader: Any,
    train_config: Any,
    loss_args: Any = None,
    summarization_kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Train a trainer's network where sbi would run its loop.

    Args:
        trainer: One of sbi's trainers.
        train_loader: Batches of training data.
        val_loader: Batches of validation data.
        train_config: sbi's own configuration.
        loss_args: sbi's own loss arguments.
        summarization_kwargs: sbi's arguments for the summary of an epoch.

    Returns:
        The trained network.
    """
    call = active_call(trainer) or _implied_call(trainer, train_config)
    # Not filled in yet if a user's own get_dataloaders made the loaders.
    call = replace(call, settings=filled_in(call.settings, as_batches(train_loader)))
    loss = loss_of(trainer, loss_args, call.sbi_compat, meeting_others(call, train_loader))
    with interruption_shown(trainer, call):
        fit(trainer, call, loss, train_loader, val_loader, loss_args, summarization_kwargs or {})
    report_end(trainer, call)
    return private(trainer).network


def _implied_call(trainer: Any, train_config: Any) -> Call:
    """Return the call that a user's own `train()` stands for, when it runs sbi's loop directly."""
    keywords = dict(vars(train_config))

    def everything(
        self: Any,
        training_batch_size: Any,
        learning_rate: Any,
        validation_fraction: Any,
        stop_after_epochs: Any,
        max_num_epochs: Any,
        resume_training: Any,
        retrain_from_scratch: Any,
        show_train_summary: Any,
        clip_max_norm: Any,
    ) -> None:
        """Stand in for a train() that has every keyword of sbi's configuration."""

    return parse_call(trainer, everything, (), keywords)
