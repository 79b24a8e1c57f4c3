"""Simulators for processes, which import nothing but this file to find them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def noisy(theta: Any) -> Any:
    """Draw from all three global generators."""
    noise = np.random.normal(size=theta.shape) + random.random()
    return theta + torch.randn_like(theta) + torch.from_numpy(noise).float()


class OwnGenerator:
    """A simulator whose noise repeats wherever it is copied to."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def __call__(self, theta: Any) -> Any:
        """Draw from its own generator."""
        return theta.numpy() + self.generator.normal(size=theta.shape)
