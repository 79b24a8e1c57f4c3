"""A torch scheduler comes in; it is stepped at the right moments of a training."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from sbi_ignite.callback import TrainingState, watched_loss
from sbi_ignite.handlers.events import TrainingEvents


class Schedule:
    """Step a torch scheduler after every epoch, or after every iteration if it is made for that.

    `ReduceLROnPlateau` gets the validation loss; `OneCycleLR` and `CyclicLR` are stepped after
    every iteration, and so is any scheduler with a true attribute `per_iteration`. ignite's own
    wrapper steps some of torch's schedulers at the wrong rate, hence this page.

    Args:
        scheduler: The torch scheduler, None for a constant rate.
        optimizer: Its optimizer, whose current rate goes into the state.
        state: Where losses are read and the rate is noted.
    """

    def __init__(self, scheduler: Any, optimizer: Optimizer, state: TrainingState) -> None:
        self.scheduler, self._optimizer, self._state = scheduler, optimizer, state
        self.note_rate()

    def attach(self, engine: Engine) -> None:
        """Step after iterations or after the validation of epochs."""
        if self.scheduler is None:
            return
        per_iteration = isinstance(self.scheduler, OneCycleLR | CyclicLR)
        if getattr(self.scheduler, "per_iteration", per_iteration):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        else:
            engine.add_event_handler(TrainingEvents.VALIDATED, self._step_after_epoch)

    def _step_after_epoch(self) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(watched_loss(self._state))
            self.note_rate()
        else:
            self._step()

    def _step(self) -> None:
        self.scheduler.step()
        self.note_rate()

    def note_rate(self) -> None:
        """Write the optimizer's current rate into the state."""
        self._state.learning_rate = float(self._optimizer.param_groups[0]["lr"])
