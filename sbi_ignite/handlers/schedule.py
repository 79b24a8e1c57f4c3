"""Step torch's learning-rate schedulers at the right moments of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from sbi_ignite.callback import TrainingState, watched_loss
from sbi_ignite.explain import PLAIN_ERRORS, explain
from sbi_ignite.handlers.events import TrainingEvents

_ADVICE = "Give it the length of the training, lower max_epochs, or take another scheduler."


@dataclass(frozen=True)
class Schedulers:
    """What sets the learning rates of one training.

    Attributes:
        main: A torch scheduler; None for a constant rate.
        warmup: Another one, stepped after each of the first iterations.
        warmup_steps: How many those are; `main` is not stepped before they are over.
        per_iteration: Whether `main` is stepped after every iteration; None: as its kind needs.
        last_step: Steps of `main` after which the rate stays; None: it never ends.
        epochs: Length in epochs; None for a schedule without an end.
        remake: Makes `main` anew for another optimizer, to stretch a resumed schedule.
    """

    main: Any = None
    warmup: Any = None
    warmup_steps: int = 0
    per_iteration: bool | None = None
    last_step: int | None = None
    epochs: int | None = None
    remake: Callable[[Optimizer], Any] | None = None


class Schedule:
    """Step a torch scheduler after every epoch, or after every iteration if it is made for that.

    `ReduceLROnPlateau` gets the validation loss; `OneCycleLR` and `CyclicLR` are stepped after
    every iteration, and so is any scheduler with a true attribute `per_iteration`. ignite's own
    wrapper steps some of torch's schedulers at the wrong rate, hence this module.

    Args:
        schedulers: The torch schedulers.
        optimizer: Their optimizer, whose current rate goes into the state.
        state: Where losses are read and the rate is noted.

    Attributes:
        factor: What the schedulers' rates are multiplied by, for the stages of a training.
    """

    def __init__(self, schedulers: Schedulers, optimizer: Optimizer, state: TrainingState) -> None:
        self._main, self._warmup = schedulers.main, schedulers.warmup
        self._warmup_steps, self._last_step = schedulers.warmup_steps, schedulers.last_step
        self._asked = schedulers
        self._per_iteration = schedulers.per_iteration
        self._optimizer, self._state = optimizer, state
        self.factor = 1.0
        self._rates = self._rates_in_force()
        self.note_rate()

    def attach(self, engine: Engine) -> None:
        """Step after iterations or after the validation of epochs."""
        if self._warmup is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._warm_up)
        if self._main is None:
            return
        if self.by_iteration:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._step_until_end)
        else:
            engine.add_event_handler(TrainingEvents.VALIDATED, self._step_after_epoch)

    def scale(self, factor: float) -> None:
        """Multiply the schedulers' rates, now and from now on.

        Args:
            factor: Relative to the schedulers' own rates, not to an earlier factor.
        """
        self._rates = self._own_rates()
        self.factor = factor
        self._set_rates(rate * factor for rate in self._rates)
        self.note_rate()

    @property
    def is_short(self) -> bool:
        """Whether a resumed schedule ends before the one that this call asks for would."""
        kept, asked = self._last_step, self._asked.last_step
        return kept is not None and asked is not None and kept < asked

    @property
    def last_step(self) -> int | None:
        """Steps of the schedule in force after which the rate stays; None: it never ends."""
        return self._last_step

    @property
    def by_iteration(self) -> bool:
        """Whether the main scheduler is stepped after every iteration, not after every epoch."""
        asked = self._per_iteration
        return steps_by_iteration(self._main) if asked is None else asked

    @property
    def steps_done(self) -> int:
        """Steps that the main scheduler has taken in this training."""
        return self._state.iteration if self.by_iteration else self._state.epoch

    @property
    def steps_until_error(self) -> int | None:
        """Steps after which the main scheduler raises at the next one; None if it never does."""
        if not isinstance(self._main, OneCycleLR) or self._last_step is not None:
            return None
        return self._main.total_steps - self._main.last_epoch

    def stretch(self) -> None:
        """Continue with the rates of a schedule that had this call's length from the start."""
        if self._asked.remake is None:
            return
        # Start from the peaks of all groups; what the schedule made of them is recomputed.
        names = ("max_lr", "initial_lr", "lr")
        peaks = [next(group[n] for n in names if n in group) for group in self._groups]
        twin = SGD([{"params": [torch.zeros(1)], "lr": float(peak)} for peak in peaks], lr=1.0)
        scheduler = self._asked.remake(twin)
        twin.step()  # or torch would warn that the scheduler steps before its optimizer
        for _ in range(min(self._state.iteration, self._asked.last_step or 0)):
            scheduler.step()
        self._main.load_state_dict(scheduler.state_dict())
        self._last_step = self._asked.last_step
        self._rates = [float(group["lr"]) for group in twin.param_groups]
        self._set_rates(rate * self.factor for rate in self._rates)
        self.note_rate()

    def note_rate(self) -> None:
        """Write the optimizer's current rate into the state."""
        self._state.learning_rate = self._rates_in_force()[0]

    def state_dict(self) -> dict[str, Any]:
        """Return the schedulers' states, the factor and the rates without it."""
        return {
            "main": _state_of(self._main),
            "warmup": _state_of(self._warmup),
            "factor": self.factor,
            "rates": self._own_rates(),
            "last_step": self._last_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; the optimizer restores its own rates."""
        for scheduler, saved in ((self._main, "main"), (self._warmup, "warmup")):
            if scheduler is not None and state[saved] is not None:
                scheduler.load_state_dict(state[saved])
        self.factor, self._rates = state["factor"], list(state["rates"])
        self._last_step = state["last_step"]

    def _warm_up(self) -> None:
        if self._is_warm():
            self._state.learning_rate_rises = False
        else:
            self._step(self._warmup)

    def _is_warm(self) -> bool:
        return self._warmup is None or self._warmup.last_epoch >= self._warmup_steps

    def _step_until_end(self) -> None:
        if self._last_step is None or self._main.last_epoch < self._last_step:
            self._step(self._main)
        else:
            self._state.learning_rate_rises = False

    def _step_after_epoch(self) -> None:
        if not isinstance(self._main, ReduceLROnPlateau):
            self._step(self._main)
        elif self._is_warm():
            self._step(self._main, watched_loss(self._state))

    def _step(self, scheduler: Any, *loss: float) -> None:
        """Step from the scheduler's own rates, then apply the factor."""
        before = self._own_rates()
        if self.factor != 1.0:
            self._set_rates(before)
        try:
            scheduler.step(*loss)
        except PLAIN_ERRORS as error:
            state, often = self._state, "iteration" if self.by_iteration else "epoch"
            what = (
                f"scheduler: expected one that can be stepped after every {often} to the end of "
                f"the training, {type(scheduler).__name__}.step() failed in epoch "
                f"{max(state.epoch, 1)}, after iteration {state.iteration}"
            )
            explain(error, what, "The best weights so far are kept. " + _ADVICE)
        self._rates = self._rates_in_force()
        if self.factor != 1.0:
            self._set_rates(rate * self.factor for rate in self._rates)
        self._state.learning_rate_rises = self._rates[0] > before[0]
        self.note_rate()

    def _own_rates(self) -> list[float]:
        """Return the rates without the factor; without one, a user's own rates count too."""
        return self._rates_in_force() if self.factor == 1.0 else self._rates

    def _rates_in_force(self) -> list[float]:
        return [float(group["lr"]) for group in self._groups]

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def _set_rates(self, rates: Iterable[float]) -> None:
        for group, rate in zip(self._groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def steps_by_iteration(scheduler: Any) -> bool:
    """Return whether a scheduler is made to be stepped after every iteration.

    Args:
        scheduler: torch's, or a user's own with or without an attribute `per_iteration`.
    """
    of_its_kind = isinstance(scheduler, OneCycleLR | CyclicLR)
    return bool(getattr(scheduler, "per_iteration", of_its_kind))


def _state_of(scheduler: Any) -> Any:
    """Return a scheduler's state; None without one."""
    return scheduler.state_dict() if hasattr(scheduler, "state_dict") else None
