"""Suggest a learning rate for a trainer by a range test.

The range test is that of Smith (2017, "Cyclical learning rates for training neural networks",
section 3.3): the rate grows exponentially from step to step while the loss is watched.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR

from sbi_ignite.bridge.lines import can_train, private
from sbi_ignite.bridge.memory import TrainerMemory
from sbi_ignite.bridge.no_tracker import NoTracker
from sbi_ignite.bridge.patch import patch_sbi
from sbi_ignite.callback import Callback, TrainingState
from sbi_ignite.exceptions import ArgumentError, DataError, NonFiniteLossError, SettingsError
from sbi_ignite.methods.base import LossArgs
from sbi_ignite.pictures import shown_in_notebooks
from sbi_ignite.random_state import random_states, set_random_states
from sbi_ignite.settings import EarlyStopping, TrainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SMOOTHING = 0.1
"""Weight of the newest loss in the running average, about the last ten steps."""

_FIRST = 10
"""Steps at the smallest rates, whose running average is the level that the loss falls from."""


@dataclass(frozen=True)
class LearningRateRange:
    """What a range test has seen.

    Attributes:
        rates: The rate of each step, growing.
        losses: The training loss of each step's batch, before the step.
        smoothed: Running average of the losses, corrected for its start at zero.
        half_fall: The rate at which the smoothed loss had completed half of its fall; None if it
            never fell.
        diverged: Whether the test ended early, because the loss rose or was not finite.

    Example:
        >>> print(LearningRateRange((1e-4, 1e-3), (2.0, 1.0), (2.0, 1.5), 1e-3, False))
        learning_rate=1.0e-03 (2 rates from 1.0e-04 to 1.0e-03 tried)
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    half_fall: float | None
    diverged: bool

    @property
    def suggestion(self) -> float:
        """The rate to train with, which is `half_fall`.

        Raises:
            DataError: If the loss fell at none of the rates.
        """
        if self.half_fall is None:
            raise DataError(
                f"suggestion: expected a loss that falls, of {self} Try other rates, by "
                "find_learning_rate(min_rate=..., max_rate=...), more steps or a larger batch_size."
            )
        return self.half_fall

    def __str__(self) -> str:
        """Return one sentence."""
        tried = f"{len(self.rates)} rates from {self.rates[0]:.1e} to {self.rates[-1]:.1e} tried"
        if self.half_fall is None:
            return f"{tried}: the loss fell at none of them."
        return f"learning_rate={self.half_fall:.1e} ({tried})"

    def plot(self) -> Figure:
        """Return a figure of the loss against the rate, with the suggestion marked.

        The figure is independent of pyplot; save it with `figure.savefig("rates.png")`. A notebook
        shows it as a cell's last value.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(self.rates, self.losses, ".", color="0.75", label="loss of a batch")
        axes.plot(self.rates, self.smoothed, color="C0", label="running average")
        if self.half_fall is not None:
            axes.axvline(self.half_fall, color="C3", linestyle="--", label=f"{self.half_fall:.1e}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
        low, high = min(self.smoothed), max(self.smoothed)
        margin = 0.5 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return shown_in_notebooks(figure)


def find_learning_rate(
    inference: Any,
    train_config: TrainConfig | None = None,
    loss_args: LossArgs | None = None,
    *,
    min_rate: float = 1e-6,
    max_rate: float = 1.0,
    num_steps: int = 200,
    seed: int = 0,
) -> LearningRateRange:
    """Try growing learning rates on a copy of a trainer's network and suggest one of them.

    Afterwards the trainer, its network and the random states are as they were before; nothing is
    logged or saved.

    Args:
        inference: Any trainer, of `sbi_ignite` or of sbi, that has simulations.
        train_config: Batch size, optimizer, clipping and so on of the training to come; its
            rate, schedule, epochs, stages and averaging of weights are not used.
        loss_args: Loss arguments of the training to come.
        min_rate: Rate of the first step.
        max_rate: Rate of the last step, unless the loss rises before.
        num_steps: Number of optimizer steps.
        seed: Determines the batches and, for a new network, its initial weights.

    Returns:
        Rates, losses and the suggestion; losses may be negative: only differences count.

    Raises:
        SettingsError: If the range is empty or too short.
        ArgumentError: If the trainer trains nothing.
        NoSimulationsError: If it has no simulations.

    Example:
        >>> theta = torch.rand(60, 2)
        >>> inference = NPE(show_progress_bars=False).append_simulations(theta, theta)
        >>> found = find_learning_rate(inference, num_steps=40)
        >>> found.plot().savefig("rates.png")
        >>> estimator = inference.train(TrainConfig(learning_rate=found.suggestion, max_epochs=1))
    """
    _check(inference, min_rate, max_rate, num_steps)
    twin = _stand_in(inference)
    growth = (max_rate / min_rate) ** (1 / (num_steps - 1))
    probe = _RangeTest(num_steps)
    asked = train_config or TrainConfig()
    first_rate: dict[str, Any] = {"learning_rate": min_rate}
    if callable(asked.optimizer):
        first_rate = {"optimizer": _BeginningAt(asked.optimizer, min_rate)}
    config = asked.model_copy(
        update={
            **first_rate,
            "lr_schedule": _Growing(growth),
            "ema_decay": None,
            "averaging": None,
            "stages": (),
            "max_epochs": num_steps,
            "max_time": None,
            "seed": seed,
            "compile": "off",
            "resume_training": private(twin).is_trained_on_newest,
            "show_train_summary": False,
            "sbi_compat": False,
        }
    )
    if config.device is not None and config.device.startswith("cuda"):
        torch.cuda.init()  # its random state is among those that are restored
    before = random_states()
    try:
        with patch_sbi(), contextlib.suppress(NonFiniteLossError):
            twin.train(
                config,
                loss_args,
                logging="none",
                early_stopping=EarlyStopping.never(),
                checkpoint=False,
                callbacks=[probe],
            )
    finally:
        set_random_states(before)
    return probe.result(min_rate, growth)


def _check(inference: Any, min_rate: float, max_rate: float, num_steps: int) -> None:
    """Refuse arguments with which no range test is possible."""
    if not can_train(inference):
        raise ArgumentError(
            f"find_learning_rate: expected a trainer with a network to train, such as NPE(prior), "
            f"got {type(inference).__name__}."
        )
    if not 0 < min_rate < max_rate < math.inf:
        raise SettingsError(
            "find_learning_rate: expected 0 < min_rate < max_rate, got "
            f"min_rate={min_rate} and max_rate={max_rate}."
        )
    if num_steps < 20:
        raise SettingsError(f"find_learning_rate: expected num_steps >= 20, got {num_steps}.")


def _stand_in(trainer: Any) -> Any:
    """Return a trainer that shares the simulations, with its own networks and records."""
    twin = object.__new__(type(trainer))  # copying the usual way would warn about the tracker
    vars(twin).update({name: _own(value) for name, value in vars(trainer).items()})
    private(twin).silence(NoTracker())
    vars(twin).pop("optimizer", None)  # a network already trained gets a fresh one
    return twin


def _own(value: Any) -> Any:
    """Return a copy of networks, containers and our memory; what is in containers is shared."""
    if isinstance(value, nn.Module):
        return deepcopy(value)
    if isinstance(value, TrainerMemory):
        return copy(value)
    if type(value) is dict:
        return {name: _own(item) for name, item in value.items()}
    return [*value] if type(value) is list else value


@dataclass(frozen=True)
class _Growing:
    """A schedule that multiplies the rate by a factor at every step."""

    factor: float

    def __call__(self, optimizer: Optimizer) -> ExponentialLR:
        """Return torch's scheduler, to be stepped after every iteration."""
        scheduler = ExponentialLR(optimizer, self.factor)
        scheduler.per_iteration = True  # type: ignore[attr-defined] # read by our Schedule
        return scheduler


