"""Derive the seeds of an ensemble's members from one seed."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import SeedSequence

from sbi_ignite.bridge.memory import RowSeeds

_OF_ALL = 2**32 - 1
"""The number that stands for all members together."""


@dataclass(frozen=True)
class MemberSeeds:
    """Seeds of one member in one round.

    Attributes:
        make: For `make_trainer`, which may draw the weights of an embedding network.
        train: For `train()`: initial weights, order of rows, whatever the loss draws.
        rows: For the split, and for the bootstrap if there is one.
    """

    make: int
    train: int
    rows: RowSeeds


def member_seeds(
    seed: int, member: int, round_index: int = 0, *, bootstrap: bool = False, resplit: bool = False
) -> MemberSeeds:
    """Return the seeds of a member; they do not depend on how many members there are.

    Args:
        seed: Seed of the ensemble.
        member: Number of the member, from 0.
        round_index: How often the ensemble has been trained before.
        bootstrap: Whether the member trains on rows drawn with replacement.
        resplit: Whether the member has a split of its own.

    Example:
        >>> first, second = member_seeds(1, 0), member_seeds(1, 1)
        >>> first.train == second.train, first.rows == second.rows
        (False, True)
    """
    make, train, own_split, drawn = _numbers(seed, member, round_index)
    (shared_split, *_) = _numbers(seed, _OF_ALL, round_index)
    split = own_split if resplit else shared_split
    return MemberSeeds(make, train, RowSeeds(split, drawn if bootstrap else None))


def _numbers(seed: int, member: int, round_index: int) -> list[int]:
    sequence = SeedSequence(seed, spawn_key=(member, round_index))
    return [int(number) for number in sequence.generate_state(4)]
