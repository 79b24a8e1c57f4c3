"""resume_training=True in the typed form continues exactly where the training stopped."""

from __future__ import annotations

import copy
import pickle
import signal

import pytest
import torch
from ignite.engine import Events

from sbi_ignite import (
    ArgumentError,
    CheckpointMismatchError,
    DataError,
    EarlyStopping,
    LRSchedule,
    SbiIgniteWarning,
    TrainConfig,
)
from sbi_ignite.handlers.time_limit import TimeLimit
from sbi_ignite.training import state
from tests.small import SBI_WARNS, append, draw, ready, same, standing_still, train

pytestmark = SBI_WARNS


def columns(rows):
    """Return rows as batch tensors; what a user's collate_fn does."""
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def compare(name, first=3, total=6, between=lambda trainer: trainer, **fields):
    """Train in one go and in two legs, and require bitwise equality of everything."""
    fields = {"batch_size": 40, "learning_rate": 0.005, **fields}
    whole, legs = ready(name), ready(name)
    train(whole, TrainConfig(max_epochs=total, **fields))

    train(legs, TrainConfig(max_epochs=first, **fields))
    assert legs.training_summary.epochs_trained == first
    torch.manual_seed(1234)
    torch.rand(17)
    legs = between(legs)
    legs.train(TrainConfig(max_epochs=total, resume_training=True, **fields))

    one, two = whole.training_summary, legs.training_summary
    assert same(whole, legs)
    assert one.training_loss == two.training_loss
    assert one.validation_loss == two.validation_loss
    assert one.learning_rate == two.learning_rate
    assert one.best_epoch == two.best_epoch
    assert (one.epochs_trained, two.epochs_trained) == (total, total)
    assert (one.resumed_from_epoch, two.resumed_from_epoch) == (0, first)
    assert legs.epoch == total
    assert len(legs._summary["validation_loss"]) == total
    return whole, legs


@pytest.mark.parametrize("name", ["NPE_C", "NLE_A", "NRE_B", "NRE_C", "FMPE", "NPSE"])
def test_two_legs_are_one_training(name):
    """Last weights, optimizer, random state and the order of batches go on as if never stopped."""
    compare(name)


def test_a_seed_on_the_resumed_leg_does_not_start_the_randomness_again():
    compare("NRE_B", seed=4)


def test_a_pickled_trainer_resumes_exactly():
    compare("NPE_C", between=lambda trainer: pickle.loads(pickle.dumps(trainer)))


def test_a_copied_trainer_resumes_exactly_and_leaves_the_original_alone():
    _, copied = compare("NPE_C", between=copy.deepcopy)
    assert copied.training_summary.epochs_trained == 6


def test_a_plateau_schedule_goes_on():
    """The scheduler's counters survive: rates of both trainings are equal, and do change."""
    schedule = LRSchedule("plateau", factor=0.5, patience=0)
    whole, _ = compare("NRE_B", first=4, total=9, lr_schedule=schedule, learning_rate=0.2)
    assert len(set(whole.training_summary.learning_rate)) > 1


def test_a_schedule_from_a_callable_goes_on():
    def cosine(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)

    compare("NPE_C", lr_schedule=cosine)


def test_user_data_loaders_go_on():
    compare("NPE_C", dataloader_kwargs={"collate_fn": columns})


def test_three_legs_are_one_training():
    def another_leg(trainer):
        trainer.train(
            TrainConfig(max_epochs=4, resume_training=True, batch_size=40, learning_rate=0.005)
        )
        return trainer

    whole, legs = ready(), ready()
    fields = {"batch_size": 40, "learning_rate": 0.005}
    train(whole, TrainConfig(max_epochs=6, **fields))
    train(legs, TrainConfig(max_epochs=2, **fields))
    another_leg(legs)
    legs.train(TrainConfig(max_epochs=6, resume_training=True, **fields))
    assert same(whole, legs)
    assert whole.training_summary.validation_loss == legs.training_summary.validation_loss


