"""Batches of tensors in memory, sliced by index and never collated row by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler, TensorDataset
from typing_extensions import Self

from sbi_ignite.data.fingerprint import fingerprint_data
from sbi_ignite.data.transfer import Staging
from sbi_ignite.world import ONE, World

_LOOKED_UP_AT_ONCE = 2**17
"""Row numbers of a pass that are looked up in one go."""


class InMemoryBatches(ABC):
    """One pass over chosen rows of some tensors; see `Batches` for the contract.

    Attributes:
        tensors: Tensors that share their first dimension, for example theta (num_rows, dim_theta),
            x (num_rows, ...) and the prior mask (num_rows, 1).
        indices: Row numbers that belong to this source, shape (num_selected,).
        batch_size: Rows in a batch, at most.
        rows: Row numbers of the latest batch, shape (batch,).
        name: What users call this source, for error messages.
    """

    resumes_inside_epoch = True
    uses_processes = False
    unsaved_state = ""
    maker = None

    def __init__(
        self,
        tensors: Sequence[Tensor],
        indices: Tensor,
        batch_size: int,
        name: str = "the simulations",
    ) -> None:
        self.tensors, self.name = tuple(tensors), name
        self.indices = indices.to(self.tensors[0].device)
        self.batch_size = batch_size
        self.rows = indices[:0]
        self._batch_of: Callable[[Tensor], tuple[Tensor, ...]] = self.rows_at
        self._rank, self._num_ranks = 0, 1
        self._met: tuple[int, ...] = ()
        self._device: torch.device | None = None
        self._world, self._rows_of_all = ONE, 0
        self._rows_of_each: list[int] = []
        self._handed_out = 0
        self._skip = 0

    @property
    def dataset(self) -> TensorDataset:
        """All rows, of which `indices` are handed out, as on a torch DataLoader."""
        return TensorDataset(*self.tensors)

    @property
    def num_rows(self) -> int:
        """Rows that this source chooses from in one pass, over all ranks."""
        return self._rows_of_all or len(self.indices)

    @property
    def smallest_batch(self) -> int:
        """Rows of the smallest batch, over all ranks."""
        return min((end - begin for begin, end in pairwise(self._bounds())), default=0)

    def set_epoch(self, epoch: int) -> None:  # noqa: B027 # not meant to be overridden
        """Change nothing: the order of a pass follows from its own random state."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches in one pass."""

    @abstractmethod
    def _order(self) -> Tensor:
        """Return the row numbers of this pass in order."""

    @abstractmethod
    def _bounds(self) -> list[int]:
        """Return where batches begin and end in that order, `len(self) + 1` numbers."""

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        self.rows = self.indices[:0]  # the latest batch's keep the whole order of a pass in memory
        order, bounds = self._order(), self._bounds()
        first, self._skip = self._skip, 0
        for position in range(first, len(self)):
            self._handed_out = position + 1
            rows = order[bounds[position] : bounds[position + 1]]
            if self._rows_of_all:
                yield self._own_rows(rows, position)
            elif self._num_ranks == 1:
                self.rows = rows
                yield self._batch_of(rows)
            else:
                yield self._own_part(rows)

    def _own_part(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return this rank's rows of a batch and, where its loss meets them, those of all."""
        self.rows = rows[self._rank :: self._num_ranks]
        batch = self._batch_of(self.rows)
        if not self._met:
            return batch
        device = batch[0].device
        met = [self.tensors[i].index_select(0, rows.to(self.indices.device)) for i in self._met]
        own = torch.arange(self._rank, len(rows), self._num_ranks, device=device)
        return (*batch, own, *(tensor.to(device) for tensor in met))

    def _own_rows(self, rows: Tensor, position: int) -> tuple[Tensor, ...]:
        """Return rows that only this rank has and, where its loss meets them, those of others."""
        self.rows = rows
        batch = self._batch_of(rows)
        if not self._met:
            return batch
        bounds = [even_bounds(rows_of_one, len(self)) for rows_of_one in self._rows_of_each]
        counts = [of_one[position + 1] - of_one[position] for of_one in bounds]
        before = sum(counts[: self._world.rank])
        own = before + torch.arange(len(rows), device=batch[0].device)
        return (*batch, own, *(self._world.gather_rows(batch[i], counts) for i in self._met))

    def rows_at(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the rows with these numbers, shape (batch,), where the tensors are."""
        rows = rows.to(self.indices.device)
        return tuple(tensor.index_select(0, rows) for tensor in self.tensors)

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return dtype, shape and digest of every tensor; of all ranks if each has its own."""
        found = fingerprint_data(self.tensors)
        if not self._rows_of_all:
            return found
        return [tensor for tensors in self._world.gather(found) for tensor in tensors]

    def to(self, device: torch.device) -> None:
        """Copy batches to a CUDA device from now on, where the tensors stay on the host."""
        self._device = device
        if device.type == "cuda" and all(tensor.device.type == "cpu" for tensor in self.tensors):
            self._batch_of = Staging(self.tensors, self.batch_size, len(self), device)

    def shard(self, rank: int, num_ranks: int, met: Sequence[int] = ()) -> Self:
        """Return a copy that hands out one rank's rows of every batch.

        Of a batch with fewer rows than ranks, some ranks get none.

        Args:
            rank: Number of this process, from 0.
            num_ranks: How many processes share each batch.
            met: Numbers of tensors of which a batch also has the rows of all ranks, behind its own:
                first the places of its own rows among them, shape (own rows,), then these tensors.
        """
        shard = copy(self)
        shard._rank, shard._num_ranks, shard._met = rank, num_ranks, tuple(met)
        shard._batch_of = shard.rows_at
        if self._device is not None:
            shard.to(self._device)
        return shard

    def joined(self, world: World, met: Sequence[int] = ()) -> Self:
        """Return a copy that hands out its own rows, as a part of the batches of all ranks.

        A batch has nearly as many of its rows as any other, and none where a rank has fewer rows
        than there are batches.

        Args:
            world: The ranks, each with rows of its own.
            met: As for `shard`.
        """
        part = copy(self)
        part._world, part._met = world, tuple(met)
        part._rows_of_each = world.gather(len(self.indices))
        part._rows_of_all = sum(part._rows_of_each)
        part._batch_of = part.rows_at
        if self._device is not None:
            part.to(self._device)
        return part

    def select(self, indices: Tensor) -> bool:
        """Choose from these rows from now on.

        Args:
            indices: Row numbers, shape (num_rows,), as many as before.
        """
        self.indices = indices.to(self.indices.device)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to continue this pass after the batch handed out last."""
        return {"handed_out": self._handed_out}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass begin after the batch at which `state_dict` was called."""
        self._handed_out = state["handed_out"]
        self._skip = self._handed_out % len(self)


class SbiOrderBatches(InMemoryBatches):
    """Batches in exactly the order, and with the random draws, of sbi's DataLoader.

    torch's DataLoader draws a base seed per pass and its SubsetRandomSampler then permutes the
    indices, both from torch's global generator; the last partial batch is dropped.
    """

    def __init__(self, tensors: Sequence[Tensor], indices: Tensor, batch_size: int) -> None:
        super().__init__(tensors, indices, batch_size)
        self._random_state = torch.get_rng_state()
        self._own_order = torch.empty(0)

    def __len__(self) -> int:
        return len(self.indices) // self.batch_size

    def _order(self) -> Tensor:
        if self._num_ranks > 1:
            return self._order_for_all_ranks()
        if not self._skip:
            self._random_state = torch.get_rng_state()
            return self._draw()
        now = torch.get_rng_state()
        torch.set_rng_state(self._random_state)
        order = self._draw()
        torch.set_rng_state(now)
        return order

    def _order_for_all_ranks(self) -> Tensor:
        """Draw from states of its own, because ranks draw other noise between two passes."""
        now = torch.get_rng_state()
        if not self._skip and len(self._own_order):
            self._random_state = self._own_order
        torch.set_rng_state(self._random_state)
        order = self._draw()
        self._own_order = torch.get_rng_state()
        torch.set_rng_state(now)
        return order

    def _draw(self) -> Tensor:
        torch.empty((), dtype=torch.int64).random_()
        return looked_up(self.indices, torch.randperm(len(self.indices)))

    def _bounds(self) -> list[int]:
        return [i * self.batch_size for i in range(len(self) + 1)]

    def state_dict(self) -> dict[str, Any]:
        """Return position and the random state from which this pass drew its order."""
        states = {"random_state": self._random_state}
        if self._num_ranks > 1:
            states["next_random_state"] = self._own_order
        return {**super().state_dict(), **states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the pass that `state_dict` described."""
        super().load_state_dict(state)
        self._random_state = state["random_state"]
        self._own_order = state.get("next_random_state", self._own_order)


class ShuffledBatches(InMemoryBatches):
    """Every row once per pass, in batches whose sizes differ by at most one.

    The order of pass number k depends on (seed, k) alone.

    Attributes:
        seed: Decides the order of every pass.
    """

    def __init__(
        self, tensors: Sequence[Tensor], indices: Tensor, batch_size: int, seed: int
    ) -> None:
        super().__init__(tensors, indices, batch_size)
        self.seed = seed
        self._pass = -1

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def _order(self) -> Tensor:
        if not self._skip:
            self._pass += 1
        return looked_up(self.indices, permutation(len(self.indices), self.seed, self._pass))

    def _bounds(self) -> list[int]:
        return even_bounds(len(self.indices), len(self))

    def state_dict(self) -> dict[str, Any]:
        """Return position, seed and number of the pass."""
        return {**super().state_dict(), "seed": self.seed, "pass": self._pass}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the pass that `state_dict` described."""
        super().load_state_dict(state)
        self.seed, self._pass = state["seed"], state["pass"]


class OrderedBatches(InMemoryBatches):
    """Every row once per pass, always in the same order and the same batches: for validation."""

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def _order(self) -> Tensor:
        return self.indices

    def _bounds(self) -> list[int]:
        return even_bounds(len(self.indices), len(self))


class BatchIndices(Sampler[list[int]]):
    """Even batches of row numbers for a torch DataLoader, shuffled by (seed, pass) or in order.

    Attributes:
        indices: Row numbers, shape (num_selected,).
        batch_size: Rows in a batch, at most.
        seed: Decides the order of every pass; None keeps the order of `indices`.
        share: Rank and number of the processes that share every batch.
    """

    def __init__(self, indices: Tensor, batch_size: int, seed: int | None) -> None:
        self.indices, self.batch_size, self.seed = indices, batch_size, seed
        self.share: tuple[int, int] = (0, 1)
        self._pass = -1

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.indices
        if self.seed is not None:
            self._pass += 1
            order = looked_up(order, permutation(len(order), self.seed, self._pass))
        bounds = even_bounds(len(order), len(self))
        rank, num_ranks = self.share
        for begin, end in pairwise(bounds):
            yield order[begin + rank : end : num_ranks].tolist()

    def state_dict(self) -> dict[str, Any]:
        """Return seed and number of the pass."""
        return {"seed": self.seed, "pass": self._pass}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count passes on from `state_dict`."""
        self.seed, self._pass = state["seed"], state["pass"]


def even_bounds(num_rows: int, num_batches: int) -> list[int]:
    """Return `num_batches + 1` bounds that cut rows into parts whose sizes differ by at most one.

    Example:
        >>> even_bounds(10, 3)
        [0, 3, 6, 10]
    """
    return [i * num_rows // num_batches for i in range(num_batches + 1)]


def looked_up(values: Tensor, places: Tensor) -> Tensor:
    """Return `values[places]`, in the memory of the places.

    Args:
        values: Whole numbers, shape (num_values,).
        places: Where to look, shape (num_places,); on another device than the values, it is left.

    Example:
        >>> looked_up(torch.tensor([7, 8, 9]), torch.tensor([2, 0]))
        tensor([9, 7])
    """
    places = places.to(values.device)
    for chunk in places.split(_LOOKED_UP_AT_ONCE):
        chunk.copy_(values[chunk])
    return places


def permutation(length: int, seed: int, *numbers: int) -> Tensor:
    """Return permutation number `numbers` of the stream that `seed` names, shape (length,)."""
    # torch's generator uses only 32 bits of a seed: both numbers must be mixed into them.
    (mixed,) = np.random.SeedSequence((seed, *numbers)).generate_state(1)
    return torch.randperm(length, generator=torch.Generator().manual_seed(int(mixed)))
