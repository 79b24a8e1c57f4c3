"""Small ensembles for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sbi_ignite import TrainConfig, train_ensemble
from tests.small import append, draw, empty

CONFIG = TrainConfig(max_epochs=3, batch_size=50)


def maker(name: str = "NPE_C", num_rows: int = 120, **kwargs: Any) -> Callable[[], Any]:
    """Return a function that makes a trainer with simulations, the same ones in every call."""
    torch.manual_seed(1)
    theta, x = draw(num_rows)
    return lambda: append(empty(name, **kwargs), theta, x)


def ensemble(make: Any | None = None, members: int | None = 2, **kwargs: Any) -> Any:
    """Return a trained ensemble with seed 5."""
    kwargs = {"config": CONFIG, "seed": 5, **kwargs}
    return train_ensemble(maker() if make is None else make, members, **kwargs)
