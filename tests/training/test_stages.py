"""Stages restart from the best weights, change rate and weight decay, and end a training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sbi_ignite import (
    ArgumentError,
    CheckpointConfig,
    EarlyStopping,
    LRSchedule,
    Stage,
    TrainConfig,
    run_training,
)
from sbi_ignite.bridge.memory import memory_of
from tests.small import SBI_WARNS, ready, same, train, weights

pytestmark = SBI_WARNS

RATE = 0.5
X = torch.tensor([[1.0], [-1.0]])


class Scripted:
    """A loss whose validation follows a script; training moves the weights all the time."""

    def __init__(self, losses):
        self.losses = iter(losses)

    def __call__(self, model, batch):
        return model(batch).square().mean(dim=1)

    def validate(self, model, batch):
        return torch.full((len(batch),), next(self.losses))


class Watch:
    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
        self.begins, self.rates, self.decays, self.ends, self.remembered = [], [], [], [], []
        self.best = []

    def attach(self, engine):
        from ignite.engine import Events

        engine.add_event_handler(Events.EPOCH_STARTED, self.look)

    def look(self):
        self.begins.append(weights(self.model))
        group = self.optimizer.param_groups[0]
        self.rates.append(group["lr"])
        self.decays.append(group["weight_decay"])
        self.remembered.append(len(self.optimizer.state))

    def on_epoch_end(self, state):
        self.ends.append(weights(self.model))
        self.best.append(state.best_validation_loss)


def fit(stages, losses, **fields):
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.5)
    watch = Watch(model, optimizer)
    _, summary = run_training(
        TrainConfig(stages=stages, **fields),
        model,
        Scripted(losses),
        [X, X],
        [X],
        optimizer=optimizer,
        callbacks=[watch],
    )
    return watch, summary


LOSSES = [3.0, 1.0, 2.0, 2.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9]
# stage 0: epochs 1-4, best 2; stage 1: epochs 5-7, best 5; stage 2: epochs 8-10, its own best 8
TWO = {"patience": 2}


@pytest.mark.parametrize("averaging", [None, "power"])
def test_each_stage_begins_with_the_best_weights_its_rate_and_its_decay(averaging):
    stages = [
        Stage(**TWO, weight_decay=0.0),
        Stage(**TWO, weight_decay=0.25),
        Stage(**TWO, weight_decay="best", lr_factor=0.3),
    ]
    watch, summary = fit(stages, LOSSES, averaging=averaging)
    assert (summary.epochs_trained, summary.stop_reason) == (10, "patience")
    assert summary.best_epoch == 5
    assert watch.rates == [RATE] * 7 + [RATE * 0.3] * 3
    assert watch.decays == [0.0] * 4 + [0.25] * 3 + [0.25] * 3
    assert list(summary.learning_rate) == watch.rates
    assert same(watch.begins[4], watch.ends[1])
    assert same(watch.begins[7], watch.ends[4])
    assert same(weights(watch.model), watch.ends[4])
    assert not same(watch.begins[1], watch.ends[1])


def test_a_stage_may_go_on_from_the_last_weights_and_forget_the_gradients():
    stages = [Stage(**TWO), Stage(patience=1, restart=False, reset_optimizer=True)]
    watch, summary = fit(stages, [*LOSSES[:4], 2.0, 2.0])
    assert summary.epochs_trained == 6
    assert same(watch.begins[4], watch.ends[3])
    assert watch.remembered == [0, 2, 2, 2, 0, 2]


@pytest.mark.parametrize("averaging", [None, "power"])
def test_the_mean_of_the_best_epochs_is_the_best_unless_it_is_worse_than_they_are(averaging):
    stages = [Stage(**TWO, average_best=2), Stage(patience=1, average_best=2)]
    # Of epochs 2 and 3, the mean (1.2) is better than both on the mean; the one of epoch 2 and that
    # mean (1.15) is not.
    watch, summary = fit(stages, [3.0, 1.0, 2.0, 2.5, 1.2, 1.3, 1.4, 1.15], averaging=averaging)
    assert (summary.epochs_trained, summary.stop_reason) == (6, "patience")
    assert (summary.best_validation_loss, summary.best_epoch) == (pytest.approx(1.2), 4)
    assert list(summary.validation_loss) == pytest.approx([3.0, 1.0, 2.0, 2.5, 1.3, 1.4])
    assert watch.best == pytest.approx([3.0, 1.0, 1.0, 1.2, 1.2, 1.2])
    second, third = watch.ends[1], watch.ends[2]
    mean = {name: torch.stack([second[name], third[name]]).mean(0) for name in second}
    assert same(watch.begins[4], mean)
    assert same(weights(watch.model), mean)


@pytest.mark.parametrize("mean", [1.6, float("nan")])
def test_a_bad_mean_changes_nothing(mean):
    losses = [3.0, 1.0, 2.0, 2.5]
    watch, summary = fit([Stage(**TWO, average_best=2)], [*losses, mean])
    plain, same_summary = fit([Stage(**TWO)], losses)
    assert same(weights(watch.model), weights(plain.model))
    assert summary.best_epoch == same_summary.best_epoch == 2


def test_epochs_of_stages_without_a_mean_count_too():
    """The second stage's own epochs are worse than the first one's, and so is their mean."""
    stages = [Stage(**TWO), Stage(max_epochs=2, average_best=2)]
    watch, summary = fit(stages, [1.0, 1.2, 1.3, 3.0, 4.0, 1.05])
    assert (summary.best_validation_loss, summary.best_epoch) == (pytest.approx(1.05), 5)
    first, second = watch.ends[:2]
    assert same(
        weights(watch.model), {n: torch.stack([first[n], second[n]]).mean(0) for n in first}
    )
    plain, _ = fit(stages, [1.0, 1.2, 1.3, 3.0, 4.0, 1.15])
    assert same(weights(plain.model), plain.ends[0])


def test_a_mean_takes_no_place_of_better_weights_from_an_earlier_leg():
    """The first leg kept no epochs for a mean, so that the second one's are its own."""
    first, then = Stage(max_epochs=2), Stage(max_epochs=4, average_best=5)
    legs = train(ready(), TrainConfig(stages=[first], max_epochs=2, batch_size=27))
    before = weights(legs)
    loss = legs.training_summary.best_validation_loss
    legs.train(
        TrainConfig(
            stages=[then], max_epochs=6, batch_size=27, learning_rate=10.0, resume_training=True
        )
    )
    summary = legs.training_summary
    assert min(summary.validation_loss[2:]) > loss
    assert summary.best_validation_loss == loss
    assert same(weights(legs), before)


