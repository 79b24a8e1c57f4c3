"""Split a trainer's simulations into rows for training and rows for validation."""

from __future__ import annotations

import logging as python_logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_ignite.bridge.arguments import Call
from sbi_ignite.bridge.memory import memory_of
from sbi_ignite.data.split import bootstrapped, check_split, split_rows
from sbi_ignite.exceptions import DataError
from sbi_ignite.world import ONE

_ROWS_TO_MEASURE = 2
"""Minimum of training rows for sbi's networks, which standardize data by their deviation."""

_CHUNK = 2**18
"""Numbers to process in one go, so that intermediate results stay small."""

_logger = python_logging.getLogger("sbi_ignite.data")


def split(
    trainer: Any,
    call: Call,
    x: Tensor,
    validation_fraction: float,
    keep: bool = False,
    validation: Sequence[Tensor] | None = None,
) -> None:
    """Set `train_indices` and `val_indices` of a trainer.

    Args:
        trainer: The trainer.
        call: The call, which determines whether rows with NaN or Inf in x are dropped.
        x: Simulated data, shape (num_rows, ...).
        validation_fraction: Share of the rows kept for validation.
        keep: Keep the split of an earlier call.
        validation: The user's own validation set, beside which all valid rows are trained on.
    """
    rows = valid_rows(x, call.exclude_invalid_x)
    # A script that always passes resume_training=True must be able to start.
    by_the_call = call.settings.origin("train.resume_training").source == "call"
    keep = keep and ((call.sbi_compat and by_the_call) or hasattr(trainer, "train_indices"))
    at_least, origin = call.method.rows_needed, call.settings.origin("train.validation_fraction")
    in_parts = holds_part(call)
    if validation is not None and not keep:
        # One draw, as for a split, so that the network built next is the same one.
        trainer.train_indices, trainer.val_indices = rows[torch.randperm(len(rows))], rows[:0]
    elif not keep:
        # A default fraction adapts to few rows; an explicit one, or sbi's form, does not.
        adapts = not call.sbi_compat and origin.source == "default"
        counts = call.world.gather(len(rows)) if in_parts else [len(rows)]
        every = torch.arange(sum(counts)) if in_parts else rows
        seeds = memory_of(trainer).row_seeds
        generator = None if seeds is None else torch.Generator().manual_seed(seeds.split)
        chosen = split_rows(every, validation_fraction, at_least if adapts else 0, generator)
        if in_parts:
            begin = sum(counts[: call.world.rank])
            chosen = tuple(_part_of(chosen_rows, rows, begin) for chosen_rows in chosen)
        trainer.train_indices, trainer.val_indices = chosen
        if seeds is not None and seeds.bootstrap is not None and len(trainer.train_indices):
            trainer.train_indices = bootstrapped(trainer.train_indices, seeds.bootstrap)
    sizes = len(trainer.train_indices), len(trainer.val_indices)
    if keep and not call.sbi_compat and sum(sizes) != len(rows):
        raise changed_rows_error(sum(sizes), len(rows))
    if in_parts:
        first, second = call.world.sums(*sizes)
        sizes = int(first), int(second)
    at_least_train = 0 if call.sbi_compat else _ROWS_TO_MEASURE
    if validation is not None:
        sizes = sizes[0], len(validation[0])
        _check_training_rows(sizes[0], max(at_least, at_least_train))
        _check_batch_size(call, *sizes)
        return
    check_split(*sizes, at_least, validation_fraction, origin.where, at_least_train)
    _check_batch_size(call, *sizes)


def _check_training_rows(num_train: int, at_least: int) -> None:
    if num_train < at_least:
        raise DataError(
            f"The training set would have {num_train} simulations beside the given validation set, "
            f"expected at least {at_least}. Add simulations."
        )


def holds_part(call: Call) -> bool:
    """Return whether this process holds a part of the rows that no other process has."""
    return call.world is not ONE and call.settings.train.shards == "own"


