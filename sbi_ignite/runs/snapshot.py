"""Snapshots of a training, for memory and for files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from typing_extensions import Self

from sbi_ignite.runs.packing import Packed, unpack

BEST = "best_weights"
"""Name under which the states hold {"weights": ..., "epoch": ..., "loss": ...}."""


class BestCopy:
    """The best weights of a training.

    Args:
        weights: A state dict that is not changed before `packed` is first read.
        epoch: Their epoch.
    """

    def __init__(self, weights: Mapping[str, Any], epoch: int) -> None:
        self.weights, self.epoch = weights, epoch

    @cached_property
    def packed(self) -> Packed:
        """The copy that goes into a file, made when it is first asked for."""
        return Packed.of({"weights": self.weights})


@dataclass(frozen=True)
class Snapshot:
    """A training as it stood; later steps do not change it.

    The best weights are kept apart: they change seldom, and have a file of their own.

    Attributes:
        packed: All states but the best weights.
        best: The best weights; None if there are none.
        words: Plain data that was added.

    Example:
        >>> Snapshot.of({"state": {"epoch": 1}}).states()
        {'state': {'epoch': 1}}
    """

    packed: Packed
    best: BestCopy | None = None
    words: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, states: Mapping[str, Any], before: Snapshot | None = None) -> Self:
        """Copy states.

        Args:
            states: Names and states, see `Packed.of`; `states["best_weights"]["weights"]` are the
                best weights, a mapping that is replaced, never changed.
            before: An earlier snapshot, whose best weights are taken where they are the same
                mapping.
        """
        best = states.get(BEST) or {}
        weights = best.get("weights")
        if weights is None:
            return cls(Packed.of(states))
        known = None if before is None else before.best
        if known is None or known.weights is not weights:
            known = BestCopy(weights, best.get("epoch", 0))
        return cls(Packed.of({**states, BEST: {**best, "weights": None}}), known)

    def with_words(self, **words: Any) -> Self:
        """Return a snapshot with additional states of plain data.

        Args:
            **words: Names and states: numbers, texts, None and dicts of these.
        """
        return dataclasses.replace(self, words={**self.words, **words})

    def states(self) -> dict[str, Any]:
        """Return a copy of the states, and the best weights themselves."""
        states = {**self.packed.unpacked(), **self.words}
        if self.best is not None:
            states[BEST] = {**states[BEST], "weights": self.best.weights}
        return states

    def require_savable(self) -> None:
        """Copy what is not copied yet, and check that files can hold it all.

        Raises:
            CheckpointError: If it holds something that cannot be saved.
        """
        self.packed.require_savable()
        if self.best is not None:
            self.best.packed.require_savable()

    def for_file(self) -> dict[str, Any]:
        """Return all but the best weights, as `from_file` takes it."""
        tree = {"states": self.packed.tree, "words": self.words}
        return dataclasses.replace(self.packed, tree=tree).for_file()


def from_file(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states that `Snapshot.for_file` prepared for a file."""
    content = unpack(content)
    return _in_todays_form({**content["states"], **content["words"]})


def _in_todays_form(states: dict[str, Any]) -> dict[str, Any]:
    """Return states as they are saved today.

    The first checkpoints of 0.1.0 kept the batch sampler of a DataLoader in an entry of its own.
    """
    if "indices" in states:
        states["batches"] = {"batch_sampler": states.pop("indices")}
    return states