def test_patience_goes_on_counting():
    """Fruitless epochs of the first leg count in the second."""
    trainer = ready()
    still = TrainConfig(max_epochs=3, optimizer=standing_still)
    trainer.train(still, early_stopping=EarlyStopping.validation_loss(patience=4))
    assert trainer.training_summary.stop_reason == "max_epochs"

    more = TrainConfig(max_epochs=30, optimizer=standing_still, resume_training=True)
    trainer.train(more, early_stopping=EarlyStopping.validation_loss(patience=4))
    assert trainer.training_summary.epochs_trained == 5
    assert trainer.training_summary.stop_reason == "patience"


def test_resuming_what_has_stopped_trains_nothing_unless_patience_grew():
    trainer = ready()

    def go_on(patience, **more):
        config = TrainConfig(optimizer=standing_still, **more)
        trainer.train(config, early_stopping=EarlyStopping.validation_loss(patience=patience))
        return trainer.training_summary.epochs_trained

    assert go_on(2) == 3
    assert go_on(2, resume_training=True) == 3
    assert trainer.training_summary.stop_reason == "patience"
    assert go_on(5, resume_training=True) == 6


class Counting:
    """A rule with a memory: it stops the fifth time that it is asked."""

    def __init__(self):
        self.asked = 0

    def __call__(self, state):
        self.asked += 1
        return self.asked == 5

    def state_dict(self):
        return {"asked": self.asked}

    def load_state_dict(self, state):
        self.asked = state["asked"]


def test_a_users_rule_with_a_memory_goes_on():
    """A new rule object gets the state that the one of the first leg had."""
    trainer = ready()
    trainer.train(TrainConfig(max_epochs=3), early_stopping=EarlyStopping.when(Counting()))
    rule = Counting()
    trainer.train(
        TrainConfig(max_epochs=30, resume_training=True), early_stopping=EarlyStopping.when(rule)
    )
    assert trainer.training_summary.epochs_trained == 5
    assert trainer.training_summary.stop_reason == "rule"
    assert rule.asked == 5


def test_a_new_rate_is_honoured():
    """Unlike in sbi, learning_rate given on resume is the one that trains."""
    trainer = ready()
    trainer.train(TrainConfig(max_epochs=2, learning_rate=1e-3))
    trainer.train(TrainConfig(max_epochs=4, learning_rate=2e-2, resume_training=True))
    assert trainer.training_summary.learning_rate == (1e-3, 1e-3, 2e-2, 2e-2)
    assert trainer.optimizer.param_groups[0]["lr"] == 2e-2


def test_a_rate_that_is_not_named_stays():
    """A resumed training goes on with the rate that it had."""
    trainer = ready()
    trainer.train(TrainConfig(max_epochs=2, learning_rate=1e-3))
    trainer.train(TrainConfig(max_epochs=4, resume_training=True))
    assert trainer.training_summary.learning_rate == (1e-3,) * 4
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-3


def test_a_rate_named_once_in_three_legs_stays():
    """What the second leg leaves unsaid, the third may say again without changing anything."""
    trainer = ready()
    trainer.train(TrainConfig(max_epochs=1, learning_rate=1e-3))
    trainer.train(TrainConfig(max_epochs=2, resume_training=True))
    trainer.train(TrainConfig(max_epochs=3, resume_training=True, learning_rate=1e-3))
    assert trainer.training_summary.learning_rate == (1e-3,) * 3
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-3


def test_new_simulations_before_a_resume_are_refused():
    """The error says what to do; the trainer is as it was."""
    trainer = ready()
    trainer.train(TrainConfig(max_epochs=2))
    before = trainer._neural_net.state_dict()
    rows = trainer.train_indices
    append(trainer, *draw(40))

    with pytest.raises(DataError, match=r"resume_training=True.*120 rows.*160"):
        trainer.train(TrainConfig(max_epochs=4, resume_training=True))
    assert same(trainer, before)
    assert trainer.train_indices is rows
    assert trainer.training_summary.epochs_trained == 2