def num_train_rows(trainer: Any, call: Call) -> int:
    """Return the number of rows for training, over all processes."""
    own = len(trainer.train_indices)
    return int(call.world.sums(own)[0]) if holds_part(call) else own


def _part_of(chosen: Tensor, rows: Tensor, begin: int) -> Tensor:
    """Return which of a process's rows are among those chosen from the rows of all processes.

    Args:
        chosen: Numbers among all rows, in which those of processes follow each other.
        rows: Row numbers in this process.
        begin: Number of its first row among all.
    """
    own = (chosen >= begin) & (chosen < begin + len(rows))
    return rows[chosen[own] - begin]


def valid_rows(x: Tensor, exclude_invalid_x: bool | None) -> Tensor:
    """Return the indices of the rows that may be trained on, shape (num_rows,)."""
    rows = torch.arange(len(x))
    if exclude_invalid_x is None:
        return rows
    valid = torch.cat([chunk.isfinite().all(dim=1) for chunk in chunks_of_rows(x)]).cpu()
    invalid = rows[~valid]
    if len(invalid) == 0:
        return rows
    shown = ", ".join(map(str, invalid[:10].tolist())) + (", ..." if len(invalid) > 10 else "")
    if not exclude_invalid_x:
        raise DataError(
            f"{len(invalid)} of {len(x)} simulations have NaN or Inf in x (rows {shown}), and "
            "exclude_invalid_x=False forbids to drop them. Repair them, or pass True to leave them "
            "out; or leave exclude_invalid_x unset to train on what append_simulations has kept, "
            "such as trials that are padded with NaN on purpose."
        )
    _logger.warning(
        "%d of %d simulations have NaN or Inf in x and are left out of training.",
        len(invalid),
        len(x),
    )
    return rows[valid]


def chunks_of_rows(tensor: Tensor, rows: Tensor | None = None) -> Iterator[Tensor]:
    """Yield chunks of rows, each row flattened: shape (num_in_chunk, numbers).

    Args:
        tensor: Shape (num_rows, ...).
        rows: Row indices, in the order to yield them; None for all.
    """
    count = len(tensor) if rows is None else len(rows)
    size = max(1, _CHUNK // max(1, tensor[:1].numel()))
    for begin in range(0, max(1, count), size):
        now = slice(begin, begin + size)
        chunk = tensor[now if rows is None else rows[now]]
        yield chunk.flatten(1) if chunk.ndim > 1 else chunk[:, None]


def _check_batch_size(call: Call, num_train: int, num_validation: int) -> None:
    """Refuse an explicit batch size that the data cannot fill; sbi clamps it."""
    batch_size, origin = call.settings.train.batch_size, call.settings.origin("train.batch_size")
    if call.sbi_compat or origin.source == "default":
        return
    if batch_size <= num_train:
        # Batches are as equal in size as possible, so some have one row less than asked for.
        smallest = min(n // -(-n // min(batch_size, n)) for n in (num_train, num_validation))
        if smallest >= call.method.rows_needed:
            return
        raise DataError(
            f"batch_size={batch_size} ({origin.where}) cuts {num_train} training and "
            f"{num_validation} validation rows into batches of {smallest} and more, expected at "
            f"least {call.method.rows_needed} rows in each, because the loss of "
            f"{type(call.trainer).__name__} sets rows of a batch against each other. Take a larger "
            "batch_size, or leave it out: the default adapts to the data."
        )
    raise DataError(
        f"batch_size={batch_size} ({origin.where}) is larger than the {num_train} training rows. "
        f"Take at most {num_train}, or leave it out: the default adapts to the data."
    )


def changed_rows_error(before: int, now: int) -> DataError:
    """Return the error for a resumed training whose simulations have become more."""
    return DataError(
        f"resume_training=True continues on the {before} rows of the earlier call, but "
        f"there are {now} now. Train without it to use all, or resume before appending."
    )
