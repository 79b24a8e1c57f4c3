"""Choose the rows of a batch that each of its rows is contrasted with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sbi_ignite.exceptions import DataError
from sbi_ignite.methods.base import Classifier


@dataclass(frozen=True)
class InBatchContrasts:
    """Classifier logits in which each x meets the theta of the rows behind it in a random order.

    sbi draws the other theta of every row from all rows, by weights of shape (batch, batch), which
    takes a third of a step. Here one random order serves all rows. For each row, the others are as
    random as before, without repetition; over the batch, each theta is met equally often.

    Attributes:
        classifier: Returns the logits of pairs of theta and x.
    """

    classifier: Classifier

    def __call__(
        self, theta: Tensor, x: Tensor, num_atoms: int, own: Tensor | None = None
    ) -> Tensor:
        """Return logits, shape (batch * num_atoms,); every `num_atoms`-th is of a joint pair.

        Args:
            theta: Parameters, shape (batch, dim_theta).
            x: Data, shape (batch, ...), or (own rows, ...).
            num_atoms: How many theta each x meets, its own first; at most the batch size.
            own: Which rows of theta belong to x, shape (own rows,), where other processes have the
                x of the others; all draw the same order. None: all.

        Raises:
            DataError: If a batch has fewer rows than that, or no other row to meet.
        """
        size = len(theta)
        if size < max(2, num_atoms):
            raise DataError(
                f"Ratio estimation sets each x against {max(1, num_atoms - 1)} other theta of its "
                f"batch, and this batch has {size} row{'s' * (size != 1)}. Take a larger "
                "batch_size, fewer atoms or classes, or more simulations."
            )
        order = torch.randperm(size, device=theta.device)
        if own is not None:
            return self._of_own(theta, x, num_atoms, order, own)
        position = torch.arange(size, device=theta.device)
        offset = torch.arange(num_atoms, device=theta.device)
        met = order[(position[:, None] + offset) % size].reshape(-1)
        own = order[:, None].expand(size, num_atoms).reshape(-1)
        return self.classifier(theta.index_select(0, met), x.index_select(0, own))

    def _of_own(
        self, theta: Tensor, x: Tensor, num_atoms: int, order: Tensor, own: Tensor
    ) -> Tensor:
        """Return the logits of some x, which meet whom they meet in a batch of all."""
        size = len(order)
        places = torch.empty_like(order)
        places[order] = torch.arange(size, device=order.device)
        offset = torch.arange(num_atoms, device=order.device)
        met = order[(places[own][:, None] + offset) % size].reshape(-1)
        repeated = torch.arange(len(own), device=order.device).repeat_interleave(num_atoms)
        return self.classifier(theta.index_select(0, met), x.index_select(0, repeated))


def met_in_one_order(size: int, num_met: int, device: torch.device) -> Tensor:
    """Return the rows that each row of a batch meets: those behind it in a random order.

    Args:
        size: Rows of the batch.
        num_met: How many rows each one meets, fewer than `size`.
        device: Where to draw.

    Returns:
        Row numbers, shape (size, num_met); none meets itself, or another one twice.

    Example:
        >>> met_in_one_order(3, 2, torch.device("cpu")).sort().values
        tensor([[1, 2],
                [0, 2],
                [0, 1]])
    """
    order = torch.randperm(size, device=device)
    place = torch.empty_like(order)
    place[order] = torch.arange(size, device=device)
    offset = torch.arange(1, num_met + 1, device=device)
    return order[(place[:, None] + offset) % size]


class AtomsInOneOrder(TorchFunctionMode):
    """Let the atoms of all rows of a batch come from one random order inside the block.

    sbi's atomic loss draws the other rows that each row is contrasted with by equal weights of
    shape (batch, batch), which takes a tenth of a step. As in `InBatchContrasts`, the others of a
    row are as random as before; over the batch, each row is met equally often. Only the first such
    draw is replaced: those after it are the network's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._has_drawn = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        is_draw = func is torch.multinomial and not self._has_drawn and len(args) == 1
        if is_draw and _draws_others(args[0], **kwargs):
            self._has_drawn = True
            return met_in_one_order(len(args[0]), kwargs["num_samples"], args[0].device)
        return func(*args, **kwargs)


def _draws_others(
    weights: Tensor, num_samples: int = 0, replacement: bool = False, **more: Any
) -> bool:
    """Return whether a draw takes some of the other rows for every row of a batch."""
    size = len(weights)
    return not replacement and not more and weights.shape == (size, size) and num_samples < size
