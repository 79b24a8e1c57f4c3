"""Measure how long an epoch takes on a device, and how its steps are computed."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from sbi_ignite.callback import Callback, TrainingState
from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.settings import EarlyStopping, TrainConfig
from sbi_ignite.summary import TrainingSummary

_BATCHES = 50
"""Batches of a measured epoch at most; longer ones are estimated from these."""

_VALIDATION = 0.1

_WARM_UP = 2
"""Epochs that do not count, because they pay for recording and for warming up."""

_PATIENCE = 5
"""How many times as long as asked for a slow network may take to finish some that count."""


@dataclass(frozen=True)
class Problem:
    """What is trained to measure.

    Attributes:
        network: A name that sbi's `posterior_nn` takes.
        rows: Number of simulations.
        batch_size: Rows per step.
        dim_theta: Number of parameters.
        dim_x: Number of values in an observation.
    """

    network: str = "maf"
    rows: int = 10_000
    batch_size: int = 200
    dim_theta: int = 5
    dim_x: int = 10

    def __str__(self) -> str:
        """Return a phrase."""
        return (
            f"{self.network}, {self.rows:,} simulations in batches of {self.batch_size:,}, "
            f"{_counted(self.dim_theta, 'parameter')}, {_counted(self.dim_x, 'value')} in x"
        )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        device: The device.
        seconds_per_epoch: Of one epoch with its validation.
        measured_rows: Rows that were trained on, if fewer than asked for.
        executor: How steps were computed, as in `TrainingSummary`.
        executor_reason: Why not in a faster way.
    """

    device: str
    seconds_per_epoch: float
    measured_rows: int
    executor: str
    executor_reason: str = ""


def known_networks() -> list[str]:
    """Return the names of flows and mixtures that `posterior_nn` knows."""
    from sbi.neural_nets.factory import model_builders

    others = {"mnle", "mnpe", "linear", "mlp", "resnet", "tabpfn"}
    return sorted(str(name) for name in model_builders if str(name) not in others)


def measure(problem: Problem, device: str, seconds: float) -> Speed:
    """Train a network on made-up simulations for some seconds.

    Args:
        problem: What to train.
        device: Where.
        seconds: How long, about.

    Raises:
        ArgumentError: If sbi knows no such network.
        DataError: If a batch has more rows than there are to train on.
    """
    if problem.network not in known_networks():
        raise ArgumentError(
            f"--network: expected one of {', '.join(known_networks())}, got {problem.network!r}"
        )
    rows = min(problem.rows, _BATCHES * problem.batch_size)
    measured, steps = _train(replace(problem, rows=rows), device, seconds)
    if measured.epochs_trained <= _WARM_UP:
        rows = _fewer(problem, steps)
        measured, steps = _train(replace(problem, rows=rows), device, seconds)
    durations = measured.epoch_durations_sec[_WARM_UP:] or measured.epoch_durations_sec[-1:]
    one = (
        median(durations)
        if durations
        else _PATIENCE * seconds / max(steps, 1) * rows / problem.batch_size
    )
    how = measured.executor, measured.executor_reason
    return Speed(device, one * problem.rows / rows, rows, *how)


def _fewer(problem: Problem, steps: int) -> int:
    """Return a number of rows with which several epochs take as long as some steps."""
    batches = max(steps // 5, 1)
    return min(problem.rows, math.ceil(batches * problem.batch_size / (1 - _VALIDATION)) + 2)


class _EnoughSeen(Callback):
    """End a training once its time is over and epochs were trained that count.

    Args:
        seconds: The time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def on_train_start(self, state: TrainingState) -> None:
        """Keep the state, which knows how many steps were taken, and the time."""
        self.state, self._began = state, time.monotonic()

    def on_epoch_end(self, state: TrainingState) -> None:
        """End the training if enough was seen."""
        if state.epoch >= _WARM_UP + 2 and time.monotonic() - self._began >= self._seconds:
            state.stop("enough seen")


def _train(problem: Problem, device: str, seconds: float) -> tuple[TrainingSummary, int]:
    """Train on simulations of a linear model until the time is over."""
    from sbi.neural_nets import posterior_nn
    from sbi.utils import BoxUniform

    from sbi_ignite.bridge.no_tracker import NoTracker
    from sbi_ignite.inference import NPE

    torch.manual_seed(0)
    bound = torch.ones(problem.dim_theta)
    prior = BoxUniform(-bound, bound, device=device)
    theta = prior.sample((problem.rows,)).cpu()
    x = theta @ torch.randn(problem.dim_theta, problem.dim_x)
    x += 0.1 * torch.randn_like(x)
    watch = _EnoughSeen(seconds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the time limit is meant to end it early
        trainer: Any = NPE(
            prior,
            density_estimator=posterior_nn(problem.network),
            device=device,
            show_progress_bars=False,
            tracker=NoTracker(),
        )
        trainer.append_simulations(theta, x)
        trainer.train(
            TrainConfig(
                batch_size=problem.batch_size,
                validation_fraction=_VALIDATION,
                max_time=_PATIENCE * seconds,
                seed=0,
            ),
            early_stopping=EarlyStopping.never(),
            logging="none",
            checkpoint=False,
            callbacks=[watch],
        )
    return trainer.training_summary, watch.state.iteration
