"""Learning rates are torch's own, step by step, in one go and resumed in mid-epoch."""

from __future__ import annotations

import itertools

import pytest
import torch
from ignite.engine import Events
from torch import nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.utils.data import DataLoader, TensorDataset

from sbi_ignite import (
    CheckpointConfig,
    EarlyStopping,
    LRSchedule,
    SbiIgniteWarning,
    SettingsError,
    TrainConfig,
    run_training,
)
from sbi_ignite.data.foreign import as_batches
from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.training.schedules import derived_length
from tests.small import SBI_WARNS, ready, same, train, weights

pytestmark = SBI_WARNS

STEPS_PER_EPOCH, EPOCHS, RATE = 3, 6, 0.01
STEPS = STEPS_PER_EPOCH * EPOCHS
WARM = 5
BATCHES = [torch.full((4, 1), float(i)) for i in range(STEPS_PER_EPOCH)]


def squares(model, batch):
    return model(batch).square().mean(dim=1)


def flat(model, batch):
    """Never any better."""
    return 1 + 0 * model(batch).square().mean(dim=1)


class Rates:
    """The rate of every step; may break the training off after one."""

    def __init__(self, break_after=None):
        self.rates, self.break_after = [], break_after

    def attach(self, engine):
        engine.add_event_handler(TrainingEvents.BACKWARD_COMPLETED, self.note)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.end)

    def on_train_start(self, state):
        self.state = state

    def note(self):
        self.rates.append(self.state.learning_rate)

    def end(self):
        if self.break_after == len(self.rates):
            raise KeyboardInterrupt


def run(schedule, batches=BATCHES, loss=squares, **kwargs):
    """Train with a schedule; return the rate of every step, and the summary."""
    torch.manual_seed(0)
    rates = Rates()
    fields = {"max_epochs": EPOCHS, "learning_rate": RATE, "optimizer": "sgd"}
    config = {**fields, **kwargs.pop("fields", {})}
    _, summary = run_training(
        TrainConfig(lr_schedule=schedule, **{k: v for k, v in config.items() if v is not None}),
        nn.Linear(1, 1),
        loss,
        batches,
        callbacks=[rates],
        **kwargs,
    )
    return rates.rates, summary


def by_hand(make, losses=(), warmup_steps=0):
    """Step torch's schedulers in a plain loop and return the rate of every step."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=RATE)
    schedulers, rates = make(optimizer), []
    for step in range(1, STEPS + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            if not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()
            elif step % STEPS_PER_EPOCH == 0 and step >= warmup_steps:
                scheduler.step(losses[step // STEPS_PER_EPOCH - 1])
    return rates


def rising(optimizer, rest, steps=WARM, start=None):
    rise = LinearLR(optimizer, start or 1 / (steps + 1), total_iters=steps)
    return SequentialLR(optimizer, [rise, rest], [steps])


def steady(optimizer):
    return ConstantLR(optimizer, factor=1.0, total_iters=1)


def cycle(optimizer, **kwargs):
    return OneCycleLR(optimizer, RATE, total_steps=STEPS, cycle_momentum=False, **kwargs)


TORCHS = {
    "constant": (LRSchedule("constant", warmup_steps=WARM), lambda o: [rising(o, steady(o))]),
    "cosine": ("cosine", lambda o: [CosineAnnealingLR(o, STEPS)]),
    "cosine, warmed up": (
        LRSchedule("cosine", warmup_steps=WARM, min_lr=1e-4),
        lambda o: [rising(o, CosineAnnealingLR(o, STEPS - WARM, eta_min=1e-4))],
    ),
    "constant, from a third": (
        LRSchedule("constant", warmup_steps=WARM, warmup_start=1 / 3),
        lambda o: [rising(o, steady(o), start=1 / 3)],
    ),
    "cosine, from a half": (
        LRSchedule("cosine", warmup_steps=WARM, warmup_start=0.5),
        lambda o: [rising(o, CosineAnnealingLR(o, STEPS - WARM), start=0.5)],
    ),
    "one cycle": ("one_cycle", lambda o: [cycle(o)]),
    "one cycle, its rise and end named": (
        LRSchedule("one_cycle", warmup_steps=WARM, min_lr=1e-5),
        lambda o: [cycle(o, pct_start=(WARM + 1) / STEPS, final_div_factor=RATE / 25 / 1e-5)],
    ),
}


@pytest.mark.parametrize("name", TORCHS)
def test_rates_are_those_of_torchs_own_scheduler_step_by_step(name):
    schedule, make = TORCHS[name]
    rates, summary = run(schedule)
    assert rates == by_hand(make)
    assert list(summary.learning_rate) == rates[STEPS_PER_EPOCH - 1 :: STEPS_PER_EPOCH]
    assert len(set(rates)) > WARM


@pytest.mark.parametrize("warmup_steps", [0, WARM])
def test_a_plateau_is_torchs_own_and_is_not_asked_before_the_warm_up_is_over(warmup_steps):
    """The losses of training, which stands still, are handed to torch's scheduler in a loop."""
    schedule = LRSchedule("plateau", factor=0.1, patience=1, min_lr=2e-5, warmup_steps=warmup_steps)
    never = EarlyStopping.never()
    rates, summary = run(schedule, loss=flat, early_stopping=never)

    def make(o):
        plateau = ReduceLROnPlateau(o, factor=0.1, patience=1, min_lr=2e-5)
        return [rising(o, steady(o)), plateau] if warmup_steps else [plateau]

    assert rates == by_hand(make, summary.training_loss, warmup_steps)
    assert rates[-1] < RATE