@dataclass(frozen=True)
class _BeginningAt:
    """A user's optimizer with the first rate of the range instead of its own.

    Attributes:
        make: The user's callable.
        rate: The rate.
    """

    make: Callable[..., Any]
    rate: float

    def __call__(self, parameters: Any) -> Any:
        """Return the optimizer."""
        optimizer = self.make(parameters)
        for group in getattr(optimizer, "param_groups", ()):
            group["lr"] = self.rate
        return optimizer


class _RangeTest(Callback):
    """Record the loss of every step; end the training when it rises or enough has been seen.

    Args:
        num_steps: How many steps are enough.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self.losses: list[float] = []

    def on_train_start(self, state: TrainingState) -> None:
        """Keep the state, through which training can be ended."""
        self._state = state

    def attach(self, engine: Engine) -> None:
        """Watch every step."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._look)

    def _look(self, engine: Engine) -> None:
        output: Any = engine.state.output
        loss = float(output.loss_sum) / output.rows
        # On a GPU, a step with a non-finite loss has not been refused yet.
        finite = math.isfinite(loss)
        self.losses += [loss] if finite else []
        enough = len(self.losses) == self._num_steps
        if enough or not finite or has_diverged(smooth(self.losses)):
            self._state.stop("the range test has seen enough")
            engine.terminate()

    def result(self, min_rate: float, growth: float) -> LearningRateRange:
        """Return what was seen."""
        rates = tuple(min_rate * growth**step for step in range(len(self.losses)))
        smoothed = smooth(self.losses)
        return LearningRateRange(
            rates=rates,
            losses=tuple(self.losses),
            smoothed=smoothed,
            half_fall=half_way(rates, smoothed),
            diverged=len(self.losses) < self._num_steps,
        )


def smooth(losses: Sequence[float]) -> tuple[float, ...]:
    """Return running averages over about the last ten losses, corrected for the start.

    Example:
        >>> smooth([0.0, 0.0])
        (0.0, 0.0)
    """
    average, averages = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average += _SMOOTHING * (loss - average)
        averages.append(average / (1 - (1 - _SMOOTHING) ** step))
    return tuple(averages)


def has_diverged(smoothed: Sequence[float]) -> bool:
    """Say whether, after ten steps, the loss has risen well above all its values in them.

    It compares differences, never ratios: losses of densities may be negative.
    """
    if len(smoothed) <= _FIRST or not math.isfinite(smoothed[-1]):
        return not all(map(math.isfinite, smoothed))
    start, lowest = max(smoothed[:_FIRST]), min(smoothed)
    return smoothed[-1] > start + 0.5 * (start - lowest)


def half_way(rates: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """Return the rate at which half of the fall to the lowest loss was done; None without a fall.

    On a clean curve this is where it is steepest; unlike a slope, it is not misled by the noise at
    small rates.

    Args:
        rates: Growing rates, one per step.
        smoothed: Smoothed losses, one per step.

    Example:
        >>> half_way([1e-4] * 9 + [1e-3, 1e-2, 1e-1, 1.0], [0.0] * 10 + [-1.0, -2.0, 5.0])
        0.01
    """
    start, lowest = smoothed[:_FIRST][-1], min(smoothed)
    if not lowest < start:
        return None
    return next(r for r, loss in zip(rates, smoothed, strict=True) if loss <= (start + lowest) / 2)
