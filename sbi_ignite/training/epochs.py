"""Count epochs, validate after each, and keep the history."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ignite.engine import Engine, Events

from sbi_ignite.callback import TrainingState
from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.handlers.epoch_mean import EpochMean
from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.handlers.gradient_clipping import GradientClipping
from sbi_ignite.training.mode import set_training
from sbi_ignite.training.state import Stateful, restore
from sbi_ignite.training.validation import Validation


class Epochs:
    """Counts epochs and steps, validates after every epoch, and keeps the training state.

    Args:
        state: The state to keep.
        train_loss: Mean training loss of the epoch.
        clipping: Knows the gradient norm.
        validation: Gives the validation loss; None without validation data.
        before_rules: Called when the epoch's numbers are known, with the current time less the
            epoch's duration (seconds since 1970), even if the system clock was set meanwhile.
        keep_best: Looks at the epoch for better weights.
        measure: Lets callbacks measure what stopping rules, which are asked next, may look at.
        to_training_mode: Puts the model into training mode.
    """

    def __init__(
        self,
        state: TrainingState,
        train_loss: EpochMean,
        clipping: GradientClipping,
        validation: Validation | None,
        before_rules: Callable[[float], None],
        keep_best: Callable[[], None],
        measure: Callable[[], None],
        to_training_mode: Callable[[], None],
    ) -> None:
        self._state, self._train_loss, self._clipping = state, train_loss, clipping
        self._validation, self._keep_best = validation, keep_best
        self._measure = measure
        self._before_rules, self._to_training_mode = before_rules, to_training_mode
        self._first_epoch, self._first_iteration = state.epoch, state.iteration
        self._started = 0.0
        self._rate = state.learning_rate

    def attach(self, engine: Engine) -> None:
        """Listen to the training engine."""
        self._engine = engine
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    @property
    def before_this_engine(self) -> int:
        """Epochs of earlier calls that the engine does not count."""
        return self._first_epoch

    def now(self) -> tuple[int, int]:
        """Return the running epoch and iteration, counted over all legs of the training."""
        engine = self._engine.state
        return self._first_epoch + engine.epoch, self._first_iteration + engine.iteration

    def continue_at(
        self, epoch_length: int, parts: Mapping[str, Stateful], found: Mapping[str, Any]
    ) -> None:
        """Make the engine start where a saved training stopped, in mid-epoch if need be.

        Args:
            epoch_length: Batches in an epoch.
            parts: The parts of the training.
            found: Their saved states, which have been restored once.

        Raises:
            ArgumentError: If epochs had a different number of batches until then.
        """
        self._first_epoch = self._first_iteration = 0
        epochs, inside = divmod(self._state.iteration, epoch_length)
        if epochs != self._state.epoch:
            until_now = _batches_an_epoch(self._state.iteration, self._state.epoch)
            raise ArgumentError(
                f"Cannot resume: the earlier run had {until_now} batches per epoch, this one has "
                f"{epoch_length}. Take the batch_size and the data that the training began with, "
                "or train anew without resume_training."
            )
        self._engine.load_state_dict(
            {
                "iteration": self._state.iteration,
                "max_epochs": epochs + 1,
                "epoch_length": epoch_length,
            }
        )
        sums = {n: p for n, p in parts.items() if n in ("train_loss", "clipping") and inside}
        # Starting an epoch resets its sums, and users' handlers may have drawn random numbers.
        again = Events.EPOCH_STARTED(once=epochs + 1)
        self._engine.add_event_handler(again, lambda: restore(sums, found))

    def _epoch_started(self) -> None:
        self._to_training_mode()
        self._started = time.perf_counter()

    def _iteration_completed(self) -> None:
        self._state.iteration = self.now()[1]
        self._rate = self._state.learning_rate  # of this step: the schedule has not moved yet

    def _epoch_completed(self) -> None:
        state = self._state
        set_training(state.model, False)
        state.epoch = self.now()[0]
        state.train_loss = self._train_loss.value
        if self._validation is not None:
            state.validation_loss = self._validation.loss()
            state.validation_error = self._validation.error
        state.gradient_norm = self._clipping.mean_norm
        seconds = time.perf_counter() - self._started
        self._record(seconds)
        # Subtracting it from the current time gives the duration, even if the clock was set.
        self._before_rules(time.time() - seconds)
        self._keep_best()
        self._measure()
        self._engine.fire_event(TrainingEvents.VALIDATED)

    def _record(self, seconds: float) -> None:
        """Append the epoch to the history, and show it to users' ignite handlers."""
        state = self._state
        numbers = {
            "training_loss": state.train_loss,
            "validation_loss": state.validation_loss,
            "learning_rate": self._rate,
            "gradient_norm": state.gradient_norm,
        }
        self._engine.state.metrics.update(numbers)
        state.history.append(**numbers, epoch_durations_sec=seconds)


def _batches_an_epoch(iterations: int, epochs: int) -> str:
    """Say how many batches an epoch had, given whole epochs and perhaps a part of the next."""
    least, most = iterations // (epochs + 1) + 1, iterations // epochs if epochs else None
    if most is None:
        return f"at least {least}"
    if epochs * most == iterations:
        return str(most)  # most likely the end of an epoch
    return str(most) if least == most else f"{least} to {most}"
