"""What run.json says about a training."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from sbi_ignite.runs.fingerprint import DATASET, MODULES, fingerprint_network
from sbi_ignite.runs.machine import describe_machine

TORCH_SEED = "torch_seed"
"""Name of the seed of torch's generator when the run began."""

WORLD_SIZE = "world_size"
"""Name of the number of processes that train together."""

RESUMES = "inexact_resumes"
"""Name of the resumes that may have changed the last bits: where they began, and what changed."""


def versions() -> dict[str, str]:
    """Return the versions of python and of the packages that affect the numbers."""
    found = {"python": platform.python_version()}
    for name in ("torch", "sbi", "pytorch-ignite", "numpy", "nflows", "zuko", "sbi-ignite"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    from sbi_ignite._version import __version__

    return {**found, "sbi-ignite": __version__}


def make_manifest(
    *,
    method: str,
    settings: Mapping[str, Any],
    seed: int | None = None,
    data: Sequence[Mapping[str, Any]] | None = None,
    validation_data: Sequence[Mapping[str, Any]] | None = None,
    optimizer: Sequence[Mapping[str, Any]] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    network: nn.Module | None = None,
    estimator: Mapping[str, Any] | None = None,
    modules: Mapping[str, Any] | None = None,
    dataset: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the manifest of a training that begins.

    Args:
        method: Name of the method.
        settings: `Resolved.to_dict()`.
        seed: Seed of the training, None without one.
        data: Fingerprint of the data; None for data that has none.
        validation_data: Likewise, where they are not part of the data.
        optimizer: Options of a user's optimizer, from `describe_optimizer`; None for our own.
        scheduler: Options of a user's scheduler, from `describe_scheduler`; None for our own.
        network: The network.
        estimator: How to build the network again, from `describe_network`.
        modules: The code of a user's modules, from `describe_modules`; None without.
        dataset: The code of data made on the fly, from `describe_dataset`; None without.
    """
    return {
        "status": "running",
        "stop_reason": None,
        "method": method,
        "seed": seed,
        TORCH_SEED: torch.initial_seed(),
        "data": None if data is None else list(data),
        "validation_data": None if validation_data is None else list(validation_data),
        "optimizer": None if optimizer is None else list(optimizer),
        "scheduler": None if scheduler is None else dict(scheduler),
        "network": None if network is None else fingerprint_network(network),
        "settings": dict(settings),
        "versions": versions(),
        "machine": describe_machine(_device_of(network)),
        "estimator": None if estimator is None else dict(estimator),
        **({} if modules is None else {MODULES: dict(modules)}),
        **({} if dataset is None else {DATASET: dict(dataset)}),
    }


def _device_of(network: nn.Module | None) -> torch.device | None:
    """Return where a network's first parameter is."""
    first = None if network is None else next(network.parameters(), None)
    return None if first is None else first.device
