"""Make batches of a trainer's rows, in sbi's order or ours, for training and for validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sbi_ignite.bridge.arguments import Call
from sbi_ignite.bridge.lines import private
from sbi_ignite.bridge.split import changed_rows_error, holds_part
from sbi_ignite.data.in_memory import (
    BatchIndices,
    InMemoryBatches,
    OrderedBatches,
    SbiOrderBatches,
    ShuffledBatches,
)
from sbi_ignite.data.on_disk import OnDiskBatches
from sbi_ignite.data.table import TableRows, is_stored
from sbi_ignite.data.transfer import indexed, placed
from sbi_ignite.exceptions import ArgumentError, SbiIgniteError, SettingsError, WrongTypeError
from sbi_ignite.settings.redaction import shorten

_VALIDATION_ROWS = 1_024
_VALIDATION_ROWS_ON_CPU = 256
_VALIDATION_NUMBERS = 2**17
"""Maximum rows and numbers in a validation batch, unless training batches have more: small enough
for any memory, and large enough that Python's overhead between kernels does not matter. On a CPU,
intermediate results should fit its cache: an epoch of 10,000 rows took 2 to 5 % less than with
1,024."""

_MOST_VALIDATION_NUMBERS = 2**22
"""Numbers in a validation batch, as often as its loss repeats them, whatever the training batch: 16
MB, of which a network makes many times as much. FMPE repeats every row at ten times."""


def make_loaders(
    trainer: Any,
    call: Call,
    tensors: Sequence[Tensor],
    batch_size: int,
    validation_fraction: float,
    dataloader_kwargs: Mapping[str, Any] | None,
    validation: Sequence[Tensor] | None = None,
) -> tuple[Any, Any]:
    """Return batches over the trainer's split: in sbi's order, or every row and in a fixed order.

    Args:
        trainer: Has `train_indices` and `val_indices`.
        call: The call.
        tensors: Tensors that share their first dimension.
        batch_size: Rows in a batch, at most.
        validation_fraction: Share of the rows kept for validation.
        dataloader_kwargs: Users' arguments for torch's DataLoader; None slices batches by index.
        validation: Tensors of the user's own validation set, all rows of which are validated on;
            None takes the trainer's `val_indices` of `tensors`.
    """
    if is_stored(tensors):
        return _stored_loaders(trainer, call, tensors, batch_size, dataloader_kwargs, validation)
    train_rows, val_rows = trainer.train_indices, trainer.val_indices
    if holds_part(call):
        return _loaders_of_part(
            trainer, call, tensors, batch_size, dataloader_kwargs, validation is not None
        )
    device = indexed(private(trainer).device)
    if dataloader_kwargs is None:
        tensors = placed(tensors, device)
        validation = None if validation is None else placed(validation, device)
    held_out = tensors
    if validation is not None:
        held_out, val_rows = validation, torch.arange(len(validation[0]))
    if call.sbi_compat and validation is not None:
        train_size, val_size = min(batch_size, len(train_rows)), min(batch_size, len(val_rows))
        if dataloader_kwargs is not None:
            with refused_by_torch(dataloader_kwargs, call):
                return (
                    _sbis_loader(tensors, train_rows, train_size, dataloader_kwargs),
                    _sbis_loader(held_out, val_rows, val_size, dataloader_kwargs),
                )
        return _delivered_on(
            device,
            SbiOrderBatches(tensors, train_rows, train_size),
            SbiOrderBatches(held_out, val_rows, val_size),
        )
    if call.sbi_compat:
        # As in sbi, sizes follow the fraction even if the split is that of an earlier call.
        num_rows = (
            len(tensors[0]) if call.exclude_invalid_x is None else len(train_rows) + len(val_rows)
        )
        num_train = int((1 - validation_fraction) * num_rows)
        train = SbiOrderBatches(tensors, train_rows, min(batch_size, num_train))
        held_out_batches = SbiOrderBatches(tensors, val_rows, min(batch_size, num_rows - num_train))
        known = len(train_rows) + len(val_rows)
        if known != len(tensors[0]) and not (len(train) and len(held_out_batches)):
            raise changed_rows_error(known, len(tensors[0]))  # sbi divides by zero
        return _delivered_on(device, train, held_out_batches)
    train_size, val_size = min(batch_size, len(train_rows)), min(batch_size, len(val_rows))
    seed = _seed_of_the_order()
    if dataloader_kwargs is None:
        val_size = _validation_size(trainer, call, held_out, train_size, val_size, len(val_rows))
        return _delivered_on(
            device,
            ShuffledBatches(tensors, train_rows, train_size, seed),
            OrderedBatches(held_out, val_rows, val_size),
        )
    rows = TensorDataset(*tensors)
    said = {name: value for name, value in dataloader_kwargs.items() if value is not None}
    with refused_by_torch(said, call):
        return (
            _training_loader(rows, BatchIndices(train_rows, train_size, seed), said),
            _validation_loader(
                TensorDataset(*held_out), BatchIndices(val_rows, val_size, None), said
            ),
        )


def _loaders_of_part(
    trainer: Any,
    call: Call,
    tensors: Sequence[Tensor],
    batch_size: int,
    dataloader_kwargs: Mapping[str, Any] | None,
    has_validation: bool,
) -> tuple[Any, Any]:
    """Return batches over the rows that only this process has; see `make_loaders`."""
    origin = call.settings.origin("train.shards").where
    for name, unwanted in (
        ("sbi_compat", call.sbi_compat),
        ("dataloader_kwargs", dataloader_kwargs is not None),
        ("validation", has_validation),
    ):
        if unwanted:
            raise SettingsError(
                f"shards: expected processes that hold the same rows beside {name}, got "
                f"shards='own' from {origin}. Leave {name} out"
                f"{', and pass a TrainConfig' * (name == 'sbi_compat')}"
            )
    train_rows, val_rows = trainer.train_indices, trainer.val_indices
    device = indexed(private(trainer).device)
    tensors = placed(tensors, device)
    counts = call.world.sums(len(train_rows), len(val_rows))
    train_size, val_size = (min(batch_size, int(count)) for count in counts)
    val_size = _validation_size(trainer, call, tensors, train_size, val_size, int(counts[1]))
    # Each process orders its own rows: the same order would not pair them at random.
    (seed,) = np.random.SeedSequence((_seed_of_the_order(), call.world.rank)).generate_state(1)
    return _delivered_on(
        device,
        ShuffledBatches(tensors, train_rows, train_size, int(seed)),
        OrderedBatches(tensors, val_rows, val_size),
    )


def _stored_loaders(
    trainer: Any,
    call: Call,
    columns: Sequence[Any],
    batch_size: int,
    dataloader_kwargs: Mapping[str, Any] | None,
    validation: Sequence[Tensor] | None,
) -> tuple[Any, Any]:
    """Return batches over simulations in files; see `make_loaders`.

    In sbi's form, batches have sbi's sizes, and what does not fill one is left out; their order is
    ours.
    """
    if holds_part(call):
        raise SettingsError(
            "shards: expected processes that open the same files, of which each then reads a part "
            f"of every batch, got shards='own' from {call.settings.origin('train.shards')}. Leave "
            "it out"
        )
    table, seed = columns[0].table, _seed_of_the_order()
    train_rows, val_rows = trainer.train_indices, trainer.val_indices
    if validation is not None:
        val_rows = torch.arange(len(validation[0]))
    train_size, val_size = min(batch_size, len(train_rows)), min(batch_size, len(val_rows))
    said = {n: v for n, v in (dataloader_kwargs or {}).items() if v is not None}
    if said or (dataloader_kwargs is not None and not table.transforms):
        if table.transforms:
            raise ArgumentError(
                "dataloader_kwargs: expected none beside transform=, which draws every batch in "
                "this process, got "
                f"{shorten(said)}. Leave them out: batches are read in the "
                "background anyway."
            )
        with refused_by_torch(said, call):
            rows = TableRows(table)
            held_out = rows if validation is None else TensorDataset(*validation)
            return (
                _training_loader(rows, BatchIndices(train_rows, train_size, seed), said),
                _validation_loader(held_out, BatchIndices(val_rows, val_size, None), said),
            )
    if not call.sbi_compat:
        val_size = _validation_size(trainer, call, columns, train_size, val_size, len(val_rows))
    in_sbis_sizes = {"drop_last": call.sbi_compat, "name": "the simulations"}
    return (
        OnDiskBatches(table, train_rows, train_size, seed, **in_sbis_sizes),
        OnDiskBatches(table, val_rows, val_size, seed, shuffle=False, **in_sbis_sizes)
        if validation is None
        else OrderedBatches(validation, val_rows, val_size),
    )


@contextmanager
def refused_by_torch(dataloader_kwargs: Mapping[str, Any], call: Call) -> Iterator[None]:
    """Name the origin of the keywords if torch's DataLoader refuses them.

    Args:
        dataloader_kwargs: The keywords.
        call: The call, which knows their origin.

    Raises:
        WrongTypeError: If it does; this is a ValueError and a TypeError, as torch's errors are.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, SbiIgniteError):
            raise
        raise WrongTypeError(
            f"dataloader_kwargs: expected keywords that torch's DataLoader takes together, got "
            f"{shorten(dict(dataloader_kwargs))} from "
            f"{call.settings.origin('train.dataloader_kwargs')}; it says: {error}"
        ) from error