def test_resuming_a_training_that_never_began_begins_one_and_says_so():
    trainer = ready()
    with pytest.warns(SbiIgniteWarning, match=r"TrainConfig\(resume_training.*starts anew"):
        trainer.train(TrainConfig(max_epochs=2, resume_training=True))
    assert trainer.training_summary.epochs_trained == 2


class InterruptsAfter:
    """Press Ctrl-C when an epoch is over."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, state):
        if state.epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "sbi"])
def test_after_ctrl_c_training_goes_on(typed):
    """KeyboardInterrupt reaches the caller; resume_training=True then trains up to the budget."""
    trainer = ready()

    def go_on(**more):
        if typed:
            return trainer.train(TrainConfig(max_epochs=5, **more.pop("fields", {})), **more)
        return trainer.train(max_num_epochs=4, **more.pop("fields", {}), **more)

    with pytest.raises(KeyboardInterrupt):
        go_on(callbacks=[InterruptsAfter(3)])
    go_on(fields={"resume_training": True})

    assert trainer.epoch == trainer.training_summary.epochs_trained == 5
    assert len(trainer._summary["validation_loss"]) == 5
    assert len(trainer.training_summary.validation_loss) == 5
    trainer.build_posterior().sample((3,), x=torch.zeros(1, 2), show_progress_bars=False)


@pytest.mark.parametrize(
    ("share", "kept"), [(1e9, 3), (1e-9, 0)], ids=["every epoch kept", "only the start kept"]
)
def test_after_an_exception_the_end_is_that_of_an_undisturbed_training(share, kept, monkeypatch):
    """However much the exception has undone: it is trained again, with the same result."""
    monkeypatch.setattr(state, "SHARE", share)
    resumed_from = []
    for name in ("NPE_C", "NRE_B"):
        whole, broken = ready(name), ready(name)
        whole.train(TrainConfig(max_epochs=6, seed=3))
        with pytest.raises(KeyboardInterrupt):
            broken.train(TrainConfig(max_epochs=6, seed=3), callbacks=[InterruptsAfter(4)])
        broken.train(TrainConfig(max_epochs=6, resume_training=True))
        assert same(whole, broken)
        assert broken.training_summary.validation_loss == whole.training_summary.validation_loss
        resumed_from.append(broken.training_summary.resumed_from_epoch)
    # The fourth epoch was over, but what was called at its end did not come to its own.
    assert resumed_from == [kept, kept]


class PressesCtrlC:
    """Send the process real SIGINTs after an iteration."""

    def __init__(self, iteration, times=1):
        self.iteration, self.times, self.epochs_over = iteration, times, 0

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.iteration), self.press)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.count)

    def press(self):
        for _ in range(self.times):
            signal.raise_signal(signal.SIGINT)

    def count(self):
        self.epochs_over += 1


@pytest.mark.parametrize("share", [1e9, 1e-9], ids=["every epoch kept", "only the start kept"])
@pytest.mark.parametrize("kwargs", [None, {}], ids=["rows in memory", "torch's DataLoader"])
@pytest.mark.parametrize("iteration", [2, 15, 16, 17])
def test_ctrl_c_undoes_no_finished_epoch_and_the_training_goes_on_exactly(
    kwargs, iteration, share, monkeypatch
):
    """With 4 batches an epoch: in the first epoch, before, at and after the end of the fourth."""
    monkeypatch.setattr(state, "SHARE", share)
    fields = {"max_epochs": 6, "batch_size": 27, "dataloader_kwargs": kwargs}
    whole, broken = ready(), ready()
    whole.train(TrainConfig(seed=3, **fields))
    ctrl_c = PressesCtrlC(iteration)
    with pytest.raises(KeyboardInterrupt):
        broken.train(TrainConfig(seed=3, **fields), callbacks=[ctrl_c])
    broken.train(TrainConfig(resume_training=True, **fields))

    assert broken.training_summary.resumed_from_epoch == ctrl_c.epochs_over >= iteration // 4
    assert same(whole, broken)
    assert broken.training_summary.validation_loss == whole.training_summary.validation_loss


def test_a_time_limit_inside_an_epoch_of_a_foreign_loader_is_continued_exactly(monkeypatch):
    """The epoch is trained again from its beginning, because its loader cannot continue inside."""
    monkeypatch.setattr(state, "SHARE", 1e9)
    ticks = iter([0.0] * 12 + [100.0] * 99)
    fields = {"max_epochs": 5, "batch_size": 27, "dataloader_kwargs": {}}
    whole, broken = ready(), ready()
    whole.train(TrainConfig(seed=3, **fields))
    with monkeypatch.context() as patch:
        _, decide = TimeLimit.__init__.__defaults__
        patch.setattr(TimeLimit.__init__, "__defaults__", (lambda: next(ticks), decide))
        broken.train(TrainConfig(seed=3, max_time="00:00:10", **fields))
    assert broken.training_summary.stop_reason == "time_limit"
    broken.train(TrainConfig(resume_training=True, **fields))
    assert broken.training_summary.resumed_from_epoch == 2
    assert same(whole, broken)


def test_a_second_ctrl_c_ends_a_training_that_can_be_continued_at_once():
    trainer, ctrl_c = ready(), PressesCtrlC(iteration=5, times=2)
    with pytest.raises(KeyboardInterrupt) as pressed:
        trainer.train(TrainConfig(max_epochs=6, seed=3), callbacks=[ctrl_c])
    assert pressed.traceback[-1].name == "_note"  # where it was, not after the end of the training
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    trainer.train(TrainConfig(max_epochs=6, resume_training=True))
    assert trainer.training_summary.epochs_trained == 6


def test_ctrl_c_in_a_resumed_leg_forgets_no_epoch_and_counts_none_twice():
    trainer = ready()
    trainer.train(TrainConfig(max_epochs=2))
    with pytest.raises(KeyboardInterrupt):
        trainer.train(
            TrainConfig(max_epochs=6, resume_training=True), callbacks=[InterruptsAfter(4)]
        )
    trainer.train(TrainConfig(max_epochs=6, resume_training=True))

    summary = trainer.training_summary
    assert trainer.epoch == summary.epochs_trained == 6
    assert len(summary.validation_loss) == 6
    assert trainer._summary["validation_loss"] == list(summary.validation_loss)


@pytest.mark.parametrize("batch_size", [10, 54])
def test_other_batches_than_until_now_are_refused(batch_size):
    """Epochs would be counted wrongly: three of smaller batches are one and a half."""
    trainer = train(ready(), TrainConfig(batch_size=27, max_epochs=3))
    with pytest.raises(
        ArgumentError, match=r"earlier run had 4 batches per epoch, this one has \d+.*batch_size"
    ):
        trainer.train(TrainConfig(batch_size=batch_size, max_epochs=6, resume_training=True))
    trainer.train(TrainConfig(batch_size=27, max_epochs=6, resume_training=True))
    assert trainer.training_summary.epochs_trained == 6
    assert len(trainer.training_summary.validation_loss) == 6


def test_more_simulations_than_the_resumed_call_had_are_refused_in_sbis_form_too():
    """Where sbi divides by zero, because no batch of validation data is left."""
    trainer = ready("NPE_C", 300)
    trainer.train(max_num_epochs=1, training_batch_size=50)
    trainer.append_simulations(trainer._theta_roundwise[0][:50], trainer._x_roundwise[0][:50])
    with pytest.raises(DataError, match=r"the 300 rows of the earlier call, .* 350 now"):
        trainer.train(max_num_epochs=3, training_batch_size=50, resume_training=True)


def test_a_run_of_the_other_form_is_refused_by_what_was_called(tmp_path):
    ready().train(TrainConfig(max_epochs=1), checkpoint=str(tmp_path))
    with pytest.raises(CheckpointMismatchError, match="calls with a TrainConfig have False"):
        ready().train(max_num_epochs=1, checkpoint=str(tmp_path))
