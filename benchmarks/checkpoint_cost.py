"""What does a checkpoint after every epoch cost?

NPE with a maf on 10,000 simulations, trained in steps that are not traced, so that an epoch takes
0.1 to 0.2 s. Whole trainings differ by more than a save costs, so that epochs with and without a
save take turns inside one training: every second epoch is saved, and timed is from the end of one
epoch to the end of the next, which holds what is saved and written of the one before. On a single
core (taskset -c 0) the thread that writes competes with the training, and the difference holds all
that saving costs. Beside it stands the old way, `torch.save` of nested states and a rename, timed
alone.

    python -m benchmarks.checkpoint_cost [--rounds 5] [--epochs 60]
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sbi.utils import BoxUniform

from benchmarks.measuring import (
    Result,
    Spread,
    Table,
    Timing,
    conclude,
    options_of,
    parse,
)
from sbi_ignite import NPE, Callback, CheckpointConfig, EarlyStopping, TrainConfig
from sbi_ignite.callback import TrainingState
from sbi_ignite.handlers.checkpoint import CheckpointHandler
from sbi_ignite.random_state import random_states
from sbi_ignite.runs.directory import RunDirectory

SIMULATIONS, DIM_THETA, DIM_X = 10_000, 5, 10
BOUND_PERCENT, BOUND_SIZE = 2.0, 4.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison and print it."""
    parser = options_of(__doc__, rounds=5)
    parser.add_argument("--epochs", type=int, default=60, help="of a training")
    options = parse(parser, arguments)
    with tempfile.TemporaryDirectory() as name, timed_saves() as saves:
        folder = Path(name)
        bench = Bench(folder, options.epochs)
        times: dict[str, list[Timing]] = {"without": [], "with": []}
        for _ in range(options.rounds):
            for name, timing in bench.train().items():
                times[name].append(timing)
        old = old_way(bench.trainer, folder)
        conclude(result_of(times, saves, old, bench.sizes()), options)


# --- measuring


class Clock(Callback):
    """Note wall and CPU time whenever an epoch has ended."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_epoch_end(self, state: TrainingState) -> None:
        """Note the times."""
        self.times.append((time.perf_counter(), time.process_time()))

    def epochs(self) -> dict[str, Timing]:
        """Return the median epochs after one that was saved and after one that was not."""
        pairs = list(enumerate(zip(self.times, self.times[1:], strict=False), start=1))
        return {
            name: Timing(
                *(
                    statistics.median(b[i] - a[i] for n, (a, b) in pairs[2:] if n % 2 == rest)
                    for i in (0, 1)
                )
            )
            for name, rest in {"without": 1, "with": 0}.items()
        }


class Bench:
    """Trains with a run directory.

    Args:
        folder: For the run directories.
        epochs: Epochs of a training.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self.trainer: Any = None
        self._folder, self._epochs, self._number = folder, epochs, 0

    def train(self) -> dict[str, Timing]:
        """Train once, with a checkpoint after every second epoch."""
        self._number += 1
        directory = self._folder / f"run-{self._number}"
        torch.manual_seed(0)
        theta = torch.rand(SIMULATIONS, DIM_THETA)
        x = torch.cat([theta, theta.square()], dim=1) + 0.1 * torch.randn(SIMULATIONS, DIM_X)
        prior = BoxUniform(torch.zeros(DIM_THETA), torch.ones(DIM_THETA))
        self.trainer = NPE(prior, show_progress_bars=False).append_simulations(theta, x)
        clock = Clock()
        self.trainer.train(
            TrainConfig(max_epochs=self._epochs, seed=0, compile="off"),
            early_stopping=EarlyStopping.never(),
            callbacks=[clock],
            checkpoint=CheckpointConfig(directory, every_epochs=2),
        )
        return clock.epochs()

    def sizes(self) -> dict[str, float]:
        """Return the files' sizes in sizes of the weights."""
        weights = self.trainer._neural_net.state_dict().values()
        size = sum(tensor.numel() * tensor.element_size() for tensor in weights)
        files = sorted((self._folder / "run-1").glob("*.pt"))
        return {file.name: file.stat().st_size / size for file in files}