def _delivered_on(
    device: torch.device, train: InMemoryBatches, validation: InMemoryBatches
) -> tuple[InMemoryBatches, InMemoryBatches]:
    """Return batches for training and validation that are delivered on a device."""
    train.to(device)
    validation.to(device)
    return train, validation


def _seed_of_the_order() -> int:
    """Return a seed for the order of batches, derived from the global generator's state.

    The generator is left where sbi's loaders leave it, so that the network built next is the one
    that sbi builds. This matters: nflows permutes features at random between transforms, and with
    two parameters one flow in sixteen never permutes them, and is poor.
    """
    with torch.random.fork_rng(devices=[]):
        return int(torch.empty((), dtype=torch.int64).random_().item())


def _validation_size(
    trainer: Any,
    call: Call,
    tensors: Sequence[Any],
    train_size: int,
    val_size: int,
    num_rows: int,
) -> int:
    """Return how many rows to validate on at a time: many small ones or few large ones.

    Args:
        trainer: The trainer.
        call: The call, which has arguments for the loss.
        tensors: Tensors of the validation rows.
        train_size: Rows in a training batch.
        val_size: Rows in a validation batch where the loss of a row may depend on their number.
        num_rows: Rows for validation.
    """
    own = private(trainer)
    met = call.family.rows_met(call.keywords, own.round_index == 0)
    if not own.loss_is_sbis_own or met is None or train_size < met:
        return val_size
    repeats = call.family.repeats(call.keywords)
    rows = _large_batch(tensors, val_size, indexed(own.device), repeats)
    return min(max(met, rows), num_rows)


