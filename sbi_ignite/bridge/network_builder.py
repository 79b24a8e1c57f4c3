"""Let sbi build a trainer's network with few copies of the simulations.

sbi passes all training rows to the function that builds the network, which copies them several
times. If that function only takes means and standard deviations from many rows, it gets rows that
are copied once, and in the typed form fewer of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sbi_ignite.bridge.arguments import Call
from sbi_ignite.bridge.lines import UndescribableError, describe_builder, private
from sbi_ignite.bridge.memory import memory_of
from sbi_ignite.bridge.networks import describe_network
from sbi_ignite.bridge.ownership import is_sbis_own
from sbi_ignite.bridge.split import chunks_of_rows, holds_part
from sbi_ignite.data.lean_rows import LeanRows
from sbi_ignite.data.statistics import RowsInUse, plain_rows
from sbi_ignite.data.table import is_stored
from sbi_ignite.freed_memory import return_freed_memory
from sbi_ignite.world import World

ALL_ROWS_UP_TO = 2**23
"""Numbers in theta or x for training up to which every builder sees all rows."""

FEW_NUMBERS = 2**22
FEW_ROWS = 2**14
"""Beyond that, a builder sees only as many rows as hold this many numbers, but at least this many.

The mean of n rows is off by 1 / sqrt(n) of the standard deviation: here by at most 1 in 128, which
does not matter to a network after z-scoring.
"""

TOLERANCE = 0.05
"""How far means and standard deviations of few rows may be off, in standard deviations of all.

Chance alone stays below this (6 errors of the mean); rare large values, or columns that are
constant except in a few rows, do not, and then the builder sees all rows.
"""

_OF_STATISTICS_ALONE = frozenset(
    {
        *("build_mdn", "build_made", "build_maf", "build_maf_rqs", "build_nsf"),
        *("build_linear_classifier", "build_mlp_classifier", "build_resnet_classifier"),
        "build_vector_field_estimator",
    }
)
"""Functions of sbi that use the rows for z-scoring and for nothing else.

All whose names begin with build_zuko_ belong to them as well. Mixed estimators count categories,
and tabpfn keeps the rows as its context.
"""


@contextmanager
def lean_building(trainer: Any, call: Call) -> Iterator[None]:
    """Make sbi build the network without copies while a call is carried out.

    Args:
        trainer: The trainer that was called.
        call: The call.
    """

    def build(by_sbi: Callable[..., None], retrain_from_scratch: bool, start_idx: int) -> None:
        _build(trainer, call, by_sbi, retrain_from_scratch, start_idx)

    with private(trainer).initializing_by(build):
        yield


def rows_for_builder(trainer: Any, call: Call, tensors: Sequence[Tensor]) -> Tensor:
    """Return indices of training rows from which the network can be built, shape (num_rows,).

    The split has shuffled the training rows, so the first ones are as good as any, and no random
    numbers are drawn.

    Args:
        trainer: Has `train_indices` and a builder.
        call: The call.
        tensors: theta (num_rows, ...) and x (num_rows, ...).
    """
    rows = trainer.train_indices
    largest = max((tensor[:1].numel() for tensor in tensors), default=0)
    few = max(FEW_NUMBERS // max(1, largest), FEW_ROWS)
    if (
        call.sbi_compat
        or len(rows) * largest <= ALL_ROWS_UP_TO
        or few >= len(rows)
        or not is_sbis_own(trainer, "get_dataloaders")  # it may not shuffle
        or not _takes_statistics_alone(private(trainer).builder)
    ):
        return rows
    return rows[:few]


def _build(
    trainer: Any,
    call: Call,
    build: Callable[..., None],
    retrain_from_scratch: bool,
    start_idx: int,
) -> None:
    """Do what sbi's own `build` does, and show few rows to it if that is enough."""
    if private(trainer).network is not None and not retrain_from_scratch:
        build(retrain_from_scratch, start_idx)
        return
    tensors = private(trainer).simulations(start_idx)
    if is_stored(tensors):
        samples = _samples_of(trainer, tensors)
        few = torch.arange(len(samples[0]))
        masks = torch.ones(len(few), 1, dtype=torch.bool)
        with holding(
            trainer,
            train_indices=few,
            get_simulations=lambda starting_round=0: (*samples, masks),
        ):
            build(retrain_from_scratch, start_idx)
        return
    all_rows = trainer.train_indices
    few = rows_for_builder(trainer, call, tensors[:2])
    if few is not all_rows and not all(_tells_the_same(t, few, all_rows) for t in tensors[:2]):
        few = all_rows
    if holds_part(call):
        tensors, few = rows_like_all(call.world, tensors, all_rows)
    tensors = tuple(as_lean(trainer, tensor) for tensor in tensors)
    with holding(trainer, train_indices=few, get_simulations=lambda starting_round=0: tensors):
        build(retrain_from_scratch, start_idx)
    if any(tensor.numel() > ALL_ROWS_UP_TO for tensor in tensors):
        return_freed_memory()


