"""Validation after every epoch, in an ignite engine of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ignite.engine import Engine

from sbi_ignite.data.source import Batches
from sbi_ignite.handlers.epoch_mean import EpochMean
from sbi_ignite.handlers.gradient_averaging import errors_in_all
from sbi_ignite.handlers.standard_error import ValidationSpread
from sbi_ignite.training.make_engine import make_engine
from sbi_ignite.training.passes import Passes
from sbi_ignite.training.steps import Step, fixed_random_state
from sbi_ignite.world import ONE, World

VALIDATION_SEED = 20201127
"""Seed of the random state under which every validation runs, the same in all trainings."""


class Validation:
    """Computes the validation loss of the network's current weights.

    Args:
        batches: Batches of validation data.
        mean: Mean loss of a pass.
        as_sbi: Whether to draw from the current random state, as sbi does, instead of a fixed one.
        device: Where the network is.
        with_error: Whether the losses of rows are kept for the standard error of their mean.
        guard: Wraps what is iterated over, see `StopOnSignals.guard`.
        world: The processes that share the rows.
        same_draws: Whether all processes draw the same random numbers.
    """

    def __init__(
        self,
        batches: Batches,
        mean: EpochMean,
        as_sbi: bool,
        device: torch.device,
        with_error: bool,
        guard: Callable[[Any], Iterable[Any]],
        world: World = ONE,
        same_draws: bool = True,
    ) -> None:
        self._world, self._seed = world, VALIDATION_SEED + (0 if same_draws else world.rank)
        self._batches, self._mean, self._guard = batches, mean, guard
        self._as_sbi, self._device = as_sbi, device
        self._spread = ValidationSpread(world) if with_error else None

    def compute_with(self, step: Step, trial: Step) -> None:
        """Set the process functions, before the first validation.

        Args:
            step: Computes the losses of a batch.
            trial: The same for trial weights; it refuses no losses.
        """
        self._engine, self._trial = make_engine(step), make_engine(trial)
        for engine in (self._engine, self._trial):
            self._mean.attach(engine)
        if self._spread is not None:
            self._spread.attach(self._engine)

    def loss(self) -> float:
        """Return the mean loss over the validation rows.

        Raises:
            DataError: If there are not as many batches as their length promises.
            NonFiniteLossError: If a loss is NaN or infinite.
        """
        return self._run(self._engine)

    def loss_of_trial(self) -> float:
        """Return the same for trial weights, which may be bad; the loss need not be finite."""
        return self._run(self._trial)

    def _run(self, engine: Engine) -> float:
        passes = Passes(self._batches, self._guard)
        with (
            errors_in_all(self._world),
            validation_randomness(self._as_sbi, self._device, self._seed),
        ):
            engine.run(passes, max_epochs=1, epoch_length=len(passes))
            passes.conclude()
        if self._spread is not None and engine is self._engine:
            self._spread.conclude()
        return self._mean.value

    @property
    def error(self) -> float:
        """Standard error of the last loss; NaN if it was not asked for."""
        return math.nan if self._spread is None else self._spread.error


@contextmanager
def validation_randomness(
    as_it_runs: bool, device: torch.device, seed: int = VALIDATION_SEED
) -> Iterator[None]:
    """Validate under one fixed random state, or under the current one, as sbi does.

    Args:
        as_it_runs: Whether to leave the random state alone.
        device: Where the model is.
        seed: Seed of the fixed state.
    """
    if as_it_runs:
        yield
    else:
        with fixed_random_state(seed, device):
            yield