def test_without_validation_there_is_no_mean():
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    stages = [Stage(max_epochs=3, average_best=2)]
    _, summary = run_training(TrainConfig(stages=stages), model, Scripted([]), [X, X])
    assert summary.epochs_trained == 3
    assert summary.best_validation_loss == min(summary.training_loss)


@pytest.mark.parametrize("kind", ["Adagrad", "Adam", "AdamW", "RMSprop", "SGD", "Rprop", "NAdam"])
def test_any_optimizer_can_begin_a_stage_as_if_new(kind: str):
    """Adagrad has a state from the beginning, and cannot step without it."""
    seen: list[list[torch.Tensor]] = []

    def make(parameters):
        momentum = {"momentum": 0.5} if kind == "SGD" else {}
        made = getattr(torch.optim, kind)(parameters, lr=0.1, **momentum)
        step = made.step

        def watched(*args, **kwargs):
            states = made.state_dict()["state"].values()
            seen.append([v.clone() for of in states for v in of.values() if torch.is_tensor(v)])
            return step(*args, **kwargs)

        made.step = watched
        return made

    stages = [Stage(patience=2), Stage(patience=2, reset_optimizer=True)]
    config = TrainConfig(stages=stages, optimizer=make, compile="off")
    run_training(config, nn.Linear(1, 1), Scripted([1.0] * 9), [X], [X])
    assert len(seen) > 4
    first, *later = seen
    begun = [n for n, state in enumerate(later, 1) if len(state) == len(first)]
    again = [n for n in begun if all(map(torch.equal, seen[n], first))]
    assert len(again) == 1


def test_the_first_stages_rate_and_decay_hold_from_the_first_step():
    watch, _ = fit([Stage(patience=1, lr_factor=0.1, weight_decay=0.5)], [1.0, 1.0])
    assert watch.rates == [RATE * 0.1] * 2
    assert watch.decays == [0.5] * 2


def test_a_factor_multiplies_what_the_schedule_makes_of_the_rate():
    halve = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)  # noqa: E731
    stages = [Stage(**TWO), Stage(**TWO, lr_factor=0.1)]
    watch, _ = fit(stages, [*LOSSES[:4], 2.0, 2.0, 2.0], lr_schedule=halve)
    assert watch.rates == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.0125, 0.0125, 0.00625])