def _large_batch(
    tensors: Sequence[Any], batch_size: int, device: torch.device, repeats: int = 1
) -> int:
    """Return how many rows to validate on at a time, as far as their size decides."""
    numbers = sum(tensor[0].numel() for tensor in tensors)
    rows = _VALIDATION_ROWS_ON_CPU if device.type == "cpu" else _VALIDATION_ROWS
    many = max(batch_size, min(rows, _VALIDATION_NUMBERS // numbers))
    return max(1, min(many, _MOST_VALIDATION_NUMBERS // (numbers * repeats)))


_ABOUT_BATCHES = frozenset({"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"})
"""Arguments of torch's DataLoader that decide which rows a batch has."""


def _training_loader(
    dataset: Dataset[Any], indices: BatchIndices, said: Mapping[str, Any]
) -> DataLoader[Any]:
    """Return a DataLoader with users' arguments, by default over every row in even batches.

    Rows are shuffled unless a sampler or `shuffle=False` says otherwise. Row numbers of samplers
    are positions among the training rows.
    """
    if _ABOUT_BATCHES & set(said):
        subset = torch.utils.data.Subset(dataset, indices.indices.tolist())
        if "batch_sampler" in said:
            return DataLoader(subset, **said)
        order = {} if "sampler" in said else {"shuffle": True}
        return DataLoader(subset, **{"batch_size": indices.batch_size, **order, **said})
    return EvenLoader(dataset, batch_sampler=indices, **said)


def _validation_loader(
    dataset: Dataset[Any], indices: BatchIndices, said: Mapping[str, Any]
) -> DataLoader[Any]:
    """Return a DataLoader of every validation row in a fixed order, with users' other arguments."""
    size = min(said.get("batch_size") or indices.batch_size, len(indices.indices))
    others = {name: value for name, value in said.items() if name not in _ABOUT_BATCHES}
    indices = BatchIndices(indices.indices, size, None)
    return EvenLoader(dataset, batch_sampler=indices, **others)


def _sbis_loader(
    tensors: Sequence[Tensor], rows: Tensor, batch_size: int, dataloader_kwargs: Mapping[str, Any]
) -> DataLoader[Any]:
    """Return a DataLoader over some rows as sbi makes them, in random order without the rest."""
    sampler = torch.utils.data.SubsetRandomSampler(rows.tolist())
    own = {"batch_size": batch_size, "drop_last": True, "sampler": sampler}
    return DataLoader(TensorDataset(*tensors), **{**own, **dataloader_kwargs})


class EvenLoader(DataLoader[Any]):
    """A DataLoader with our batch sampler that still has a batch size, which sbi's NRE asks for."""

    @property
    def batch_size(self) -> int:
        """Rows of a full batch, where torch itself has None."""
        return self.batch_sampler.batch_size  # type: ignore[union-attr] # see `_training_loader`

    @batch_size.setter
    def batch_size(self, value: int | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Leave the size to the sampler."""
