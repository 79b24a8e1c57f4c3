"""What does a checkpoint after every epoch cost?

NPE with a maf on 10,000 simulations, so that an epoch takes about 0.2 s on one core. Trainings with
and without a run directory alternate; the time from the end of one epoch to the end of the next is
compared. Beside it stands the old way, `torch.save` of the nested states and a rename, timed alone.

    python benchmarks/checkpoint_cost.py [--pairs 4] [--epochs 15]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from sbi.utils import BoxUniform

from sbi_ignite import NPE, Callback, CheckpointConfig, EarlyStopping, TrainConfig
from sbi_ignite.callback import TrainingState
from sbi_ignite.engine.state import random_states
from sbi_ignite.handlers.checkpoint import CheckpointHandler

SIMULATIONS, DIM_THETA, DIM_X = 10_000, 5, 10


class Clock(Callback):
    """Note the time whenever an epoch has ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_epoch_end(self, state: TrainingState) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    @property
    def epochs(self) -> list[float]:
        """Seconds per epoch, without the first two."""
        return [b - a for a, b in zip(self.times[1:], self.times[2:], strict=False)]


def train(epochs: int, directory: Path | None) -> tuple[list[float], Any]:
    """Return seconds per epoch, and the trainer."""
    torch.manual_seed(0)
    theta = torch.rand(SIMULATIONS, DIM_THETA)
    x = torch.cat([theta, theta.square()], dim=1) + 0.1 * torch.randn(SIMULATIONS, DIM_X)
    trainer: Any = NPE(
        BoxUniform(torch.zeros(DIM_THETA), torch.ones(DIM_THETA)), show_progress_bars=False
    )
    trainer.append_simulations(theta, x)
    clock = Clock()
    trainer.train(
        TrainConfig(max_epochs=epochs, seed=0),
        early_stopping=EarlyStopping.never(),
        callbacks=[clock],
        checkpoint=None if directory is None else CheckpointConfig(directory, resume="never"),
    )
    return clock.epochs, trainer


def old_way(trainer: Any, folder: Path, repetitions: int = 20) -> float:
    """Return the median seconds of saving nested states in the training's own thread."""
    network, optimizer = trainer._neural_net, trainer.optimizer
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        states = {
            "model": network.state_dict(),
            "best": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": random_states(),
        }
        with (folder / "old.tmp").open("wb") as file:
            torch.save(states, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(folder / "old.tmp", folder / "old.pt")
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def timed_saves() -> list[float]:
    """Let every save note its seconds in the training's thread in the returned list."""
    seconds: list[float] = []
    original = CheckpointHandler._epoch_completed

    def timed(self: CheckpointHandler) -> None:
        began = time.perf_counter()
        original(self)
        seconds.append(time.perf_counter() - began)

    CheckpointHandler._epoch_completed = timed
    return seconds


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    saves = timed_saves()
    without: list[float] = []
    with_checkpoints: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer: Any = None
        for pair in range(options.pairs):
            # Whoever goes first may find a busier or a cooler machine.
            for saving in (True, False) if pair % 2 else (False, True):
                epochs, trainer = train(options.epochs, folder / f"run-{pair}" if saving else None)
                (with_checkpoints if saving else without).extend(epochs)
        weights = trainer._neural_net.state_dict().values()
        size = sum(tensor.numel() * tensor.element_size() for tensor in weights)
        files = sorted((folder / "run-0").glob("*.pt"))
        old = old_way(trainer, folder)
        sizes = {file.name: file.stat().st_size / size for file in files}
    before, after = statistics.median(without), statistics.median(with_checkpoints)
    best = min(without), min(with_checkpoints)
    save = statistics.median(saves)
    print(f"epoch without checkpoints        {1e3 * before:8.1f} ms (fastest {1e3 * best[0]:.1f})")
    print(f"epoch with a checkpoint          {1e3 * after:8.1f} ms (fastest {1e3 * best[1]:.1f})")
    print(f"difference                       {100 * (after / before - 1):8.2f} %")
    print(f"difference of the fastest        {100 * (best[1] / best[0] - 1):8.2f} %")
    print(f"a save in the training's thread  {1e3 * save:8.2f} ms ({100 * save / before:.2f} %)")
    print(f"the old way                      {1e3 * old:8.2f} ms ({100 * old / before:.2f} %)")
    for file, share in sizes.items():
        print(f"{file:<32} {share:8.2f} x the weights ({size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
