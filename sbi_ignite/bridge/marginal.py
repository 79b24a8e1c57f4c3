"""Carry out a `.train()` call of sbi's MarginalTrainer, which estimates the marginal p(x).

sbi's MarginalTrainer has its own loop inside `train()`, so here the whole method is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_ignite.bridge.arguments import Call, parse_call
from sbi_ignite.bridge.batches import make_loaders
from sbi_ignite.bridge.fit import fit, refuse_nested_training
from sbi_ignite.bridge.lines import check_sbi, private
from sbi_ignite.bridge.losses import loss_of
from sbi_ignite.bridge.network_builder import rows_for_marginal, rows_like_all
from sbi_ignite.bridge.options import check_call
from sbi_ignite.bridge.ownership import is_sbis_own
from sbi_ignite.bridge.sbi_summary import close_books, interruption_shown, say_how_it_ended
from sbi_ignite.bridge.split import holds_part, num_train_rows, split
from sbi_ignite.bridge.train import check_simulations, prepare
from sbi_ignite.bridge.validation_set import own_validation
from sbi_ignite.concurrency import training_in_this_thread
from sbi_ignite.data.foreign import as_batches
from sbi_ignite.data.shards import check_same_rows
from sbi_ignite.data.table import is_stored
from sbi_ignite.exceptions import ArgumentError, DataError
from sbi_ignite.training.recipe import filled_in
from sbi_ignite.training.run import world_of


def train(
    trainer: Any, sbi_train: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Carry out one call of `MarginalTrainer.train()`.

    Args:
        trainer: The trainer that was called.
        sbi_train: sbi's own `train`, for its signature.
        args: Positional arguments.
        kwargs: Keyword arguments, sbi's and ours.

    Returns:
        The unconditional density estimator, with the best weights in it.
    """
    refuse_nested_training(trainer)
    check_sbi()
    call = parse_call(trainer, sbi_train, args, kwargs)
    check_simulations(trainer)
    trainer.append_samples(as_samples(trainer.get_samples()))
    check_call(trainer, call)
    config = call.settings.train
    world = world_of(config, config.device or private(trainer).device)
    with world.taking_part(), training_in_this_thread():
        return carry_out(trainer, replace(call, world=world))


def as_samples(x: Any) -> Any:
    """Return samples as a tensor that sbi can train on, or as they are if they lie in files.

    sbi's own `append_samples` takes anything, and fails later.

    Args:
        x: Samples, shape (num_rows, dim_x): a tensor or an array of numbers. Arrays, and tensors of
            whole numbers, are converted to torch's default type.

    Raises:
        ArgumentError: If it is neither.
        DataError: If it has another shape.
    """
    if is_stored((x,)):
        return x
    if not isinstance(x, Tensor):
        try:
            values = np.asarray(x)
        except ValueError:  # rows of several lengths
            values = np.asarray(None)
        if values.dtype.kind not in "fiub":
            raise ArgumentError(
                "append_samples(x): expected a tensor or an array of numbers, of shape (num_rows, "
                f"dim_x), got {type(x).__name__}."
            )
        x = torch.as_tensor(values, dtype=torch.get_default_dtype())
    if x.ndim < 2:
        one_number = "" if x.ndim == 0 else " One number per row is x[:, None], one row is x[None]."
        raise DataError(
            "append_samples(x): expected shape (num_rows, dim_x), got shape "
            f"{tuple(x.shape)}.{one_number}"
        )
    if not x.is_floating_point():
        x = x.to(torch.get_default_dtype())
    return x


def carry_out(trainer: Any, call: Call) -> Any:
    """Carry out a call that has been parsed and checked."""
    prepare(trainer, call.settings)
    call.world.share_random_states()
    own = private(trainer)
    own.begin_marginal()

    call, train_loader, val_loader = _loaders(trainer, call)
    config = call.settings.train
    if own.network is None:
        samples = trainer.get_samples()
        if holds_part(call):
            (samples,), rows = rows_like_all(call.world, (samples,), trainer.train_indices)
            own.build_marginal(samples[rows].to("cpu"))
        else:
            own.build_marginal(rows_for_marginal(trainer, samples))
    loss = loss_of(trainer, None, config.sbi_compat)
    with interruption_shown(trainer, call):
        fit(trainer, call, loss, train_loader, val_loader)
    if call.world.rank:
        pass  # the first process says it
    elif not config.sbi_compat:
        say_how_it_ended(trainer, call)
    else:
        own.report_marginal_end(config.max_epochs)
    close_books(trainer, config, says=call.world.rank == 0)
    return own.network


def _loaders(trainer: Any, call: Call) -> tuple[Call, Any, Any]:
    """Return batches of x for training and validation, and the call, its recipe filled in."""
    config = call.settings.train
    kwargs = config.dataloader_kwargs
    own_set, stored = call.validation is not None, bool(private(trainer).stored_columns)
    as_in_sbi = call.sbi_compat and kwargs is not None and not stored and not own_set
    if not is_sbis_own(trainer, "get_dataloaders") or as_in_sbi:
        loaders = trainer.get_dataloaders(
            config.batch_size,
            config.validation_fraction,
            dataloader_kwargs=None if kwargs is None else dict(kwargs),
        )
        return replace(call, settings=filled_in(call.settings, as_batches(loaders[0]))), *loaders
    x = trainer.get_samples()
    validation = own_validation(trainer, call, (x,))
    if config.shards == "same" and not stored:
        check_same_rows(call.world, (x, *(validation or ())), "the samples")
    split(trainer, call, x, config.validation_fraction, validation=validation)
    call = call.with_recipe(num_train_rows(trainer, call))
    size = call.settings.train.batch_size
    loaders = make_loaders(
        trainer, call, (x,), size, config.validation_fraction, kwargs, validation
    )
    return call, *loaders
