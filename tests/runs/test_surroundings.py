"""A training survives what happens to its run directory and spares what lies in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sbi_ignite import (
    CheckpointConfig,
    CheckpointError,
    SbiIgniteWarning,
    TrainConfig,
    TrainingSummary,
    load_run,
    run_training,
)
from sbi_ignite.callback import Callback, TrainingState

BATCHES = [torch.randn(8, 2, generator=torch.Generator().manual_seed(i)) for i in range(3)]


class After(Callback):
    """Do something after the first epoch."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def on_epoch_end(self, state: TrainingState) -> None:
        if state.epoch == 1:
            self.action()


def train(checkpoint: object, action: Callable[[], object] = int) -> TrainingSummary:
    torch.manual_seed(0)

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return (model(x) - 1).square().mean(dim=1)

    return run_training(
        TrainConfig(max_epochs=3),
        nn.Linear(2, 1),
        loss,
        BATCHES,
        callbacks=[After(action)],
        checkpoint=checkpoint,  # type: ignore[arg-type] # a setting or a path
    )[1]


def test_a_relative_directory_stays_where_it_was_when_the_program_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    train("run", lambda: monkeypatch.chdir(elsewhere))
    assert load_run(tmp_path / "run").summary is not None
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_directory_that_disappears_costs_a_warning_and_not_the_training(
    how: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def disappear() -> None:
        # Moved first: the thread that writes checkpoints may be at work inside.
        run.rename(tmp_path / "moved")
        if how == "removed":
            shutil.rmtree(tmp_path / "moved", ignore_errors=True)

    with pytest.warns(SbiIgniteWarning, match="nothing could be saved"):
        summary = train(run, disappear)
    assert summary.epochs_trained == 3


@pytest.mark.parametrize("name", ["metrics.jsonl", "best.pt", "summary.json"])
def test_files_of_somebody_else_are_not_replaced(name: str, tmp_path: Path) -> None:
    own = tmp_path / name
    own.write_text("three weeks of work")
    with pytest.raises(CheckpointError, match=f"nobody can tell what run {name} beside it"):
        train(tmp_path)
    assert own.read_text() == "three weeks of work"
    train(CheckpointConfig(tmp_path, resume="never"))
    assert (tmp_path / "replaced-1" / name).read_text() == "three weeks of work"
