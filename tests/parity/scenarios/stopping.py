"""Scenarios of when training stops, and how it goes on."""

from __future__ import annotations

import copy
import os
import pickle
import signal
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from sbi.neural_nets import posterior_score_nn
from torch import Tensor
from torch.utils import data

from tests.parity.observe import CALLS, Recorder, random_state, snapshot

from .problem import (
    SHORT,
    draw,
    make,
    require,
    scalars,
    small,
    small_flow_matching,
    small_marginal,
    small_npe,
    small_ratio,
    two_rounds,
)
from .registry import Notes, scenario, variants


@scenario(patched=True)
def stops_by_patience(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference, 120)
    trainer.train(training_batch_size=30, learning_rate=0.02, stop_after_epochs=2)
    require(trainer._epochs_since_last_improvement == 2)
    return trainer


@scenario()
def stops_by_patience_at_the_last_epoch_of_the_budget(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference, 120)
    losses = iter([3.0, 2.0, 2.5, 2.5, 2.5])
    trainer._validate_epoch = lambda *_: next(losses)
    trainer.train(training_batch_size=30, stop_after_epochs=3, max_num_epochs=4)
    return trainer


@scenario()
def fmpe_stops_by_its_rule(inference: ModuleType, notes: Notes):
    trainer = small_flow_matching(inference)
    losses = iter([1.0, 0.9, 0.5, 0.6, 2.0, 9.0, 30.0, 90.0, 200.0, 500.0, 900.0, 2000.0])
    trainer._validate_epoch = lambda *_: next(losses)
    trainer.train(training_batch_size=50, stop_after_epochs=2, ema_loss_decay=0.9)
    require(2 < trainer.epoch < 12)
    return trainer


@scenario()
def npse_stops_by_its_rule(inference: ModuleType, notes: Notes):
    trainer = make(inference.NPSE, vf_estimator=posterior_score_nn("mlp", hidden_features=16))
    trainer.append_simulations(*draw(100))
    trainer.train(
        training_batch_size=30, learning_rate=0.02, stop_after_epochs=2, max_num_epochs=150
    )
    return trainer


