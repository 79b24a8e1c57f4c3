"""The data contract: what a training asks of its batches, whatever holds the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor


@runtime_checkable
class Batches(Protocol):
    """Batches of rows, one pass per epoch, that a training can identify, interrupt and resume.

    `InMemoryBatches` holds tensors; `ForeignBatches` wraps DataLoaders and other iterables. A new
    kind of storage implements this protocol and needs no change in the training loop.

    Attributes:
        name: What users call this source, for error messages.
    """

    name: str

    @property
    def num_rows(self) -> int | None:
        """Rows in one pass, over all ranks; None if the source does not know."""
        ...

    @property
    def batch_size(self) -> int | None:
        """Rows of a full batch, over all ranks; None if the source does not know."""
        ...

    @property
    def rows(self) -> Tensor | None:
        """Row numbers of the latest batch, shape (batch,); None if rows are not numbered."""
        ...

    @property
    def tensors(self) -> tuple[Tensor, ...] | None:
        """Tensors behind the rows, each of shape (all rows, ...); None if there are none."""
        ...

    @property
    def resumes_inside_epoch(self) -> bool:
        """Whether `load_state_dict` continues with the next batch rather than the next pass."""
        ...

    @property
    def uses_processes(self) -> bool:
        """Whether iterating starts worker processes."""
        ...

    @property
    def unsaved_state(self) -> str:
        """What keeps a resumed run from getting the same batches; "" if nothing does."""
        ...

    @property
    def maker(self) -> Any:
        """The dataset or loader that makes rows as they are asked for; None if data are held."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Tell whoever orders the rows, such as a user's sampler, which epoch begins, from 0."""
        ...

    def __len__(self) -> int:
        """Return the number of batches in one pass."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of one pass, or the rest of it after `load_state_dict`."""
        ...

    def rows_at(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the rows with these numbers, shape (batch,); empty if rows have no numbers."""
        ...

    def fingerprint(self) -> list[dict[str, Any]] | None:
        """Return dtype, shape and digest of the data, which identify a run; None if unknown."""
        ...

    def to(self, device: torch.device) -> None:
        """Deliver batches on `device` from now on, if the source can; else the step moves them."""
        ...

    def shard(self, rank: int, num_ranks: int) -> Batches:
        """Return the share of one rank: of every batch, rows `rank`, `rank + num_ranks`, ...

        All ranks get the same number of batches, and together every row of the pass once.

        Args:
            rank: Number of this process, from 0.
            num_ranks: How many processes share each batch.

        Raises:
            ArgumentError: If the source cannot be divided.
        """
        ...

    def select(self, indices: Tensor) -> bool:
        """Choose from these rows from now on, as a resumed run did; return whether that worked.

        Args:
            indices: Row numbers, shape (num_rows,), as many as before.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return position and random state, as tensors and plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue from a state."""
        ...


def num_rows(batch: Any) -> int:
    """Return the length of the first tensor or array in a batch of any structure; 1 without.

    Example:
        >>> num_rows({"theta": torch.zeros(3, 2), "x": torch.zeros(3)})
        3
    """
    rows = known_rows(batch)
    return 1 if rows is None else rows


def known_rows(batch: Any) -> int | None:
    """Return the length of the first tensor or array in a batch of any structure; None without.

    Example:
        >>> known_rows(["a", torch.zeros(3)]), known_rows(object())
        (3, None)
    """
    if isinstance(batch, Tensor | np.ndarray):
        return len(batch) if batch.ndim else None
    values = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        return None
    found = (known_rows(value) for value in values)
    return next((rows for rows in found if rows is not None), None)
