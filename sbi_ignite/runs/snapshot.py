"""The states of a training come in; how it stands at this moment goes out, for memory and files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from sbi_ignite.runs.packing import Packed, unpack

BEST = "best_weights"
"""Name under which the states hold {"weights": ..., "epoch": ..., "loss": ...}."""


@dataclass(frozen=True)
class Snapshot:
    """A training as it stood; later steps do not change it.

    The best weights are kept apart: they change seldom, and have a file of their own.

    Attributes:
        packed: All states but the best weights.
        best: The best weights; None if there are none.
        best_epoch: Epoch of the best weights.
        source: The mapping that `best` is a copy of.
        words: Plain data that was added.

    Example:
        >>> Snapshot.of({"state": {"epoch": 1}}).states()
        {'state': {'epoch': 1}}
    """

    packed: Packed
    best: Packed | None = None
    best_epoch: int = 0
    source: Mapping[str, Any] | None = None
    words: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, states: Mapping[str, Any], before: Snapshot | None = None) -> Self:
        """Copy states.

        Args:
            states: Names and states, see `Packed.of`; `states["best_weights"]["weights"]` are the
                best weights.
            before: An earlier snapshot, whose copy of the best weights is taken where they are the
                same mapping.
        """
        best = states.get(BEST) or {}
        weights = best.get("weights")
        if weights is None:
            return cls(Packed.of(states))
        known = before.best if before is not None and weights is before.source else None
        return cls(
            Packed.of({**states, BEST: {**best, "weights": None}}),
            known or Packed.of({"weights": weights}),
            best.get("epoch", 0),
            weights,
        )

    def with_words(self, **words: Any) -> Self:
        """Return the same with more states of plain data.

        Args:
            **words: Names and states: numbers, texts, None and dicts of these.
        """
        return dataclasses.replace(self, words={**self.words, **words})

    def states(self) -> dict[str, Any]:
        """Return a copy of the states."""
        states = {**self.packed.unpacked(), **self.words}
        if self.best is not None:
            states[BEST] = {**states[BEST], **self.best.unpacked()}
        return states

    def require_savable(self) -> None:
        """See that files can hold it.

        Raises:
            CheckpointError: If it holds something that cannot be saved.
        """
        self.packed.require_savable()
        if self.best is not None:
            self.best.require_savable()

    def for_file(self) -> dict[str, Any]:
        """Return all but the best weights, as `from_file` takes it."""
        tree = {"states": self.packed.tree, "words": self.words}
        return dataclasses.replace(self.packed, tree=tree).for_file()


def from_file(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states that `Snapshot.for_file` made ready for a file."""
    content = unpack(content)
    return {**content["states"], **content["words"]}