def rows_like_all(
    world: World, tensors: Sequence[Tensor], rows: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return rows that tell a builder about the rows of all processes, the same in all of them.

    A few rows of each process are put together, and each column is scaled to the mean and the
    standard deviation of all rows. Columns of whole numbers, such as categories, stay as they are.

    Args:
        world: The processes, each with rows of its own.
        tensors: Tensors that share their first dimension.
        rows: The rows for training, in this process.

    Returns:
        Tensors of the same kinds, and the numbers of their rows.
    """
    largest = max(max(1, tensor[:1].numel()) for tensor in tensors)
    few = rows[: max(FEW_ROWS, FEW_NUMBERS // largest) // world.size]
    total = int(world.sums(len(rows))[0])
    found = []
    for tensor in tensors:
        gathered = world.gather_rows(tensor[few].cpu())
        if gathered.is_floating_point() and len(gathered) < total:
            gathered = _scaled_like_all(world, gathered, tensor, rows)
        found.append(gathered)
    return tuple(found), torch.arange(len(found[0]))


def _scaled_like_all(world: World, some: Tensor, tensor: Tensor, rows: Tensor) -> Tensor:
    """Return rows with the columns' mean and standard deviation over all processes."""
    flat = some.reshape(len(some), -1).double()
    whole = (flat == flat.round()).all(dim=0)
    first = flat[0]
    sums = torch.zeros(2, flat.shape[1], dtype=torch.float64)
    for chunk in chunks_of_rows(tensor, rows):
        off = chunk.cpu().double() - first
        sums += torch.stack([off.sum(dim=0), off.square().sum(dim=0)])
    count = world.sums(len(rows))[0]
    total, squares = world.add(sums) / count
    std = (squares - total.square()).clamp(min=0).sqrt() * (count / (count - 1)) ** 0.5
    own_std, own_mean = flat.std(dim=0), flat.mean(dim=0)
    factor = torch.where(own_std > 0, std / own_std, 1.0)
    scaled = (flat - own_mean) * factor + first + total
    return torch.where(whole, flat, scaled).to(some.dtype).reshape(some.shape)


def _samples_of(trainer: Any, columns: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return few rows of simulations in files that answer for all training rows."""
    samples = RowsInUse(columns[0].table, trainer.train_indices).few_rows()
    memory_of(trainer).few_rows = plain_rows(samples)
    return samples


def rows_for_marginal(trainer: Any, x: Any) -> Tensor:
    """Return the training rows of x from which the network of a MarginalTrainer is built.

    Args:
        trainer: Has `train_indices`.
        x: Data, shape (num_rows, ...), in memory or in files.
    """
    if is_stored((x,)):
        return _samples_of(trainer, (x,))[0]
    return as_lean(trainer, x)[trainer.train_indices].to("cpu")


def as_lean(trainer: Any, rows: Tensor) -> Tensor:
    """Return rows of which a builder that takes statistics alone makes no copies.

    Args:
        trainer: Has a builder, which gets some of the rows, on the host.
        rows: Shape (num_rows, ...).
    """
    return LeanRows.of(rows) if _sees_statistics_alone(private(trainer).builder) else rows


def batches_for_builder(
    trainer: Any, call: Call, tensors: Sequence[Tensor] | None
) -> tuple[Tensor, ...]:
    """Return what a builder is called with, from which the network can be described.

    Args:
        trainer: Has `train_indices` and a builder.
        call: The call.
        tensors: theta and x, or x alone; None for simulations in files.
    """
    if tensors is not None:
        # Masks come third and do not concern a builder, which sees only training rows.
        rows = rows_for_builder(trainer, call, tensors[:2])
        return tuple(tensor[rows] for tensor in tensors[:2])
    memory = memory_of(trainer)
    if memory.few_rows is None and is_stored(columns := private(trainer).stored_columns):
        _samples_of(trainer, columns)
    found, memory.few_rows = tuple(memory.few_rows or ()), None
    return found


@contextmanager
def holding(trainer: Any, **values: Any) -> Iterator[None]:
    """Give a trainer attributes inside the block.

    Args:
        trainer: The trainer.
        **values: The attributes.
    """
    before = {name: vars(trainer)[name] for name in values if name in vars(trainer)}
    vars(trainer).update(values)
    try:
        yield
    finally:
        for name in values:
            del vars(trainer)[name]
        vars(trainer).update(before)


def _sees_statistics_alone(build: Any) -> bool:
    """Return whether a builder is sbi's own, and all but the embeddings use data for z-scoring.

    It asks an embedding for its output for a single row.
    """
    try:
        function = describe_builder(build).function
    except UndescribableError:
        return False
    return _is_of_statistics_alone(function)


def _takes_statistics_alone(build: Any) -> bool:
    """Return whether a builder and its parts are sbi's own and use data for z-scoring only."""
    description = describe_network(build)["builder"]
    if description is None:
        return False
    return _is_of_statistics_alone(description["function"])


def _is_of_statistics_alone(function: str) -> bool:
    return function in _OF_STATISTICS_ALONE or function.startswith("build_zuko_")


def _tells_the_same(tensor: Tensor, few: Tensor, rows: Tensor) -> bool:
    """Return whether a few rows give the mean and standard deviation of every column."""
    some_mean, some_std = _mean_and_std(tensor, few)
    mean, std = _mean_and_std(tensor, rows)
    # Written so that NaN gives False.
    close = ((some_mean - mean).abs() <= TOLERANCE * std) & (
        (some_std - std).abs() <= TOLERANCE * std
    )
    return bool(close.all())


def _mean_and_std(tensor: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every column, both of shape (num_columns,).

    Both are computed relative to the first row, so that constant columns give exactly zero.
    """
    first = tensor[rows[0]].reshape(-1).double()
    total, squares = torch.zeros_like(first), torch.zeros_like(first)
    for chunk in chunks_of_rows(tensor, rows):
        off = chunk.double() - first
        total += off.sum(dim=0)
        squares += off.square_().sum(dim=0)
    mean = total / len(rows)
    return mean, (squares / len(rows) - mean.square()).clamp(min=0).sqrt()
