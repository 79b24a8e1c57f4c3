"""Validate on rows that the user gives, instead of on a share of the simulations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_ignite.bridge.arguments import Call
from sbi_ignite.bridge.lines import private
from sbi_ignite.bridge.memory import memory_of
from sbi_ignite.bridge.split import valid_rows
from sbi_ignite.data.fingerprint import fingerprint_data
from sbi_ignite.exceptions import ArgumentError, DataError


def own_validation(
    trainer: Any, call: Call, tensors: Sequence[Tensor]
) -> tuple[Tensor, ...] | None:
    """Return the tensors of the user's own validation set, None if the call has none.

    Args:
        trainer: The trainer, which remembers them.
        call: The call.
        tensors: The simulations: theta (num_rows, ...), x (num_rows, ...) and masks
            (num_rows, 1); of a MarginalTrainer x alone.

    Returns:
        The same for validation.

    Raises:
        ArgumentError: If it is no pair of tensors, or not that of the training that is resumed.
        DataError: If its shapes differ from those of the simulations, or too few rows are valid.
    """
    memory = memory_of(trainer)
    continues = call.settings.train.resume_training and hasattr(trainer, "optimizer")
    earlier = memory.validation
    if call.validation is None:
        if continues and earlier is not None:
            raise _another_set("none")
        memory.validation = None
        return None
    found = _tensors(call.validation, tensors, int(private(trainer).round_index > 0))
    found = _valid(found, call, tensors)
    least = call.family.rows_needed
    if len(found[0]) < least:
        raise DataError(
            f"validation: expected at least {least} valid rows, got {len(found[0])}. Add rows."
        )
    if continues and (earlier is None or fingerprint_data(earlier) != fingerprint_data(found)):
        raise _another_set("another one")
    memory.validation = found
    return found


def _another_set(found: str) -> ArgumentError:
    return ArgumentError(
        "validation: expected the validation set of the training that resume_training=True "
        f"continues, got {found}. Pass the same one, or train anew without resume_training"
    )


def _tensors(given: Any, tensors: Sequence[Tensor], later_round: int) -> tuple[Tensor, ...]:
    """Return what was given in the form of the simulations."""
    alone = len(tensors) == 1
    parts = (given,) if alone and isinstance(given, Tensor) else given
    names = ("x",) if alone else ("theta", "x")
    most = len(names) if alone else len(names) + 1
    if (
        not isinstance(parts, Sequence)
        or not len(names) <= len(parts) <= most
        or not all(hasattr(part, "shape") for part in parts)
    ):
        shown = type(given).__name__
        if isinstance(given, Sequence):
            shown += f" of {', '.join(type(part).__name__ for part in given)}"
        raise ArgumentError(
            f"validation: expected {'x' if alone else '(theta, x)'}, as tensors, got {shown}."
        )
    found = [_like(*pair) for pair in zip(names, parts, tensors, strict=False)]
    if alone:
        return tuple(found)
    if len(found[0]) != len(found[1]):
        raise DataError(
            f"validation: expected as many rows of theta as of x, got {len(found[0])} and "
            f"{len(found[1])}."
        )
    return (*found, _masks(parts[2:], tensors[2], len(found[0]), later_round))


def _like(name: str, given: Any, simulations: Tensor) -> Tensor:
    """Return what was given with dtype and device of the simulations."""
    if tuple(given.shape[1:]) != tuple(simulations.shape[1:]) or len(given.shape) == 0:
        wanted = ", ".join(map(str, ("num_rows", *simulations.shape[1:])))
        raise DataError(
            f"validation: expected {name} of shape ({wanted}), as in the simulations, got "
            f"{tuple(given.shape)}."
        )
    return torch.as_tensor(given, dtype=simulations.dtype, device=simulations.device).detach()


def _masks(given: Sequence[Any], masks: Tensor, num_rows: int, later_round: int) -> Tensor:
    """Return which rows are draws from the prior, shape (num_rows, 1)."""
    if not given:
        return torch.full((num_rows, 1), not later_round, dtype=masks.dtype, device=masks.device)
    if tuple(given[0].shape) not in ((num_rows,), (num_rows, 1)):
        raise DataError(
            f"validation: expected a third entry, which says what rows are from the prior, of "
            f"shape ({num_rows},), got {tuple(given[0].shape)}."
        )
    return torch.as_tensor(given[0], dtype=masks.dtype, device=masks.device).reshape(-1, 1)


def _valid(found: tuple[Tensor, ...], call: Call, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Leave out rows with NaN or Inf in x, as the simulations do."""
    x, simulated = (found[0], tensors[0]) if len(found) == 1 else (found[1], tensors[1])
    exclude = call.exclude_invalid_x
    if exclude is None:
        # append_simulations() has left out such rows, unless they were meant to stay.
        stays = bool(x.isfinite().all()) or not bool(simulated.isfinite().all())
        exclude = None if stays else True
    rows = valid_rows(x, exclude)
    return found if len(rows) == len(x) else tuple(t[rows.to(t.device)] for t in found)
