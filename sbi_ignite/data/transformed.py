"""Draw every batch anew on its way to a training, such as x with fresh noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from sbi_ignite.data.foreign import as_batches
from sbi_ignite.data.source import Batches
from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.random_state import draws_of


class TransformedBatches:
    """Batches of another source, each drawn anew; see `Batches` for the contract.

    Args:
        batches: The source.
        transform: Called with the parts of a batch; returns a batch.
        fixed: Draw the same for a batch in every pass: for validation.
    """

    def __init__(
        self, batches: Batches, transform: Callable[..., Any], fixed: bool = False
    ) -> None:
        self.batches, self.transform, self.fixed = batches, transform, fixed
        self.name = batches.name

    @property
    def num_rows(self) -> int | None:
        """Rows in one pass."""
        return self.batches.num_rows

    @property
    def batch_size(self) -> int | None:
        """Rows of a full batch."""
        return self.batches.batch_size

    @property
    def rows(self) -> Tensor | None:
        """Row numbers of the latest batch."""
        return self.batches.rows

    @property
    def tensors(self) -> tuple[Tensor, ...] | None:
        """Tensors behind the rows, as they are before they are drawn anew."""
        return self.batches.tensors

    @property
    def resumes_inside_epoch(self) -> bool:
        """Whether the source continues with the next batch rather than the next pass."""
        return self.batches.resumes_inside_epoch

    @property
    def uses_processes(self) -> bool:
        """Whether the source starts worker processes."""
        return self.batches.uses_processes

    @property
    def maker(self) -> Any:
        """The one of the source."""
        return self.batches.maker

    @property
    def unsaved_state(self) -> str:
        """What keeps a resumed run from getting the same batches."""
        return self.batches.unsaved_state

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches):
            if not self.fixed:
                yield self._drawn(batch)
                continue
            with draws_of(number):
                drawn = self._drawn(batch)
            yield drawn

    def set_epoch(self, epoch: int) -> None:
        """Tell the source which epoch begins, from 0."""
        self.batches.set_epoch(epoch)

    def _drawn(self, batch: Any) -> Any:
        return self.transform(*batch) if isinstance(batch, tuple | list) else self.transform(batch)

    def rows_at(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the rows with these numbers, as they are before they are drawn anew."""
        return self.batches.rows_at(rows)

    def fingerprint(self) -> list[dict[str, Any]] | None:
        """Return what identifies the data."""
        return self.batches.fingerprint()

    def to(self, device: torch.device) -> None:
        """Let the source deliver on a device."""
        self.batches.to(device)

    def shard(self, rank: int, num_ranks: int) -> Self:
        """Return the share of one rank."""
        return type(self)(self.batches.shard(rank, num_ranks), self.transform, self.fixed)

    def select(self, indices: Tensor) -> bool:
        """Let the source choose from these rows from now on."""
        return self.batches.select(indices)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the source; draws belong to the random states of the training."""
        return self.batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the source."""
        self.batches.load_state_dict(state)


class WithTransform:
    """Data and a transform, which `run_training` puts together; made by `with_transform`.

    Args:
        data: A data set, a loader or batches.
        transform: Called with the parts of a batch; returns a batch.
    """

    def __init__(self, data: Any, transform: Callable[..., Any]) -> None:
        self.data, self.transform = data, transform

    def over(self, loader: Any, name: str, fixed: bool = False) -> TransformedBatches:
        """Return the batches of a loader, each drawn anew.

        Args:
            loader: Made of the data.
            name: The argument that it was passed as.
            fixed: Draw the same for a batch in every pass.
        """
        return TransformedBatches(as_batches(loader, name), self.transform, fixed)


def with_transform(data: Any, transform: Callable[..., Any]) -> WithTransform:
    """Draw every batch of a `run_training` anew.

    What the transform draws from torch's, numpy's and python's global generators belongs to the
    random states of the training, so that a resumed run continues exactly. As validation data,
    batches get the same draws in every epoch.

    Args:
        data: What `run_training` takes: simulations in files, a data set, a loader.
        transform: `transform(theta, x)` for batches of two tensors, and returns such a pair;
            generally it is called with the parts of a batch and returns a batch.

    Raises:
        ArgumentError: If the transform cannot be called.

    Example:
        >>> from sbi_ignite import TrainConfig, run_training
        >>> data = torch.utils.data.TensorDataset(torch.randn(64, 2), torch.randn(64, 1))
        >>> noisy = with_transform(data, lambda x, y: (x + 0.1 * torch.randn_like(x), y))
        >>> model, summary = run_training(
        ...     TrainConfig(max_epochs=2),
        ...     torch.nn.Linear(2, 1),
        ...     lambda model, batch: (model(batch[0]) - batch[1]).square().mean(dim=1),
        ...     noisy,
        ... )
        >>> summary.epochs_trained
        2
    """
    if not callable(transform):
        raise ArgumentError(f"transform: expected a function of a batch, got {transform!r}.")
    if isinstance(data, WithTransform):
        raise ArgumentError("data: it has a transform already. Put both into one function.")
    return WithTransform(data, transform)
