"""Take a training through its stages, the last of which ends it.

`StageRule` decides when a stage ends; `StageChanges` makes the changes between two stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from fractions import Fraction
from typing import Any

from ignite.engine import Engine
from torch import nn
from torch.optim import Optimizer

from sbi_ignite.callback import TrainingState, watched_loss
from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.handlers.averaging import AveragedWeights
from sbi_ignite.handlers.best_epochs import BestEpochs
from sbi_ignite.handlers.best_weights import BestWeights
from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.handlers.schedule import Schedule
from sbi_ignite.settings import Stage


class StageRule:
    """Say when a stage has ended; the end of the last one is a reason to stop.

    NaN never counts as an improvement.

    Args:
        stages: The stages, at least one.
        weight_decay: Weight decay of stages that set none.

    Attributes:
        number: Number of the stage, from 0.
        weight_decay: Its weight decay.

    Example:
        >>> rule = StageRule([Stage(patience=1), Stage(patience=1)])
        >>> [rule.observe(loss, step) for step, loss in enumerate([1.0, 2.0])]
        [False, True]
        >>> rule.advance().patience, rule.number
        (1, 1)
    """

    def __init__(self, stages: Sequence[Stage], weight_decay: float = 0.0) -> None:
        self.stages, self._default_decay = tuple(stages), weight_decay
        self.number = 0
        self.stage_best = math.inf
        self.best_weight_decay = weight_decay
        self.earlier_epochs = self.epochs = self.fruitless_epochs = 0
        self.iteration = self.fruitful_iteration = 0
        self.weight_decay = self._decay()

    @property
    def reason(self) -> str:
        """Why the training stops with the stage: patience, or the stage's maximum length."""
        return "patience" if self._is_out_of_patience else "max_epochs"

    @property
    def stage(self) -> Stage:
        """The stage that the training is in."""
        return self.stages[self.number]

    @property
    def is_last(self) -> bool:
        """Whether no other stage follows."""
        return self.number == len(self.stages) - 1

    @property
    def has_ended(self) -> bool:
        """Whether the stage is over."""
        return self._is_out_of_patience or self.epochs >= self._longest()

    @property
    def _is_out_of_patience(self) -> bool:
        stage, fruitless_steps = self.stage, self.iteration - self.fruitful_iteration
        return self.fruitless_epochs >= stage.patience and fruitless_steps >= stage.patience_steps

    @property
    def patience_left(self) -> int:
        """Fruitless epochs that the stage still allows, with `patience_steps` converted to epochs.

        Its maximum length is not considered.
        """
        stage, epochs_done = self.stage, self.earlier_epochs + self.epochs
        left = stage.patience - self.fruitless_epochs
        if self.iteration:
            steps = stage.patience_steps - (self.iteration - self.fruitful_iteration)
            left = max(left, math.ceil(Fraction(steps * epochs_done, self.iteration)))
        return max(left, 0)

    def observe(
        self, loss: float, iteration: int, error: float = math.nan, is_best: bool = False
    ) -> bool:
        """Take in an epoch and say whether the stage ends with it.

        Args:
            loss: Its validation loss.
            iteration: Optimizer steps so far.
            error: The uncertainty of that loss; NaN where it is unknown.
            is_best: Whether the epoch has the best weights so far.
        """
        least = self.stage.min_improvement * error if math.isfinite(error) else 0.0
        self.epochs, self.iteration = self.epochs + 1, iteration
        if is_best:
            self.best_weight_decay = self.weight_decay
        if loss < self.stage_best - least:
            self.stage_best = loss
            self.fruitless_epochs, self.fruitful_iteration = 0, iteration
        else:
            self.fruitless_epochs += 1
        return self.has_ended

    def advance(self) -> Stage:
        """Go on to the next stage and return it."""
        self.number += 1
        self.earlier_epochs += self.epochs
        self.epochs = self.fruitless_epochs = 0
        self.fruitful_iteration = self.iteration
        # A new rate or decay first makes the loss worse; what counts is whether it still falls.
        self.stage_best = math.inf
        self.weight_decay = self._decay()
        return self.stage

    def should_stop(self, state: TrainingState) -> bool:
        """Observe the loss of the epoch and say whether the last stage has ended."""
        is_best = state.best_epoch == state.epoch
        ended = self.observe(watched_loss(state), state.iteration, state.validation_error, is_best)
        return ended and self.is_last

    def already_stopped(self, state: TrainingState) -> bool:
        """Say whether the last stage had ended."""
        return self.epochs > 0 and self.is_last and self.has_ended

    def _longest(self) -> float:
        """Return how many epochs the stage may take."""
        stage = self.stage
        bounds = [math.inf if stage.max_epochs is None else stage.max_epochs]
        if stage.max_relative_length is not None and self.number:
            bounds.append(stage.max_relative_length * self.earlier_epochs)
        return min(bounds)

    def _decay(self) -> float:
        wanted = self.stage.weight_decay
        if wanted is None:
            return self._default_decay
        return self.best_weight_decay if isinstance(wanted, str) else wanted

    _REMEMBERED = (
        "number",
        "stage_best",
        "best_weight_decay",
        "earlier_epochs",
        "epochs",
        "fruitless_epochs",
        "iteration",
        "fruitful_iteration",
        "weight_decay",
    )

    def state_dict(self) -> dict[str, Any]:
        """Return where the training stands among its stages."""
        return {name: getattr(self, name) for name in self._REMEMBERED}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from there, with the stages of this call."""
        for name in self._REMEMBERED:
            setattr(self, name, state[name])


class StageChanges:
    """Change weights, rate, weight decay and the optimizer's memory from one stage to the next.

    Args:
        rule: Knows the current stage.
        model: The network.
        optimizer: Its rate is set by `schedule`; its weight decay is set in all parameter groups.
        schedule: Gets the stage's factor.
        best: Holds the best weights.
        averages: The running average of the weights, if there is one.
        state: The numbers of the epoch.
        validate: Returns the validation loss of what the network holds; None without validation.

    Attributes:
        best_epochs: The best epochs so far, where they are to be averaged.

    Raises:
        ArgumentError: If the stages' weight decays differ, and the optimizer has none.
    """

    def __init__(
        self,
        rule: StageRule,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        best: BestWeights,
        averages: AveragedWeights | None,
        state: TrainingState,
        validate: Callable[[], float] | None,
    ) -> None:
        self._rule, self._model, self._optimizer = rule, model, optimizer
        self._schedule, self._best, self._averages = schedule, best, averages
        self._state, self._validate = state, validate
        self.best_epochs = BestEpochs(model)
        # Most of torch's optimizers begin without a state; Adagrad begins with one and needs it.
        memory = optimizer.state_dict()["state"]
        has_stepped = any(float(of.get("step", 1)) > 0 for of in memory.values())
        self._first_state = {} if has_stepped else deepcopy(memory)
        self._check_optimizer()

    def attach_averaging(self, engine: Engine) -> None:
        """Take means of epochs after a stage's last one; attach it before all that look at it."""
        engine.add_event_handler(TrainingEvents.VALIDATED, self._take_mean)

    def attach(self, engine: Engine) -> None:
        """Make the changes after a stage's last epoch; attach it after all that look at it."""
        engine.add_event_handler(TrainingEvents.VALIDATED, self._go_on)

    def begin(self) -> None:
        """Set the rate and the weight decay of the stage that the training is in."""
        self._schedule.scale(self._rule.stage.lr_factor)
        if not self._sets_decay:
            return  # each group keeps its own
        for group in self._optimizer.param_groups:
            if "weight_decay" in group:
                group["weight_decay"] = self._rule.weight_decay

    def _take_mean(self) -> None:
        rule = self._rule
        self._state.history.note(stage=float(rule.number + 1))
        self._keep(watched_loss(self._state))
        if not rule.has_ended:
            return
        if rule.stage.average_best > 1 and self._validate is not None and self.best_epochs:
            self._average(self._validate, rule.stage.average_best)

    def _go_on(self) -> None:
        rule = self._rule
        if not rule.has_ended or rule.is_last:
            return
        stage = rule.advance()
        if stage.restart:
            self._restart()
        if stage.reset_average and self._averages is not None:
            self._averages.forget()
        if stage.reset_optimizer:
            self._forget_gradients()
        self.begin()

    def _keep(self, loss: float) -> None:
        """Keep the epoch if this stage or any other takes a mean."""
        most = max(stage.average_best for stage in self._rule.stages)
        if most > 1 and self._validate is not None:
            self.best_epochs.update(loss, self._state.epoch, most)

    def _average(self, validate: Callable[[], float], number: int) -> None:
        """Make the mean of the best epochs the best weights, unless it is worse than they are."""
        epochs, best = self.best_epochs, self._best
        # A continued training may have better weights than those of the epochs that it kept.
        worst = epochs.mean_loss(number) if epochs.lowest_loss <= best.loss else best.loss
        with epochs.mean_shown(number):
            loss = validate()
            if loss <= worst:
                best.take(loss, self._state)
                self._keep(loss)

    def _restart(self) -> None:
        self._best.restore(self._model)
        if self._averages is not None:
            self._averages.restart()

    def _forget_gradients(self) -> None:
        groups = self._optimizer.state_dict()["param_groups"]
        first = deepcopy(self._first_state)
        self._optimizer.load_state_dict({"state": first, "param_groups": groups})

    @property
    def _sets_decay(self) -> bool:
        return any(stage.weight_decay is not None for stage in self._rule.stages)

    def _check_optimizer(self) -> None:
        if self._sets_decay and not all(
            "weight_decay" in group for group in self._optimizer.param_groups
        ):
            raise ArgumentError(
                "stages: expected an optimizer with a weight_decay, because a stage sets one, got "
                f"{type(self._optimizer).__name__}. Leave weight_decay out of the stages."
            )
