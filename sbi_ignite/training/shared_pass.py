"""Give the batches of one pass to several trainings, each batch fetched once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from sbi_ignite.data.source import Batches
from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.random_state import OwnRandomState
from sbi_ignite.training.passes import Passes
from sbi_ignite.training.steps import mapped

_ORDER = "order"
"""Name under which a share saves the random states from which batches are drawn."""


class SharedPass:
    """Batches that are fetched once for several trainings, see `run_together`.

    Batches are counted from the beginning of the first epoch. Of a batch that has been handed out,
    the one before cannot be had any more.

    Rows whose order is drawn from the process's random generators, as sbi's is, are drawn from the
    random state in which this object was made, so that no training moves another one's rows.

    Args:
        batches: Where batches come from.

    Attributes:
        batches: The same.
        num_fetched: Batches fetched so far.
        error: What fetching raised; None if nothing.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.num_fetched = 0
        self.error: Exception | None = None
        self._random = OwnRandomState()
        self._passes = Passes(batches)
        self._pass: Iterator[Any] | None = None
        self._batch: Any = None

    def share(self) -> Share:
        """Return batches for one more training."""
        return Share(self)

    def begin(self, share: Share, guard: Callable[[Any], Iterable[Any]]) -> None:
        """Go on where a share stopped: that of the training that has the fewest batches behind it.

        Args:
            share: The share.
            guard: Wraps what is iterated over, see `StopOnSignals.guard`.
        """
        self._passes = Passes(self.batches, guard, lambda: self.num_fetched // len(self.batches))
        self.num_fetched = share.num_taken
        if share.saved is None:
            return
        state = dict(share.saved)
        # A training that was alone until now has saved no such states.
        if _ORDER in state:
            self._random.load_state_dict(state.pop(_ORDER))
        self.batches.load_state_dict(state)
        if self.batches.resumes_inside_epoch:  # others start a new pass
            self._passes.continue_after(self.num_fetched % len(self.batches))

    def batch(self, number: int) -> Any:
        """Return a batch: the latest, or a later one, up to which batches are fetched.

        Args:
            number: Which one, from 0.

        Raises:
            DataError: If the pass has fewer batches than promised.
        """
        # More than one if the trainings that were to catch up with this one have all ended.
        while self.num_fetched <= number:
            self.conclude()
            with self._fetching():
                if self._pass is None:
                    self._pass = iter(self._passes)
                self._batch = next(self._pass)
            self.num_fetched += 1
        if number != self.num_fetched - 1:
            raise RuntimeError(f"batch {number} asked for, {self.num_fetched} have been fetched")
        return self._batch

    def conclude(self) -> None:
        """End the pass if its last batch has been fetched, for all trainings at once.

        Raises:
            DataError: If it has more batches than promised.
        """
        with self._fetching():
            if self._pass is not None and self.num_fetched % len(self.batches) == 0:
                self._pass = None
                self._passes.conclude()

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on after the latest batch."""
        return {**self.batches.state_dict(), _ORDER: self._random.state_dict()}

    @contextmanager
    def _fetching(self) -> Iterator[None]:
        """Draw from the states of this object; remember an error, which all trainings are told."""
        if self.error is not None:
            raise self.error
        try:
            with self._random.in_force():
                yield
        except Exception as error:
            self.error = error
            raise


class Share:
    """The batches of a shared pass as one training sees them; see `Batches` for the contract.

    Every batch is a copy of its own, since a loss may change what it is given. What is neither a
    container nor has a method `clone` is not copied.

    Args:
        of: The pass.

    Attributes:
        of: The pass.
        num_taken: Batches that the training has behind it.
        saved: The state with which the training is resumed; None for a fresh one.
    """

    def __init__(self, of: SharedPass) -> None:
        self.of, self.num_taken = of, 0
        self.saved: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """What users call the source."""
        return self.of.batches.name

    @property
    def num_rows(self) -> int | None:
        """Rows in one pass."""
        return self.of.batches.num_rows

    @property
    def batch_size(self) -> int | None:
        """Rows of a full batch."""
        return self.of.batches.batch_size

    @property
    def rows(self) -> Tensor | None:
        """Row numbers of the latest batch."""
        return self.of.batches.rows

    @property
    def tensors(self) -> tuple[Tensor, ...] | None:
        """Tensors behind the rows."""
        return self.of.batches.tensors

    @property
    def is_ahead(self) -> bool:
        """Whether the training waits until others have caught up with it."""
        return self.num_taken > self.of.num_fetched

    @property
    def resumes_inside_epoch(self) -> bool:
        """Whether the source continues with the next batch rather than the next pass."""
        return self.of.batches.resumes_inside_epoch

    @property
    def uses_processes(self) -> bool:
        """Whether the source starts worker processes."""
        return self.of.batches.uses_processes

    def set_epoch(self, epoch: int) -> None:
        """Change nothing: the pass that is shared tells the source."""

    @property
    def maker(self) -> Any:
        """The one of the source."""
        return self.of.batches.maker

    @property
    def unsaved_state(self) -> str:
        """What keeps a resumed run from getting the same batches."""
        return self.of.batches.unsaved_state

    def __len__(self) -> int:
        return len(self.of.batches)

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.num_taken % len(self), len(self)):
            batch = self.of.batch(self.num_taken)
            self.num_taken += 1
            yield mapped(batch, "clone")
        self.of.conclude()

    def __getattr__(self, name: str) -> Any:
        if name == "of":  # not there yet: an empty copy is being filled
            raise AttributeError(name)
        return getattr(self.of.batches, name)

    def rows_at(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the rows with these numbers, shape (batch,)."""
        return self.of.batches.rows_at(rows)

    def fingerprint(self) -> list[dict[str, Any]] | None:
        """Return dtype, shape and digest of the data."""
        return self.of.batches.fingerprint()

    def to(self, device: torch.device) -> None:
        """Let the source deliver on a device, for all trainings."""
        self.of.batches.to(device)

    def shard(self, rank: int, num_ranks: int) -> Self:
        """Return this share for a single process.

        Raises:
            ArgumentError: For several ranks.
        """
        if num_ranks == 1:
            return self
        raise ArgumentError(
            f"{self.name}: batches that trainings share cannot be divided between {num_ranks} "
            "processes. Make the SharedPass from the shard of a process."
        )

    def select(self, indices: Tensor) -> bool:
        """Let the source choose from these rows from now on, for all trainings."""
        return self.of.batches.select(indices)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the source after the latest batch that was taken.

        The source by itself can continue from it too.
        """
        # A resumed training may be ahead of the others, which the source first brings up to it.
        if self.saved is not None and self.is_ahead:
            return dict(self.saved)
        return self.of.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember where to continue; `SharedPass.begin` tells the source."""
        self.saved = dict(state)
