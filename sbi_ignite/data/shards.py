"""Share batches out among the processes that train together, and compare what they hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sbi_ignite.data.fingerprint import fingerprint_data
from sbi_ignite.data.source import Batches
from sbi_ignite.exceptions import DataError
from sbi_ignite.world import World


def sharded(world: World, batches: Batches, own: bool) -> Batches:
    """Return one process's share of batches.

    Args:
        world: The processes, more than one.
        batches: In all processes the same batches, or in each its own part of every batch.
        own: Which of the two.

    Raises:
        DataError: If they are not the same, or the parts have different numbers of batches.
    """
    if own:
        lengths = world.gather(len(batches))
        if len(set(lengths)) > 1:
            raise DataError(
                f'{batches.name}: shards="own" expects the same number of batches in every '
                f"process, each with its own part of the rows, got {_by_rank(lengths)}."
            )
        return batches
    known = (len(batches), batches.fingerprint())
    _require_same(world, known, batches.name, "batches or rows")
    return batches.shard(world.rank, world.size)


def check_same_rows(world: World, tensors: Sequence[Tensor], name: str) -> None:
    """Refuse rows that differ between processes.

    Args:
        world: The processes.
        tensors: The rows.
        name: What users call them.

    Raises:
        DataError: If they differ; the message says in which processes.
    """
    if world.size > 1:
        _require_same(world, fingerprint_data(tensors), name, "rows")


def _require_same(world: World, known: Any, name: str, what: str) -> None:
    found = world.gather(known)
    groups: dict[str, list[int]] = defaultdict(list)
    for rank, value in enumerate(found):
        groups[repr(value)].append(rank)
    if len(groups) > 1:
        alike = "; ".join(f"ranks {', '.join(map(str, ranks))}" for ranks in groups.values())
        raise DataError(
            f"{name}: expected the same {what} in all {world.size} processes, which share every "
            f"batch, got {len(groups)} different ones: {alike}. Seed the script "
            "(torch.manual_seed) before it simulates, or load the rows from a file; if each "
            'process has simulated its own part, take TrainConfig(shards="own").'
        )


def _by_rank(values: Sequence[int]) -> str:
    return ", ".join(f"{value} in rank {rank}" for rank, value in enumerate(values))
