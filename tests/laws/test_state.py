"""Whatever remembers something can be saved, and a second object continues like the first."""

from __future__ import annotations

import importlib
import inspect
import io
import math
import pkgutil
from typing import Any

import pytest
import torch
from ignite.engine import Engine

import sbi_ignite.handlers
from sbi_ignite.callback import History, TrainingState
from sbi_ignite.handlers.averaging import AveragedWeights, TrainedWeights
from sbi_ignite.handlers.best_epochs import BestEpochs
from sbi_ignite.handlers.best_weights import BestWeights
from sbi_ignite.handlers.epoch_mean import EpochMean, StepOutput
from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.handlers.gradient_clipping import GradientClipping
from sbi_ignite.handlers.rules.lr_threshold import LearningRateThreshold
from sbi_ignite.handlers.rules.two_standard_deviations import TwoStandardDeviations
from sbi_ignite.handlers.rules.validation_loss import Patience
from sbi_ignite.handlers.rules.when import When
from sbi_ignite.handlers.schedule import Schedule, Schedulers
from sbi_ignite.handlers.stages import StageRule
from sbi_ignite.handlers.stopping import StopOnRules
from sbi_ignite.settings import Stage, WeightAveraging


def handler_classes() -> set[type]:
    """Return every class of handlers/ that has a state_dict."""
    found = set()
    for module in pkgutil.walk_packages(sbi_ignite.handlers.__path__, "sbi_ignite.handlers."):
        if module.name.endswith(".base"):
            continue
        home = importlib.import_module(module.name)
        for name, value in vars(home).items():
            own = inspect.isclass(value) and value.__module__ == home.__name__
            protocol = getattr(value, "_is_protocol", False)
            if own and not name.startswith("_") and not protocol and hasattr(value, "state_dict"):
                found.add(value)
    return found


