"""Choose the simulations on which a posterior is checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbi_ignite.bridge.lines import private
from sbi_ignite.bridge.memory import memory_of
from sbi_ignite.exceptions import ArgumentError, DataError

LEAST = 20
"""Simulations below which nothing can be said."""


def validation_rows(trainer: Any, who: str) -> tuple[Tensor, Tensor]:
    """Return the rows that a trainer validates on, as far as they are draws from the prior.

    Args:
        trainer: One of sbi's trainers, training or trained.
        who: Who asks, for messages.

    Returns:
        theta, shape (num_rows, dim_theta), and x, shape (num_rows, ...).

    Raises:
        ArgumentError: If there are too few, or none that is from the prior.
    """
    own = memory_of(trainer).validation
    if own is not None:
        theta, x, masks = own
    else:
        rows = getattr(trainer, "val_indices", None)
        if rows is None:
            raise ArgumentError(
                f"{who}: expected held-out simulations, got none: {type(trainer).__name__} has not "
                "been trained. Pass theta and x."
            )
        rows = torch.as_tensor(rows).long()
        # Every round was simulated; the split counts from the first that is trained on.
        tensors = private(trainer).simulations(_first_round(trainer, rows))
        theta, x, masks = (tensor[rows.to(tensor.device)] for tensor in tensors)
    from_prior = masks.reshape(-1).bool()
    if not from_prior.any():
        raise ArgumentError(
            f"{who}: expected held-out simulations whose parameters are draws from the prior, "
            "which calibration refers to, got validation rows that are all draws from a "
            "proposal. Pass theta and x, simulated from the prior."
        )
    return checked_pairs(theta[from_prior], x[from_prior], who)


def checked_pairs(theta: Any, x: Any, who: str) -> tuple[Tensor, Tensor]:
    """Return pairs of parameters and data as tensors, without rows that are not finite.

    Args:
        theta: Parameters, shape (num_rows, dim_theta).
        x: Data, shape (num_rows, ...).
        who: Who asks, for messages.

    Raises:
        DataError: If they do not belong together or are too few.
    """
    theta, x = (torch.as_tensor(part, dtype=torch.float32) for part in (theta, x))
    if theta.ndim != 2 or x.ndim < 2 or len(theta) != len(x):
        raise DataError(
            f"{who}: expected theta of shape (num_rows, dim_theta) and as many rows of x, got "
            f"{tuple(theta.shape)} and {tuple(x.shape)}."
        )
    finite = theta.isfinite().all(dim=1) & x.flatten(1).isfinite().all(dim=1)
    if int(finite.sum()) < LEAST:
        raise DataError(
            f"{who}: expected at least {LEAST} held-out simulations (200 say something), got "
            f"{int(finite.sum())}. Pass theta and x, or validate on more."
        )
    return theta[finite], x[finite]


def names_of(dim: int, names: Any, who: str) -> tuple[str, ...]:
    """Return a name for each parameter.

    Args:
        dim: How many there are.
        names: The user's; None takes theta_0, theta_1, ...
        who: Who asks, for the message.

    Raises:
        ArgumentError: If there are more or fewer.
    """
    found = tuple(map(str, names)) if names is not None else tuple(f"theta_{i}" for i in range(dim))
    if len(found) != dim:
        raise ArgumentError(
            f"{who}: expected {dim} parameter_names, one for each parameter, got {len(found)}."
        )
    return found


def _first_round(trainer: Any, rows: Tensor) -> int:
    """Return the round from which the split of a trainer counts its rows.

    A trainer that discards simulations of the prior counts from the first round after it.
    """
    total = len(rows) + len(getattr(trainer, "train_indices", ()))
    for first in range(private(trainer).round_index + 1):
        if len(private(trainer).simulations(first)[0]) == total:
            return first
    return 0
