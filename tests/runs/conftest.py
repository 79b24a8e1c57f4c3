"""Small runs to write, damage and read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.snapshot import Snapshot
from sbi_ignite.summary import TrainingSummary

SUMMARY = TrainingSummary(
    method="NPE_C",
    epochs_trained=2,
    best_epoch=2,
    best_validation_loss=0.25,
    training_loss=(1.0, 0.5),
    validation_loss=(float("inf"), 0.25),
    learning_rate=(5e-4, 5e-4),
    gradient_norm=(1.5, 2.5),
    epoch_durations_sec=(0.1, 0.2),
    stop_reason="max_epochs",
)


def states_at(iteration: int) -> dict[str, Any]:
    """Return states all of whose values tell from which iteration they are."""
    best_epoch = iteration // 2 + 1
    return {
        "model": {"weight": torch.full((40, 5), float(iteration)), "bias": torch.tensor(iteration)},
        "history": [0.5 * iteration] * 20,
        "random": {"python": (3, tuple(range(iteration, iteration + 30)), None)},
        "best_weights": {
            "epoch": best_epoch,
            "loss": -float(iteration),
            "weights": {"weight": torch.full((40, 5), float(best_epoch))},
        },
    }


def same(a: Any, b: Any) -> bool:
    """Say whether nested states are equal in types, tensors and numbers."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def write_run(path: Path, iterations: tuple[int, ...] = (1, 2, 3)) -> Path:
    """Write a complete little run."""
    with RunDirectory.open(path) as directory:
        directory.write_manifest({"status": "running", "method": "NPE_C"})
        for iteration in iterations:
            assert directory.write(iteration, iteration, Snapshot.of(states_at(iteration)))
            directory.append_metrics({"epoch": iteration, "training_loss": 1.0 / iteration})
        directory.write_summary(SUMMARY.to_dict())
        directory.update_manifest(status="complete")
    return path


@pytest.fixture
def run_at(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run below the test's folder."""

    def write(name: str = "run", iterations: tuple[int, ...] = (1, 2, 3)) -> Path:
        return write_run(tmp_path / name, iterations)

    return write