@contextmanager
def timed_saves() -> Iterator[dict[str, list[float]]]:
    """Let every save note its CPU seconds in the training's thread and in the writer's."""
    seconds: dict[str, list[float]] = {"training": [], "writer": []}
    places = (
        (CheckpointHandler, "_save", "training"),
        (RunDirectory, "_write", "writer"),
    )
    originals = [getattr(owner, name) for owner, name, _ in places]

    def measured(original: Callable[..., Any], noted: list[float]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any) -> Any:
            began = time.thread_time()
            try:
                return original(*args)
            finally:
                noted.append(time.thread_time() - began)

        return call

    for (owner, name, kind), original in zip(places, originals, strict=True):
        setattr(owner, name, measured(original, seconds[kind]))
    try:
        yield seconds
    finally:
        for (owner, name, _), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


def old_way(trainer: Any, folder: Path, repetitions: int = 20) -> float:
    """Return the median CPU seconds of saving nested states in the training's own thread."""
    network, optimizer = trainer._neural_net, trainer.optimizer
    seconds = []
    for _ in range(repetitions):
        began = time.thread_time()
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
        seconds.append(time.thread_time() - began)
    return statistics.median(seconds)


# --- telling


def result_of(
    times: dict[str, list[Timing]],
    saves: dict[str, list[float]],
    old: float,
    sizes: dict[str, float],
) -> Result:
    """Return tables and numbers."""
    added = {clock: percent_added(times, clock) for clock in ("wall", "cpu")}
    rows = [
        (f"epoch {name} checkpoints", *(f"{milliseconds(times[name], c):.1f} ms" for c in added))
        for name in times
    ]
    rows.append(("added", *(f"{spread:+.2f} %" for spread in added.values())))
    base = statistics.median(t.cpu for t in times["without"])
    parts = {
        "a save, in the training's thread": statistics.median(saves["training"]),
        "a save, in the writer's thread": statistics.median(saves["writer"]),
        "the old way, in the training's thread": old,
    }
    return Result(
        script="checkpoint_cost",
        question="What does saving a checkpoint after every epoch cost?",
        tables=[
            Table(("NPE maf, 10,000 simulations", "wall time", "CPU time"), rows),
            Table(
                ("CPU time", "ms", "of an epoch"),
                [(n, f"{1e3 * s:.2f}", f"{100 * s / base:.2f} %") for n, s in parts.items()],
            ),
            Table(
                ("file", "size in sizes of the weights"),
                [(name, f"{share:.2f}") for name, share in sizes.items()],
            ),
        ],
        notes=[
            f"The bounds are {BOUND_PERCENT:.0f} % of an epoch and {BOUND_SIZE:.0f} times the "
            f"weights; the largest file has {max(sizes.values()):.2f} times. Medians; ranges are "
            "those of the rounds.",
        ],
        numbers={
            "epochs": {n: [vars(timing) for timing in ts] for n, ts in times.items()},
            "added_percent": {clock: vars(spread) for clock, spread in added.items()},
            "cpu_seconds": parts,
            "sizes": sizes,
        },
    )


def percent_added(times: dict[str, list[Timing]], clock: str) -> Spread:
    """Return how many percent longer an epoch with checkpoints takes, round by round."""
    pairs = zip(times["without"], times["with"], strict=True)
    return Spread.of(100 * (getattr(b, clock) / getattr(a, clock) - 1) for a, b in pairs)


def milliseconds(timings: Sequence[Timing], clock: str) -> float:
    """Return the median."""
    return 1e3 * statistics.median(getattr(timing, clock) for timing in timings)


if __name__ == "__main__":
    main()
