"""The states of all random generators: python's, numpy's and torch's."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """Return the states of python's, numpy's and torch's generators, as tensors and plain data."""
    numpy_state: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = numpy_state
    states = {
        "python": random.getstate(),
        # Plain data instead of numpy's arrays: torch.load(weights_only=True) refuses those.
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    # Asking would start CUDA, on every card, for a training that has nothing to do with it.
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Bring all generators to states that `random_states` returned."""
    random.setstate(_as_tuple(states["python"]))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def _as_tuple(value: Any) -> Any:
    """Return nested lists as the nested tuples that python's generator insists on."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value
