"""Split the rows of a data set into those for training and those for validation."""

from __future__ import annotations

import torch
from torch import Tensor

from sbi_ignite.exceptions import DataError


def split_rows(
    rows: Tensor,
    validation_fraction: float,
    at_least: int = 0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Split rows at random.

    Args:
        rows: Row numbers to choose from, shape (num_rows,).
        validation_fraction: Share of the rows kept for validation.
        at_least: Rows that are kept for validation, however small the share.
        generator: Draws the rows; None for torch's global generator, as in sbi.

    Returns:
        Row numbers for training and for validation.
    """
    num_train = max(0, min(int((1 - validation_fraction) * len(rows)), len(rows) - at_least))
    shuffled = rows[torch.randperm(len(rows), generator=generator)]
    return shuffled[:num_train], shuffled[num_train:]


def bootstrapped(rows: Tensor, seed: int) -> Tensor:
    """Return as many rows as there are, drawn from them with replacement.

    Args:
        rows: Row numbers, shape (num_rows,).
        seed: Decides which.

    Example:
        >>> len(bootstrapped(torch.arange(5), seed=0))
        5
    """
    generator = torch.Generator().manual_seed(seed)
    return rows[torch.randint(len(rows), (len(rows),), generator=generator)]


def check_split(
    num_train: int,
    num_validation: int,
    at_least: int,
    fraction: float,
    where: str = "",
    at_least_train: int = 0,
) -> None:
    """Refuse a split that leaves too little on either side.

    Args:
        num_train: Rows for training.
        num_validation: Rows for validation.
        at_least: Rows that each side needs.
        fraction: The validation fraction in force, for the message.
        where: Where the fraction came from, for the message.
        at_least_train: Rows that the training side needs, where it needs more.

    Raises:
        DataError: If a side has fewer rows.
    """
    total = num_train + num_validation
    origin = f" ({where})" if where else ""
    split = f"{{}} of {total} simulations at validation_fraction={fraction:g}{origin}"
    at_least_train = max(at_least, at_least_train)
    if num_validation < at_least:
        enough = (f / 100 for f in range(1, 100) if total - int((1 - f / 100) * total) >= at_least)
        needed = next(enough, None) if total >= at_least + at_least_train else None
        advice = (
            f"at least {at_least + at_least_train} in all"
            if needed is None
            else f"or take validation_fraction={needed:g}"
        )
        raise DataError(
            f"The validation set would have {split.format(num_validation)}, expected at least "
            f"{at_least}. Add simulations, {advice}."
        )
    if num_train < at_least_train:
        raise DataError(
            f"The training set would have {split.format(num_train)}, expected at least "
            f"{at_least_train}. Add simulations or lower validation_fraction."
        )
