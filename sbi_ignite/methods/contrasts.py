"""Classifier logits of every x in a batch with its own theta and with others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