@scenario(patched=True)
def resume(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    notes["after the first leg"] = snapshot(trainer)
    trainer.train(training_batch_size=50, max_num_epochs=6, resume_training=True)
    return trainer


@scenario()
def resume_three_legs_with_other_settings(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    trainer.train(max_num_epochs=5, training_batch_size=30, learning_rate=0.1, resume_training=True)
    trainer.train(max_num_epochs=7, training_batch_size=70, clip_max_norm=0.1, resume_training=True)
    return trainer


@scenario()
def resume_after_convergence(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference, 120)
    settings = {"training_batch_size": 30, "learning_rate": 0.02, "stop_after_epochs": 2}
    trainer.train(**settings)
    epochs = trainer.epoch
    trainer.train(**settings, resume_training=True)
    require(trainer.epoch == epochs)
    trainer.train(**{**settings, "stop_after_epochs": 6}, resume_training=True)
    return trainer


@scenario()
def resume_with_the_budget_already_spent(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    trainer.train(**SHORT, resume_training=True)
    return trainer


@scenario(patched=True)
def resume_after_pickling(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    loaded = pickle.loads(pickle.dumps(trainer))
    loaded._tracker = Recorder()
    loaded.train(training_batch_size=50, max_num_epochs=6, resume_training=True)
    notes["next number"] = torch.rand(1)
    trainer.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    return trainer, loaded


@scenario()
def resume_after_pickling_with_the_tracker_it_comes_with(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    loaded = pickle.loads(pickle.dumps(trainer))
    loaded.train(training_batch_size=50, max_num_epochs=6, resume_training=True)
    notes[CALLS] = scalars()
    return loaded


@scenario()
def resume_a_deep_copy(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    twin = copy.deepcopy(trainer)
    twin.train(training_batch_size=50, max_num_epochs=6, resume_training=True)
    return trainer, twin


@variants(method=("NRE_B", "NRE_C"))
def resume_nre(inference: ModuleType, notes: Notes, method: str):
    trainer = small_ratio(inference, method)
    trainer.train(**SHORT)
    trainer.train(training_batch_size=50, max_num_epochs=6, resume_training=True)
    return trainer


@scenario()
def resume_fmpe(inference: ModuleType, notes: Notes):
    trainer = small_flow_matching(inference)
    trainer.train(**SHORT)
    trainer.train(training_batch_size=50, max_num_epochs=6, resume_training=True)
    return trainer


@scenario()
def resume_in_the_second_round(inference: ModuleType, notes: Notes):
    trainer = two_rounds(make(inference.NPE_C, density_estimator=small()))
    trainer.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    return trainer


@scenario()
def resume_with_an_optimizer_of_ones_own(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    trainer.optimizer = torch.optim.SGD(
        trainer._neural_net.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.01
    )
    trainer.train(training_batch_size=50, max_num_epochs=6, resume_training=True)
    return trainer


@scenario()
def resume_after_setting_the_counters(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    trainer.train_indices, trainer.val_indices = torch.arange(150), torch.arange(150, 200)
    trainer.epoch = 0
    trainer._epochs_since_last_improvement = 0
    trainer._best_val_loss = trainer._val_loss = float("inf")
    for group in trainer.optimizer.param_groups:
        group["lr"] = 2e-3
    trainer.train(**SHORT, resume_training=True)
    return trainer


@scenario()
def resume_with_another_validation_fraction(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, validation_fraction=0.3)
    trainer.train(
        training_batch_size=50, max_num_epochs=6, validation_fraction=0.1, resume_training=True
    )
    return trainer


def interrupting(at: int, raised: Callable[[], BaseException]) -> Callable[[Any], Any]:
    """Return a collate_fn that raises at its n-th call, once."""
    calls = 0

    def collate(rows: list[Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise raised()
        return data.default_collate(rows)

    return collate


def train_until_raised(trainer: Any, notes: Notes, expected: type, **settings: Any) -> None:
    """Train, expect an exception, and note what it left behind."""
    try:
        trainer.train(**settings)
    except expected as error:
        notes["raised"] = f"{type(error).__name__}: {error}"
    notes["at the interruption"] = snapshot(trainer)
    notes["random state at the interruption"] = random_state()
    require("raised" in notes)


@scenario(patched=True)
def interrupted_then_resumed(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    # Three training batches and one of validation make an epoch: this is in the third.
    loader = {"collate_fn": interrupting(10, KeyboardInterrupt)}
    train_until_raised(trainer, notes, KeyboardInterrupt, **SHORT, dataloader_kwargs=loader)
    require(trainer.epoch == 2)
    trainer.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    return trainer


@scenario()
def interrupted_in_validation_then_resumed(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    loader = {"collate_fn": interrupting(8, KeyboardInterrupt)}
    train_until_raised(trainer, notes, KeyboardInterrupt, **SHORT, dataloader_kwargs=loader)
    require(not trainer._neural_net.training)
    trainer.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    return trainer


@scenario()
def interrupted_in_the_loss_then_resumed(inference: ModuleType, notes: Notes):
    calls = 0

    def calibrate(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return torch.ones(len(x))

    trainer = small_npe(inference)
    settings = {**SHORT, "calibration_kernel": calibrate}
    train_until_raised(trainer, notes, KeyboardInterrupt, **settings)
    trainer.train(**settings, resume_training=True)
    return trainer


@scenario()
def interrupted_fmpe_then_resumed(inference: ModuleType, notes: Notes):
    trainer = small_flow_matching(inference)
    loader = {"collate_fn": interrupting(6, KeyboardInterrupt)}
    train_until_raised(trainer, notes, KeyboardInterrupt, **SHORT, dataloader_kwargs=loader)
    trainer.train(training_batch_size=50, max_num_epochs=4, resume_training=True)
    return trainer


@scenario()
def interrupted_marginal_then_trained_again(inference: ModuleType, notes: Notes):
    trainer = small_marginal(inference)
    loader = {"collate_fn": interrupting(6, KeyboardInterrupt)}
    train_until_raised(trainer, notes, KeyboardInterrupt, **SHORT, dataloader_kwargs=loader)
    trainer.train(**SHORT)
    return trainer


@scenario()
def interrupted_by_ctrl_c_then_resumed(inference: ModuleType, notes: Notes):
    signalled = iter([False] * 5 + [True])

    def collate(rows: list[Any]) -> Any:
        if next(signalled, False):
            os.kill(os.getpid(), signal.SIGINT)
        return data.default_collate(rows)

    trainer = small_npe(inference)
    loader = {"collate_fn": collate}
    train_until_raised(trainer, notes, KeyboardInterrupt, **SHORT, dataloader_kwargs=loader)
    trainer.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    return trainer


@scenario()
def failed_in_the_users_code_then_resumed(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    loader = {"collate_fn": interrupting(6, lambda: LookupError("from the user"))}
    train_until_raised(trainer, notes, LookupError, **SHORT, dataloader_kwargs=loader)
    trainer.train(training_batch_size=50, max_num_epochs=4, resume_training=True)
    return trainer


@scenario()
def two_trainers_in_turn(inference: ModuleType, notes: Notes):
    one, other = small_npe(inference), small_ratio(inference, "NRE_B")
    one.train(**SHORT)
    other.train(**SHORT)
    one.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    other.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    return one, other