@pytest.mark.parametrize("kind", ["cosine", "one_cycle"])
def test_after_its_length_a_schedule_holds_its_last_rate(kind):
    """max_epochs that was asked for is honoured, beyond the schedule's own length."""
    half = LRSchedule(kind, total_epochs=EPOCHS // 2, min_lr=1e-5)
    rates, summary = run(half)
    assert (summary.epochs_trained, summary.stop_reason) == (EPOCHS, "max_epochs")
    assert rates[STEPS // 2 + 1 :] == [pytest.approx(1e-5)] * (STEPS // 2 - 1)


@pytest.mark.parametrize("kind", ["cosine", "one_cycle"])
def test_without_max_epochs_a_training_ends_with_its_schedule(kind):
    schedule = LRSchedule(kind, total_epochs=4)
    _, summary = run(schedule, fields={"max_epochs": None}, early_stopping=EarlyStopping.never())
    assert (summary.epochs_trained, summary.stop_reason) == (4, "max_epochs")


def test_without_any_length_the_rows_decide():
    """12 rows: 300 epochs; the formula for more rows stands in the docstring."""
    never = EarlyStopping.never()
    rates, summary = run("cosine", fields={"max_epochs": None}, early_stopping=never)
    assert summary.epochs_trained == derived_length(12) == 300
    assert rates == pytest.approx(
        [RATE / 2 * (1 + torch.cos(torch.tensor(torch.pi * k / 900)).item()) for k in range(900)],
        rel=1e-4,
        abs=1e-9,
    )
    assert [derived_length(n) for n in (1, 4_000, 40_000, 10**8)] == [300, 150, 47, 30]


class Endless:
    """Batches with a length and nothing else."""

    def __len__(self):
        return 2

    def __iter__(self):
        return itertools.repeat(torch.zeros(1, 1), 2)


def test_a_schedule_whose_length_nobody_knows_is_refused_with_advice():
    with pytest.raises(SettingsError, match=r"needs a length.*Endless.*total_epochs=\.\.\."):
        run("cosine", Endless(), fields={"max_epochs": None})
    run("cosine", Endless())


def test_rows_are_counted_where_a_loader_shows_them():
    data = TensorDataset(torch.zeros(10, 1))
    assert as_batches(DataLoader(data, batch_size=4)).num_rows == 10
    assert as_batches(DataLoader(data, sampler=range(7))).num_rows == 7
    assert as_batches(BATCHES).num_rows == 12
    assert as_batches(Endless()).num_rows is None


SCHEDULES = {
    "constant": LRSchedule("constant", warmup_steps=8),
    "constant, from a third": LRSchedule("constant", warmup_steps=8, warmup_start=0.33),
    "plateau": LRSchedule("plateau", warmup_steps=8, patience=0, factor=0.5),
    "cosine": LRSchedule("cosine", warmup_steps=8, total_epochs=4, min_lr=1e-5),
    "one_cycle": LRSchedule("one_cycle", total_epochs=4, min_lr=1e-5),
}


@pytest.mark.parametrize("break_after", [5, 13])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_training_broken_off_in_mid_epoch_goes_on_with_the_rates_of_one_that_was_not(
    kind, break_after, tmp_path
):
    config = TrainConfig(
        lr_schedule=SCHEDULES[kind], max_epochs=5, batch_size=27, learning_rate=0.02
    )
    every_step = CheckpointConfig(tmp_path, every_seconds=1e-9)
    whole, broken, rest = Rates(), Rates(break_after), Rates()
    one = train(ready(), config, callbacks=[whole])

    with pytest.raises(KeyboardInterrupt):
        train(ready(), config, callbacks=[broken], checkpoint=every_step)
    two = train(ready(), config, callbacks=[rest], checkpoint=every_step)

    assert len(whole.rates) == 20  # 4 steps in an epoch: both breaks are inside one
    assert broken.rates == whole.rates[:break_after]
    assert rest.rates == whole.rates[-len(rest.rates) :]
    assert len(rest.rates) == 20 - break_after + 1  # broken off before the step was saved
    assert one.training_summary.learning_rate == two.training_summary.learning_rate
    assert same(one, two)


# --- more epochs

LONGER = {
    "cosine": "cosine",
    "cosine, warmed up": LRSchedule("cosine", warmup_steps=WARM),
    "one cycle": "one_cycle",
    "one cycle, its rise named": LRSchedule("one_cycle", warmup_steps=WARM),
}


def stretched(schedule):
    schedule = schedule if isinstance(schedule, LRSchedule) else LRSchedule(schedule)
    return schedule.model_copy(update={"on_extend": "stretch"})


@pytest.mark.parametrize("name", LONGER)
def test_more_epochs_on_a_finished_schedule_are_refused_with_both_lengths(name, tmp_path):
    run(LONGER[name], fields={"max_epochs": 3}, checkpoint=str(tmp_path))
    kept = (tmp_path / "run.json").read_text()
    with pytest.raises(SettingsError, match=r"epoch 3,.*got 6 from .*max_epochs.*\"stretch\""):
        run(LONGER[name], checkpoint=str(tmp_path))
    assert (tmp_path / "run.json").read_text() == kept
    _, summary = run(LONGER[name], fields={"max_epochs": 3}, checkpoint=str(tmp_path))
    assert summary.resumed_from_epoch == 3


@pytest.mark.parametrize("name", LONGER)
def test_a_stretched_schedule_goes_on_with_the_rates_of_one_that_had_its_length_from_the_start(
    name, tmp_path
):
    whole, _ = run(LONGER[name])
    first, _ = run(LONGER[name], fields={"max_epochs": 3}, checkpoint=str(tmp_path))
    rest, summary = run(stretched(LONGER[name]), checkpoint=str(tmp_path))
    assert len(first) + len(rest) == len(whole)
    assert rest == whole[len(first) :]
    assert summary.epochs_trained == EPOCHS


def test_a_stretched_schedule_is_continued_in_mid_epoch_like_any_other(tmp_path):
    schedule = stretched("cosine")
    every_step = CheckpointConfig(tmp_path, every_seconds=1e-9)

    def go(rates, epochs=5):
        config = TrainConfig(lr_schedule=schedule, max_epochs=epochs, batch_size=27)
        return train(ready(), config, callbacks=[rates], checkpoint=every_step)

    go(Rates(), epochs=2)
    with pytest.raises(KeyboardInterrupt):
        go(Rates(break_after=6))
    rest, whole = Rates(), Rates()
    go(rest)
    train(
        ready(),
        TrainConfig(lr_schedule="cosine", max_epochs=5, batch_size=27),
        callbacks=[whole],
    )
    assert rest.rates == whole.rates[-len(rest.rates) :]
    assert 0 < len(rest.rates) < 12


def test_a_trainer_that_resumes_a_finished_schedule_is_told_so_and_keeps_its_best_weights():
    trainer = train(ready(), TrainConfig(lr_schedule="cosine", max_epochs=3))
    before = weights(trainer)
    for _ in range(2):
        with pytest.raises(SettingsError, match=r"ends with epoch 3.*got 6"):
            trainer.train(TrainConfig(lr_schedule="cosine", max_epochs=6, resume_training=True))
    assert same(trainer, before)
    trainer.train(
        TrainConfig(
            lr_schedule=LRSchedule("cosine", on_extend="stretch"),
            max_epochs=6,
            resume_training=True,
        )
    )
    whole = train(ready(), TrainConfig(lr_schedule="cosine", max_epochs=6))
    rates = trainer.training_summary.learning_rate
    assert rates[3:] == whole.training_summary.learning_rate[3:]


def test_a_last_rate_that_was_asked_for_is_held_through_more_epochs(tmp_path):
    schedule = LRSchedule("cosine", min_lr=1e-3)
    run(schedule, fields={"max_epochs": 3}, checkpoint=str(tmp_path))
    rates, _ = run(schedule, checkpoint=str(tmp_path))
    assert rates == [pytest.approx(1e-3)] * 9


def test_a_run_that_patience_has_ended_may_have_more_epochs(tmp_path):
    """Nothing is trained at a rate of nothing."""
    stop = EarlyStopping.validation_loss(patience=1)
    for epochs in (5, 9):
        fields = {"max_epochs": epochs}
        _, summary = run(
            "cosine", loss=flat, fields=fields, early_stopping=stop, checkpoint=str(tmp_path)
        )
    assert (summary.epochs_trained, summary.stop_reason) == (2, "patience")


def test_a_schedule_that_is_shorter_than_its_training_warns_of_the_rate_after_it():
    with pytest.warns(SbiIgniteWarning, match=r"total_epochs=2 .* 6 epochs .*rate stays at 0"):
        rates, _ = run(LRSchedule("cosine", total_epochs=2))
    assert rates[6:] == [0.0] * 12


@pytest.mark.parametrize("kind", ["constant", "plateau", "cosine", "one_cycle"])
def test_a_warm_up_that_is_longer_than_the_training_warns_with_both_numbers(kind):
    schedule = LRSchedule(kind, warmup_steps=STEPS)
    with pytest.warns(SbiIgniteWarning, match=r"warmup_steps=18 from .*the 18 steps.*6 epochs of"):
        run(schedule)
    run(LRSchedule(kind, warmup_steps=STEPS - 1))


def test_a_rate_threshold_without_a_schedule_warns_that_it_never_stops():
    with pytest.warns(SbiIgniteWarning, match=r"lr_threshold\(min_lr=1e-06\) never stops"):
        run_training(
            TrainConfig(max_epochs=1),
            nn.Linear(1, 1),
            squares,
            BATCHES,
            early_stopping=EarlyStopping.lr_threshold(),
        )


# --- lr_threshold

THRESHOLDS = {
    "a callable": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.1),
    "plateau": LRSchedule("plateau", factor=0.1, patience=0),
    "plateau, warmed up": LRSchedule("plateau", factor=0.1, patience=0, warmup_steps=7),
    "cosine": LRSchedule("cosine", total_epochs=6),
    "cosine, warmed up": LRSchedule("cosine", total_epochs=6, warmup_steps=7),
    "one_cycle": LRSchedule("one_cycle", total_epochs=6, warmup_steps=7),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_the_rate_threshold_works_with_every_schedule_and_is_not_fooled_by_a_warm_up(name):
    """It ends training in the first epoch that leaves too low a rate behind, and never earlier."""
    threshold = RATE * 0.45
    rates, summary = run(
        THRESHOLDS[name],
        loss=flat,
        fields={"max_epochs": 40},
        early_stopping=EarlyStopping.lr_threshold(threshold),
    )
    assert summary.stop_reason == "lr_threshold"
    assert max(rates) == pytest.approx(RATE, rel=0.01)
    fallen = [k for k in range(1, len(rates)) if rates[k] < threshold and rates[k] < rates[k - 1]]
    assert len(fallen) < STEPS_PER_EPOCH
    if "warmed" in name or "cycle" in name:
        assert summary.learning_rate[0] < threshold


def test_a_rate_that_was_too_low_from_the_start_ends_training_after_one_epoch():
    stop = EarlyStopping.lr_threshold(1.0)
    for schedule in (None, LRSchedule("constant", warmup_steps=2)):
        _, summary = run(schedule, early_stopping=stop)
        assert (summary.epochs_trained, summary.stop_reason) == (1, "lr_threshold")


def test_a_learning_rate_that_a_user_changes_by_hand_stays_changed():
    """A schedule goes on from the rate that it finds."""

    class Halve:
        def on_train_start(self, state):
            self.state = state

        def on_epoch_end(self, state):
            if state.epoch == 2:
                optimizer.param_groups[0]["lr"] /= 2

    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    rates = Rates()
    run_training(
        TrainConfig(max_epochs=4, lr_schedule=LRSchedule("constant", warmup_steps=2)),
        model,
        squares,
        BATCHES,
        optimizer=optimizer,
        callbacks=[rates, Halve()],
    )
    assert optimizer.param_groups[0]["lr"] == RATE / 2


@pytest.mark.parametrize("kind", ["cosine", "one_cycle", "plateau"])
def test_a_schedule_that_would_end_above_its_rate_is_refused(kind):
    config = TrainConfig(learning_rate=0.01, lr_schedule=LRSchedule(kind, min_lr=0.1), max_epochs=4)
    with pytest.raises(SettingsError, match=r"got min_lr=0\.1 from .* a rate of 0\.01 \(the call"):
        run_training(config, nn.Linear(1, 1), squares, BATCHES)
