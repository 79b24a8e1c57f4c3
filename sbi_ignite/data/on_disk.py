"""Batches of rows in files, in an order that files read well, fetched in the background."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from copy import copy
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from sbi_ignite.data.in_memory import even_bounds, permutation
from sbi_ignite.data.table import Table
from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.random_state import draws_of

BUFFER_BYTES = 2**26
"""Size of a buffer, in which whole blocks of a file are mixed; three of them are in memory."""

KEPT_BYTES = 2**26
"""Rows for validation stay in memory up to this size."""

_AHEAD_BYTES = 2**25
"""How much is read ahead, where rows are read at random."""

_Item = TypeVar("_Item")

_Batch = tuple[NDArray[np.int64], tuple[Tensor, ...]]
"""Row numbers, and the rows."""

_NOTHING: _Batch = np.empty(0, dtype=np.int64), ()


class OnDiskBatches:
    """Every row once per pass, in batches whose sizes differ by at most one; see `Batches`.

    Where files read rows at random well, a pass has the order of `ShuffledBatches`. Otherwise
    blocks of rows are drawn at random into a buffer, and rows from that buffer. Either way the
    order of pass number k depends on (seed, k) alone, and the state of a pass is its position.

    Args:
        table: All rows.
        indices: Row numbers that belong to this source, shape (num_selected,).
        batch_size: Rows in a batch, at most.
        seed: Decides the order of every pass.
        shuffle: False gives every pass the same order, mixed as the first: for validation.
        drop_last: Have batches of `batch_size` rows exactly, and leave out what remains, as sbi.
        buffer_bytes: Size of a buffer.
        random_access: Whether to read rows at random; None lets the files decide.
        name: What users call this source, for error messages.

    Attributes:
        rows: Row numbers of the latest batch, shape (batch,).
    """

    resumes_inside_epoch = True
    uses_processes = False
    unsaved_state = ""
    maker = None
    tensors = None

    def __init__(
        self,
        table: Table,
        indices: Tensor,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        buffer_bytes: int = BUFFER_BYTES,
        random_access: bool | None = None,
        name: str | None = None,
    ) -> None:
        self.table, self.batch_size, self.seed = table, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.buffer_rows = max(1, buffer_bytes // max(1, table.row_bytes))
        self.random_access = table.random_access if random_access is None else random_access
        self.name = name or table.name
        self.indices = indices.cpu()
        self.rows = self.indices[:0]
        self._rank, self._num_ranks = 0, 1
        self._handed_out = self._skip = 0
        self._pass = -1
        self._blocks: Blocks | None = None
        self._arrays: ReusedArrays | None = None
        self._kept: tuple[NDArray[np.int64], tuple[Tensor, ...]] | None = None

    @property
    def num_rows(self) -> int:
        """Rows that this source chooses from in one pass, over all ranks."""
        return len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """Change nothing: the order of a pass follows from the seed and the number of the pass."""

    def __len__(self) -> int:
        if self.drop_last:
            return len(self.indices) // self.batch_size
        return -(-len(self.indices) // self.batch_size)

    def _bounds(self) -> list[int]:
        if self.drop_last:
            return [i * self.batch_size for i in range(len(self) + 1)]
        return even_bounds(len(self.indices), len(self))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        first, self._skip = self._skip, 0
        if not first:
            self._pass += 1
        number = self._pass if self.shuffle else 0
        bounds = self._bounds()
        batches = self._in_memory if self._keeps_rows else self._random_rows
        if not self._keeps_rows and not self.random_access:
            batches = self._buffered_rows
        fetched = batches(number, bounds, first)
        try:
            for position, (rows, batch) in enumerate(fetched, first):
                self._handed_out = position + 1
                self.rows = torch.from_numpy(rows)
                yield self._drawn(rows, batch, position)
        finally:
            fetched.close()

    def _drawn(
        self, rows: NDArray[np.int64], batch: tuple[Tensor, ...], position: int
    ) -> tuple[Tensor, ...]:
        """Apply transforms; validation sees the same draws in every pass."""
        if self.shuffle or not self.table.transforms:
            return self.table.transformed(rows, batch)
        with draws_of(self.seed, position):
            return self.table.transformed(rows, batch)

    # --- ways to fetch

    def _random_rows(
        self, number: int, bounds: list[int], first: int
    ) -> Generator[_Batch, None, None]:
        order = self._order(number)

        def read() -> Iterator[_Batch]:
            for begin, end in list(pairwise(bounds))[first:]:
                rows = self._share(order[begin:end])
                yield rows, self.table.read(rows)

        size = self.batch_size * self.table.row_bytes
        return prefetched(read, max(1, min(8, _AHEAD_BYTES // max(1, size))))

    def _order(self, number: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return self.indices.numpy()
        return self.indices[permutation(len(self.indices), self.seed, number)].numpy()

    def _share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows if self._num_ranks == 1 else rows[self._rank :: self._num_ranks].copy()

    @property
    def _keeps_rows(self) -> bool:
        return not self.shuffle and self.num_rows * self.table.row_bytes <= KEPT_BYTES

    def _in_memory(
        self, number: int, bounds: list[int], first: int
    ) -> Generator[_Batch, None, None]:
        if self._kept is None:
            ascending = np.sort(self.indices.numpy())
            self._kept = ascending, self.table.read(ascending)
        ascending, tensors = self._kept
        order = self._order(number)
        for begin, end in list(pairwise(bounds))[first:]:
            rows = self._share(order[begin:end])
            at = torch.from_numpy(np.searchsorted(ascending, rows))
            yield rows, tuple(tensor[at] for tensor in tensors)

    def _buffered_rows(
        self, number: int, bounds: list[int], first: int
    ) -> Generator[_Batch, None, None]:
        if self._blocks is None:
            self._blocks = Blocks(self.table.starts(), self.indices.numpy(), self.buffer_rows)
        blocks, seed = self._blocks, self.seed
        begins, groups = blocks.drawn(seed, number)
        start = bounds[first] if first < len(bounds) else 0
        skipped = int(np.searchsorted(begins, start, side="right")) - 1

        if self._arrays is None:
            self._arrays = ReusedArrays(partial(self.table.empty, blocks.most_rows))
        arrays = self._arrays

        def read() -> Iterator[_Batch]:
            for i in range(max(0, skipped), len(groups)):
                ascending = np.sort(blocks.rows_of(groups[i]))
                rows = ascending[permutation(len(ascending), seed, number, i).numpy()]
                # Rows go from their block to their place in the order, so that a batch is a slice.
                yield rows, self.table.read(rows, into=arrays.unused(len(rows)))

        def cut() -> Generator[_Batch, None, None]:
            buffers = prefetched(read, 1)
            try:
                at = int(begins[max(0, skipped)])
                order, tensors = next(buffers, _NOTHING)
                for begin, end in list(pairwise(bounds))[first:]:
                    numbers, pieces = [], []
                    while begin < end:
                        if begin >= at + len(order):
                            at += len(order)
                            order, tensors = _NOTHING
                            order, tensors = next(buffers, _NOTHING)
                            if not len(order):
                                raise RuntimeError("a pass has fewer rows than its batches")
                        inside = slice(begin - at, min(end - at, len(order)))
                        numbers.append(order[inside])
                        pieces.append(tuple(tensor[inside] for tensor in tensors))
                        begin = at + inside.stop
                    rows = np.concatenate(numbers)
                    batch = pieces[0]
                    if len(pieces) > 1:
                        batch = tuple(map(torch.cat, zip(*pieces, strict=True)))
                    if self._num_ranks > 1:
                        rows = self._share(rows)
                        batch = tuple(t[self._rank :: self._num_ranks] for t in batch)
                    yield rows, batch
            finally:
                buffers.close()

        return cut()

    # --- the contract

    def rows_at(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the rows with these numbers, shape (batch,), as they are stored."""
        return self.table.read(rows.cpu().numpy())

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return dtype, shape and a digest of sampled content of every part."""
        return self.table.fingerprint()

    def to(self, device: torch.device) -> None:
        """Leave batches on the host; every step moves its own."""

    def shard(self, rank: int, num_ranks: int) -> Self:
        """Return a copy that hands out one rank's rows of every batch.

        Args:
            rank: Number of this process, from 0.
            num_ranks: How many processes share each batch.

        Raises:
            ArgumentError: If a batch would leave a rank without rows.
        """
        smallest = min((b - a for a, b in pairwise(self._bounds())), default=0)
        if smallest < num_ranks:
            raise ArgumentError(
                f"{self.name}: a batch of {smallest} rows cannot be shared by {num_ranks} "
                f"processes. Take a batch_size of at least {num_ranks}, or fewer processes."
            )
        shard = copy(self)
        shard._rank, shard._num_ranks = rank, num_ranks
        shard._arrays = None
        return shard

    def select(self, indices: Tensor) -> bool:
        """Choose from these rows from now on.

        Args:
            indices: Row numbers, shape (num_rows,), as many as before.
        """
        self.indices = indices.cpu()
        self._blocks = self._arrays = self._kept = None
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return position, seed and number of the pass."""
        return {"handed_out": self._handed_out, "seed": self.seed, "pass": self._pass}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the pass that `state_dict` described."""
        self._handed_out = state["handed_out"]
        self._skip = self._handed_out % len(self)
        self.seed, self._pass = state["seed"], state["pass"]


class Blocks:
    """Blocks of rows that lie together in files, drawn at random into buffers.

    Args:
        starts: The first row of every block, shape (num_blocks,).
        indices: The rows in use.
        buffer_rows: Rows in a buffer, about.

    Attributes:
        most_rows: No buffer of any pass has more rows.
    """

    def __init__(
        self, starts: NDArray[np.int64], indices: NDArray[np.int64], buffer_rows: int
    ) -> None:
        self._ascending = np.sort(indices)
        bounds = np.append(np.searchsorted(self._ascending, starts), len(indices))
        used = np.flatnonzero(bounds[1:] > bounds[:-1])
        self._begin, self._end = bounds[:-1][used], bounds[1:][used]
        self._num_buffers = max(1, min(len(used), -(-len(indices) // buffer_rows)))
        blocks_together = -(-len(used) // self._num_buffers)
        self.most_rows = int(np.sort(self._end - self._begin)[-blocks_together:].sum())

    def drawn(self, seed: int, number: int) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        """Return where buffers of a pass begin, and the blocks in each.

        Args:
            seed: Decides the order of every pass.
            number: Which pass.
        """
        order = permutation(len(self._begin), seed, number).numpy()
        groups = np.array_split(order, self._num_buffers)
        sizes = self._end - self._begin
        begins = np.cumsum([0, *(int(sizes[group].sum()) for group in groups)])[:-1]
        return begins, groups

    def rows_of(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows in use of some blocks, in any order."""
        return np.concatenate([self._ascending[self._begin[b] : self._end[b]] for b in blocks])


