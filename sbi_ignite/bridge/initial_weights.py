"""Begin a training with the weights of an earlier one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sbi_ignite.bridge.load import weights_of_run
from sbi_ignite.data.fingerprint import fingerprint_data
from sbi_ignite.exceptions import ArgumentError, CheckpointError

_SHOWN = 5
"""Differences between two networks that an error names."""


def check_init_from(source: Any) -> None:
    """Refuse what cannot hold weights.

    Args:
        source: The argument `init_from`; None is none.

    Raises:
        ArgumentError: If it is of another type.
    """
    if source is None or isinstance(source, str | os.PathLike | nn.Module):
        return
    if isinstance(source, Mapping) and all(isinstance(name, str) for name in source):
        return
    raise ArgumentError(
        "init_from: expected the run directory of an earlier training, a state dict or an "
        f"estimator, got {type(source).__name__}."
    )


def load_initial_weights(
    network: nn.Module, source: Any, has_begun: Callable[[], bool]
) -> dict[str, Any] | None:
    """Load weights into a network, z-scoring included, and return what they came from.

    Args:
        network: The network, just built.
        source: A run directory, a state dict or an estimator.
        has_begun: Says whether the training has begun in its own run directory, which then has
            weights, so that a source that is gone does not matter.

    Returns:
        "source", and "weights", a fingerprint; of a run directory also its "run", "method" and
        "epoch". None if the source is gone and not needed.

    Raises:
        ArgumentError: If the weights are those of another architecture.
        CheckpointError: If the run directory has none.
    """
    try:
        weights, origin = _read(source)
    except CheckpointError:
        if not has_begun():
            raise
        return None
    wanted = network.state_dict()
    differences = _differences(wanted, weights)
    if differences:
        shown = "; ".join(differences[:_SHOWN])
        more = len(differences) - _SHOWN
        rest = f"; and {more} more" if more > 0 else ""
        raise ArgumentError(
            f"init_from: expected weights of the network of this trainer "
            f"({type(network).__name__}, {sum(p.numel() for p in network.parameters())} "
            f"parameters), got those of another architecture from {origin['source']}: "
            f"{shown}{rest}. Build the trainer with the same network"
        )
    network.load_state_dict(weights)
    tensors = [weights[name] for name in sorted(wanted) if isinstance(wanted[name], Tensor)]
    digest = fingerprint_data([t.reshape(-1) for t in tensors])
    return {**origin, "weights": _one_digest(digest)}


def _read(source: Any) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return weights, and where they are from in words."""
    if isinstance(source, nn.Module):
        return source.state_dict(), {"source": f"estimator {type(source).__name__}"}
    if isinstance(source, Mapping):
        return source, {"source": "state dict"}
    try:
        folder, manifest, best = weights_of_run(Path(source))
    except CheckpointError as error:
        raise CheckpointError(f"init_from: {error}") from error
    origin = {
        "source": str(folder),
        "run": manifest.get("run"),
        "method": manifest.get("method"),
        "epoch": best.get("epoch"),
    }
    return best["weights"], origin


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Say by which tensors two state dicts differ in structure."""
    said = []
    for name in (*wanted, *(name for name in found if name not in wanted)):
        here, there = _shape(wanted, name), _shape(found, name)
        if here != there:
            said.append(f"{name}: expected {here}, got {there}")
    return said


def _shape(state: Mapping[str, Any], name: str) -> str:
    if name not in state:
        return "nothing"
    return str(tuple(state[name].shape)) if isinstance(state[name], Tensor) else "no tensor"


def _one_digest(fingerprints: list[dict[str, Any]]) -> str:
    """Return one digest of several tensors."""
    text = " ".join(str(entry["digest"]) for entry in fingerprints)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
