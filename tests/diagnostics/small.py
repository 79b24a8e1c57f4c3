"""Trainers of every method with little data, for checks of their posteriors."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.small import append, draw, empty

WITH_POSTERIOR = (
    *("NPE_A", "NPE_B", "NPE_C", "MNPE", "NLE_A", "MNLE"),
    *("NRE_A", "NRE_B", "NRE_C", "BNRE", "FMPE", "NPSE"),
)


def many(name: str = "NPE_C", num_rows: int = 400, **kwargs: Any) -> Any:
    """Return a trainer with so many simulations that 40 are held out."""
    torch.manual_seed(1)
    return append(empty(name, **kwargs), *draw(num_rows))


def generators() -> list[Any]:
    """Return the next draw of every random generator."""
    return [torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()]


def pairs(num_rows: int = 60) -> tuple[Tensor, Tensor]:
    """Return held-out simulations, the same in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(99)
        return draw(num_rows)
