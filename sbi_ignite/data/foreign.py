"""Wrap DataLoaders and other iterables of batches in the data contract."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from sbi_ignite.data.fingerprint import fingerprint_data
from sbi_ignite.data.in_memory import BatchIndices
from sbi_ignite.data.source import Batches, num_rows
from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.random_state import OwnRandomState


class ForeignBatches:
    """A user's torch DataLoader, or any iterable of batches with a length.

    It resumes between epochs. A loader or a batch sampler with `state_dict` and `load_state_dict`
    is saved and continued with the training.

    Args:
        loader: The iterable.
        name: The argument that it was passed as, for error messages.

    Example:
        >>> batches = ForeignBatches([torch.zeros(4, 2), torch.zeros(3, 2)])
        >>> len(batches), batches.num_rows
        (2, 7)
    """

    resumes_inside_epoch = False
    rows = None

    def __init__(self, loader: Any, name: str = "train_loader") -> None:
        self.loader, self.name = loader, f"{name} ({type(loader).__name__})"
        self._ends_workers: Any = None

    @property
    def num_rows(self) -> int | None:
        """Rows in one pass; None if the loader does not show it."""
        sampler = self._batch_sampler
        indices = getattr(sampler, "indices", None)
        if isinstance(indices, Tensor):
            return len(indices)
        if isinstance(self.loader, Sequence):
            return sum(map(num_rows, self.loader))
        if sampler is not None and type(sampler) is not BatchSampler:
            return None  # it may leave rows out
        for source in (getattr(self.loader, "sampler", None), self._dataset):
            if hasattr(source, "__len__"):
                return len(source)  # type: ignore[arg-type] # just asked
        return None

    @property
    def batch_size(self) -> int | None:
        """Rows of a full batch; None if the loader does not show it."""
        for source in (self.loader, self._batch_sampler):
            size = getattr(source, "batch_size", None)
            if isinstance(size, int) and not isinstance(size, bool):
                return size
        if isinstance(self.loader, Sequence) and len(self.loader):
            return max(map(num_rows, self.loader))
        if isinstance(self._batch_sampler, list | tuple) and self._batch_sampler:
            return max(map(len, self._batch_sampler))
        return None

    @property
    def uses_processes(self) -> bool:
        """Whether the loader has worker processes."""
        return bool(getattr(self.loader, "num_workers", 0))

    @property
    def maker(self) -> Any:
        """The dataset, or the loader where there is none; None if the tensors are known."""
        if self.tensors is not None:
            return None
        return self.loader if self._dataset is None else self._dataset

    @property
    def unsaved_state(self) -> str:
        """What keeps a resumed run from getting the same batches; "" if nothing does."""
        persist = self.uses_processes and getattr(self.loader, "persistent_workers", False)
        if persist and not hasattr(self.loader, "state_dict"):
            return "persistent workers draw a seed when they start, once more in a resumed run"
        return ""

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        persists = batches is getattr(self.loader, "_iterator", None)
        if persists and self._ends_workers is None:
            self._ends_workers = _end_workers_after(self.loader, batches)
        return batches

    def set_epoch(self, epoch: int) -> None:
        """Tell the loader, its samplers and its data set which epoch begins, if they want to know.

        torch's DistributedSampler draws an order for each epoch only if it is told.

        Args:
            epoch: Number of the epoch, from 0.
        """
        sampler = self._batch_sampler
        inner = (getattr(sampler, "sampler", None), getattr(self.loader, "sampler", None))
        told: set[int] = set()
        for part in (self.loader, self._dataset, sampler, *inner):
            tell = getattr(part, "set_epoch", None)
            if callable(tell) and id(part) not in told:
                told.add(id(part))
                tell(epoch)

    def rows_at(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return nothing: a foreign loader does not number its rows."""
        return ()

    @property
    def tensors(self) -> tuple[Tensor, ...] | None:
        """Tensors of a TensorDataset or of a subset of one; None for other data."""
        source = self._dataset
        source = getattr(source, "dataset", source)
        found = getattr(source, "tensors", None)
        return found if isinstance(found, tuple) else None

    def fingerprint(self) -> list[dict[str, Any]] | None:
        """Return dtype, shape and digest of the tensors; None where the loader hides its data."""
        tensors = self.tensors
        return None if tensors is None else fingerprint_data(tensors)

    def to(self, device: torch.device) -> None:
        """Leave batches where the loader puts them; every step moves its own."""

    def shard(self, rank: int, num_ranks: int) -> ForeignBatches:
        """Return this source, or for several ranks one that hands out every n-th row of a batch.

        A loader with our own batch sampler reads its rank's rows only. All others are read as a
        whole by every rank, in the same order, and what does not belong to the rank is left out.

        Args:
            rank: Number of this process, from 0.
            num_ranks: How many processes share each batch.

        Raises:
            ArgumentError: If worker processes would have to collate batches without rows.
        """
        if num_ranks == 1:
            return self
        sampler = self._batch_sampler
        if not isinstance(sampler, BatchIndices):
            return SlicedBatches(self, rank, num_ranks)
        smallest = len(sampler.indices) // max(1, len(sampler))
        if smallest < num_ranks:
            raise ArgumentError(
                f"{self.name}: expected batches of at least {num_ranks} rows, one for each of the "
                f"{num_ranks} processes, got {smallest}. Take a larger batch_size, or leave "
                "dataloader_kwargs out: batches in memory may be smaller."
            )
        sampler.share = (rank, num_ranks)
        return self

    def select(self, indices: Tensor) -> bool:
        """Choose from these rows from now on, if a sampler or a subset holds row numbers.

        Args:
            indices: Row numbers, shape (num_rows,), as many as before.
        """
        for part in (self._batch_sampler, getattr(self.loader, "sampler", None), self._dataset):
            held = getattr(part, "indices", None)
            if part is not None and held is not None:
                part.indices = indices if isinstance(held, Tensor) else indices.tolist()
                return True
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the loader and of its batch sampler, where they have one."""
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand states back to the loader and its batch sampler."""
        for name, part in self._stateful().items():
            if name in state:
                part.load_state_dict(state[name])

    def _stateful(self) -> dict[str, Any]:
        candidates = {"loader": self.loader, "batch_sampler": self._batch_sampler}
        return {n: c for n, c in candidates.items() if hasattr(c, "state_dict")}

    @property
    def _batch_sampler(self) -> Any:
        return getattr(self.loader, "batch_sampler", None)

    @property
    def _dataset(self) -> Any:
        return getattr(self.loader, "dataset", None)