class Fifth:
    """A user's rule with a memory."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, state: TrainingState) -> bool:
        self.asked += 1
        return self.asked >= 5

    def state_dict(self) -> dict[str, int]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.asked = state["asked"]


LOSSES = [3.0, 2.5, math.nan, 2.4, 2.45, -1.0, -0.5, -0.9, 0.0, 0.1, 0.2, 4.0]


def epoch(number: int) -> TrainingState:
    """Return the state after an epoch of a made-up training."""
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, number)
    torch.nn.init.zeros_(model.bias)
    state = TrainingState(
        model=model,
        epoch=number,
        validation_loss=LOSSES[number - 1],
        best_epoch=min((loss, i) for i, loss in enumerate(LOSSES[:number], 1) if loss == loss)[1],
        learning_rate=2.0**-number,
    )
    state.history.validation_loss = LOSSES[:number]
    return state


def ask(rule: Any, number: int) -> Any:
    return rule.should_stop(epoch(number))


def keep(best: Any, number: int) -> Any:
    best.update(epoch(number))
    return best.loss, best.epoch, best.weights["weight"].item()


def keep_several(best: Any, number: int) -> Any:
    weight = best._groups[0][0]
    torch.nn.init.constant_(weight, number)
    best.update(LOSSES[number - 1], number, most=3)
    with best.mean_shown(3):
        return len(best), best.mean_loss(3), best.lowest_loss, weight.item()


def add(mean: Any, number: int) -> Any:
    engine = Engine(lambda engine, batch: None)
    engine.state.output = StepOutput(LOSSES[number - 1], number)  # type: ignore[assignment]
    mean._add(engine)
    return str(mean.value)


def clip(clipping: Any, number: int) -> Any:
    engine = Engine(lambda engine, batch: None)
    engine.register_events(*TrainingEvents)
    clipping.attach(engine)
    clipping._parameters[0].grad = torch.full((1,), float(number))
    engine.fire_event(TrainingEvents.BACKWARD_COMPLETED)
    return clipping.mean_norm, clipping._parameters[0].grad.item()


def zeros() -> torch.nn.Module:
    model = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    return model


def averages() -> AveragedWeights:
    return AveragedWeights(zeros(), WeightAveraging("power", factor=2.0).share)


def average(kept: Any, number: int) -> Any:
    torch.nn.init.constant_(kept._parameters[0], number)
    kept.update()
    return [value.item() for value in kept.state_dict()["average"]]


def shown(kept: Any, number: int) -> Any:
    kept._averages.hide()
    average(kept._averages, number)
    kept._averages.show()
    return kept.state_dict()["weight"].item()


def trained() -> TrainedWeights:
    kept = averages()
    model = zeros()
    kept._parameters = list(model.parameters())
    return TrainedWeights(model, kept)


def go_through_stages(rule: Any, number: int) -> Any:
    stop = rule.should_stop(epoch(number))
    if rule.has_ended and not rule.is_last:
        rule.advance()
    return stop, rule.number, rule.weight_decay


def schedule() -> Schedule:
    optimizer = torch.optim.SGD(zeros().parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
    optimizer.step()  # torch warns about schedules without steps
    made = Schedule(Schedulers(scheduler), optimizer, TrainingState(model=None))
    made.scale(0.25)
    return made


def step(made: Any, number: int) -> Any:
    made._step_after_epoch()
    return made._state.learning_rate


def several_rules() -> StopOnRules:
    rules = [Patience(3), When(Fifth()), Patience(2, 0.5)]
    return StopOnRules(rules, TrainingState(model=None))


def ask_several(stopping: Any, number: int) -> Any:
    stopping._state.stop_reason = None
    stopping._state.validation_loss = LOSSES[number - 1]
    stopping._ask()
    return stopping._state.stop_reason, stopping.patience_left


MAKE = {
    AveragedWeights: (averages, average),
    TrainedWeights: (trained, shown),
    StageRule: (
        lambda: StageRule([Stage(patience=2, weight_decay=0.1), Stage(weight_decay="best")]),
        go_through_stages,
    ),
    Schedule: (schedule, step),
    Patience: (lambda: Patience(3), ask),
    TwoStandardDeviations: (lambda: TwoStandardDeviations(2, 0.5), ask),
    LearningRateThreshold: (lambda: LearningRateThreshold(1e-2), ask),
    When: (lambda: When(Fifth()), ask),
    StopOnRules: (several_rules, ask_several),
    BestWeights: (BestWeights, keep),
    BestEpochs: (lambda: BestEpochs(zeros()), keep_several),
    EpochMean: (EpochMean, add),
    GradientClipping: (
        lambda: GradientClipping([torch.nn.Parameter(torch.zeros(1))], max_norm=2.0),
        clip,
    ),
}


def test_no_handler_with_a_state_is_forgotten_here():
    assert handler_classes() - set(MAKE) == set()


@pytest.mark.parametrize("moment", [1, 4, 7])
@pytest.mark.parametrize("kind", MAKE, ids=lambda kind: kind.__name__)
def test_a_second_object_continues_like_the_first(kind, moment):
    """Saved after a few epochs and read with weights_only=True, it gives the same answers."""
    build, feed = MAKE[kind]
    first, second = build(), build()
    for number in range(1, moment + 1):
        feed(first, number)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    rest = range(moment + 1, len(LOSSES) + 1)
    assert [feed(second, n) for n in rest] == [feed(first, n) for n in rest]
    assert str(second.state_dict()) == str(first.state_dict())


def test_new_limits_hold_for_a_restored_rule():
    """The state is what a rule remembers; how patient it is, the new call says."""
    first = Patience(2)
    for loss in (1.0, 2.0):
        first.observe(loss)
    second = Patience(4)
    second.load_state_dict(first.state_dict())
    assert [second.observe(2.0) for _ in range(3)] == [False, False, True]


def test_training_state_and_history_round_trip():
    state = epoch(4)
    other = TrainingState(model=None)
    other.load_state_dict(state.state_dict())
    assert str(other.state_dict()) == str(state.state_dict())
    history = History()
    history.load_state_dict(state.history.state_dict())
    history.validation_loss.append(0.0)
    assert len(state.history.validation_loss) == 4