class ReusedArrays:
    """Arrays that are filled again once nothing looks into them: new memory costs twice the time.

    Args:
        make: Returns arrays by the name of the field, with room for the largest buffer.
    """

    def __init__(self, make: Callable[[], dict[str, NDArray[Any]]]) -> None:
        self._make = make
        self._made: list[dict[str, NDArray[Any]]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return ReusedArrays, (self._make,)

    def unused(self, num_rows: int) -> dict[str, NDArray[Any]]:
        """Return views of arrays that no tensor and no other view shares memory with."""
        found = next((made for made in self._made if _references(made) <= _UNSEEN), None)
        if found is None:
            found = self._make()
            # Whoever keeps all batches keeps their arrays too; here they are forgotten.
            self._made = [*self._made[1 - _KEPT_ARRAYS :], found]
        return {name: array[:num_rows] for name, array in found.items()}


_KEPT_ARRAYS = 3
"""Buffers in use: one is being filled, one is cut into batches, the last batch is in another."""


def _references(arrays: dict[str, NDArray[Any]]) -> int:
    # A view or tensor keeps a reference to the array whose memory it uses.
    return max(sys.getrefcount(arrays[name]) for name in arrays)


_UNSEEN = _references({"": np.empty(0)})


def prefetched(make: Callable[[], Iterator[_Item]], depth: int) -> Generator[_Item, None, None]:
    """Yield what an iterator yields, made in a thread up to `depth` items ahead.

    The thread ends with the generator that is returned. An error is raised where the item would
    have been yielded.

    Args:
        make: Makes the iterator, in the thread.
        depth: How many items may wait, one that is being made included.
    """
    done: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    may_make = threading.Semaphore(depth)
    stopped = threading.Event()

    def work() -> None:
        try:
            items = make()
            while True:
                may_make.acquire()
                if stopped.is_set():
                    return
                try:
                    item = next(items)
                except StopIteration:
                    done.put(("end", None))
                    return
                done.put(("item", item))
                del item
        except BaseException as error:
            done.put(("error", error))

    def run() -> Generator[_Item, None, None]:
        thread = threading.Thread(target=work, name="sbi_ignite-prefetch", daemon=True)
        thread.start()
        try:
            while True:
                kind, value = done.get()
                if kind == "end":
                    return
                if kind == "error":
                    raise value
                may_make.release()
                yield value
                del value
        finally:
            stopped.set()
            may_make.release()
            thread.join()

    return run()