def _end_workers_after(loader: Any, workers: Any) -> Any:
    """Keep the iterator of persistent workers until its loader is gone.

    A training is a cycle of references. If python's garbage collector finds the iterator in it, it
    closes the queues to the workers before torch can tell them to end, and torch then waits five
    seconds for each.
    """
    ends = weakref.finalize(loader, lambda iterator: None, workers)
    ends.atexit = False  # torch ends workers at the exit of the process
    return ends


class SlicedBatches(ForeignBatches):
    """One rank's rows of every batch of a loader that all ranks read.

    The loader draws the order of its rows from random states of its own, which are the same in all
    ranks, so that other noise does not move it.

    Args:
        batches: The batches.
        rank: Number of this process, from 0.
        num_ranks: How many processes share each batch.
    """

    def __init__(self, batches: ForeignBatches, rank: int, num_ranks: int) -> None:
        super().__init__(batches.loader)
        self.name = batches.name
        self._share, self._random = (rank, num_ranks), OwnRandomState()

    def __iter__(self) -> Iterator[Any]:
        rank, num_ranks = self._share
        with self._random.in_force():
            batches = iter(self.loader)
        for _ in range(len(self) + 1):
            with self._random.in_force():
                batch = next(batches, self)
            if batch is self:
                return
            yield every(batch, rank, num_ranks, num_rows(batch))

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the loader, and the random states from which it draws."""
        return {**super().state_dict(), "order": self._random.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        super().load_state_dict(state)
        if "order" in state:
            self._random.load_state_dict(state["order"])


def every(batch: Any, first: int, step: int, rows: int) -> Any:
    """Return rows `first`, `first + step`, ... of every tensor of a batch of any structure.

    Args:
        batch: The batch: containers nested to any depth. Tensors of another length stay whole.
        first: The first row.
        step: Distance to the next.
        rows: Rows of the batch.

    Example:
        >>> every({"x": torch.arange(5), "scale": torch.ones(1)}, 1, 2, 5)
        {'x': tensor([1, 3]), 'scale': tensor([1.])}
    """
    if isinstance(batch, Tensor):
        return batch[first::step] if batch.ndim and len(batch) == rows else batch
    if isinstance(batch, Mapping):
        parts = {name: every(value, first, step, rows) for name, value in batch.items()}
        return type(batch)(parts)  # type: ignore[call-arg] # as all mappings do
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(every(value, first, step, rows) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)([every(value, first, step, rows) for value in batch])
    return batch


class WholePass(ForeignBatches):
    """A loader as the only batch, for a user's method that goes through an epoch by itself.

    Args:
        batches: What the method is given.
        name: The argument that it was passed as, for error messages.
    """

    def __init__(self, batches: Batches, name: str = "train_loader") -> None:
        super().__init__([getattr(batches, "loader", batches)], name)
        self._inside = batches

    @property
    def num_rows(self) -> int | None:
        """Rows of the loader."""
        return self._inside.num_rows

    @property
    def batch_size(self) -> int | None:
        """Rows of a full batch of the loader."""
        return self._inside.batch_size

    @property
    def uses_processes(self) -> bool:
        """Whether the loader has worker processes."""
        return self._inside.uses_processes

    @property
    def tensors(self) -> tuple[Tensor, ...] | None:
        """Tensors behind the loader."""
        return self._inside.tensors

    @property
    def maker(self) -> Any:
        """The one of the loader."""
        return self._inside.maker

    @property
    def unsaved_state(self) -> str:
        """What keeps a resumed run from getting the same batches."""
        return self._inside.unsaved_state

    def set_epoch(self, epoch: int) -> None:
        """Tell the loader's samplers which epoch begins, from 0."""
        self._inside.set_epoch(epoch)

    def select(self, indices: Tensor) -> bool:
        """Let the loader choose from these rows from now on."""
        return self._inside.select(indices)


def as_batches(loader: Any, name: str = "train_loader") -> Batches:
    """Return batches that fulfil the data contract.

    Args:
        loader: Batches that do already, or any iterable of batches with a length.
        name: The argument that it was passed as, for error messages.
    """
    return loader if isinstance(loader, Batches) else ForeignBatches(loader, name)