def test_early_stopping_that_is_asked_for_stops_besides():
    torch.manual_seed(0)
    _, summary = run_training(
        TrainConfig(stages=[Stage(patience=50)]),
        nn.Linear(1, 1),
        Scripted([1.0] * 60),
        [X],
        [X],
        early_stopping=EarlyStopping.validation_loss(patience=3),
    )
    assert summary.epochs_trained == 4


def test_without_early_stopping_the_default_patience_does_not_stop_a_stage():
    watch, summary = fit([Stage(patience=30)], [1.0] * 40)
    assert summary.epochs_trained == 31
    assert summary.config["early_stopping"][0]["kind"]["value"] == "never"
    assert len(watch.ends) == 31


def test_an_optimizer_without_weight_decay_is_refused_where_a_stage_sets_one():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SparseAdam(model.parameters())
    with pytest.raises(ArgumentError, match=r"optimizer with a weight_decay.*got SparseAdam"):
        run_training(
            TrainConfig(stages=[Stage(weight_decay=0.1)]),
            model,
            Scripted([]),
            [X],
            optimizer=optimizer,
        )


# --- resumed

FIELDS = {
    "batch_size": 27,
    "learning_rate": 0.02,
    "optimizer": "adamw",
    "averaging": "power",
    "lr_schedule": LRSchedule("constant", warmup_steps=6),
    "stages": (
        Stage(patience=2, max_epochs=3, average_best=2),
        Stage(patience=2, max_epochs=3, weight_decay=0.3, reset_optimizer=True),
        Stage(
            patience=1,
            min_improvement=0.2,
            max_epochs=2,
            average_best=3,
            weight_decay="best",
            lr_factor=0.3,
            reset_average=True,
        ),
    ),
}


class BreakAfter:
    """End a training by an error after so many steps, counted over its legs."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_start(self, state):
        self.state = state

    def attach(self, engine):
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED, self.look)

    def look(self):
        if self.state.iteration == self.steps:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["NPE_C", "NRE_B"])
def test_a_training_broken_off_inside_its_stages_ends_as_if_it_was_not(name, tmp_path):
    """Broken off in every stage and at a stage's last step: bit for bit the same."""
    config, every_step = TrainConfig(**FIELDS), CheckpointConfig(tmp_path, every_seconds=1e-9)
    whole = train(ready(name), config)
    steps = memory_of(whole).state.iteration
    for break_after in [5, 12, 13, 18, steps - 1]:
        with pytest.raises(KeyboardInterrupt):
            train(ready(name), config, callbacks=[BreakAfter(break_after)], checkpoint=every_step)
    again = train(ready(name), config, checkpoint=every_step)
    assert same(whole, again)
    one, two = whole.training_summary, again.training_summary
    assert one.validation_loss == two.validation_loss
    assert one.learning_rate == two.learning_rate
    assert one.stop_reason == two.stop_reason == "max_epochs"
    for a, b in zip(whole.optimizer.param_groups, again.optimizer.param_groups, strict=True):
        assert (a["lr"], a["weight_decay"]) == (b["lr"], b["weight_decay"])
    assert pytest.approx(one.learning_rate[-1]) == 0.3 * 0.02


@pytest.mark.parametrize("first", [2, 4])
def test_two_legs_of_stages_are_one_training(first):
    whole = train(ready(), TrainConfig(**FIELDS, max_epochs=6))
    legs = train(ready(), TrainConfig(**FIELDS, max_epochs=first))
    legs.train(TrainConfig(**FIELDS, max_epochs=6, resume_training=True))
    assert same(whole, legs)
    assert whole.training_summary.learning_rate == legs.training_summary.learning_rate


def test_a_last_stage_that_ends_by_its_length_is_not_said_to_be_out_of_patience():
    torch.manual_seed(0)
    model, stages = nn.Linear(1, 1), (Stage(max_epochs=1), Stage(max_epochs=2))
    falling = Scripted([3.0, 2.0, 1.0])
    _, summary = run_training(TrainConfig(stages=stages), model, falling, [X], [X])
    assert (summary.epochs_trained, summary.stop_reason) == (3, "max_epochs")
    model, stages = nn.Linear(1, 1), (Stage(patience=1, max_epochs=9),)
    _, summary = run_training(
        TrainConfig(stages=stages), model, Scripted([1.0, 2.0, 3.0]), [X], [X]
    )
    assert (summary.epochs_trained, summary.stop_reason) == (2, "patience")
