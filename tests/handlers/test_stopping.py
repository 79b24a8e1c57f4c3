"""A run that is started again with other stopping rules: these decide whether it is complete."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from sbi_ignite import EarlyStopping, SbiIgniteWarning, Stage, TrainConfig, run_training

LIMIT = 3

LOSSES = (1.0, 0.9, 0.85, 0.82, 0.81, 0.805, 0.804, 0.803, 0.802)
"""Validation losses of the epochs: each is better than the one before, but less and less so."""


class Descent:
    """A loss that follows `LOSSES`, whatever the weights."""

    def __init__(self):
        self.model = nn.Linear(1, 1)
        self.epoch = 0

    def __call__(self, model, batch):
        return (0.0 * model(batch[0])).square().mean(dim=1)

    def validate(self, model, batch):
        return torch.full((len(batch[0]),), LOSSES[min(int(self.epoch), len(LOSSES) - 1)])

    def on_train_start(self, state):
        self.epoch = state.epoch

    def on_epoch_end(self, state):
        self.epoch = state.epoch


def go(directory, rules, epochs=9, **fields):
    """Train and return the number of epochs of the run, why it ended, and where this call began."""
    descent = Descent()
    batches = [(torch.ones(2, 1),)] * 2
    _, summary = run_training(
        TrainConfig(max_epochs=epochs, **fields),
        descent.model,
        descent,
        batches,
        batches,
        callbacks=descent,
        early_stopping=rules,
        checkpoint=directory,
    )
    return summary.epochs_trained, summary.stop_reason, summary.resumed_from_epoch


@pytest.fixture(autouse=True)
def _nothing_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def at(epoch):
    return EarlyStopping.when(lambda state: state.epoch >= epoch)


def reaches(state, epoch):
    return state.epoch >= epoch


def reads_a_global(state):
    return state.epoch >= LIMIT


def test_the_same_rule_of_the_users_returns_the_run_as_it_is(tmp_path):
    """Even one that counts how often it was asked, and would not say so again."""
    asked = []

    def third(state):
        asked.append(state.epoch)
        return len(asked) == 3

    for _ in range(3):
        found = go(tmp_path, EarlyStopping.when(third))
    assert asked == [1, 2, 3]
    assert found == (3, "rule", 3)


def test_another_rule_of_the_users_decides_anew(tmp_path):
    """It is asked about the run as it stands, which goes on if it says no."""
    assert go(tmp_path, at(3)) == (3, "rule", 0)
    assert go(tmp_path, at(5)) == (5, "rule", 3)
    assert go(tmp_path, at(2)) == (5, "rule", 5)
    assert go(tmp_path, EarlyStopping.when(partial(reaches, epoch=6))) == (6, "rule", 5)
    assert go(tmp_path, EarlyStopping.when(partial(reaches, epoch=7))) == (7, "rule", 6)


@pytest.mark.parametrize("rule", [EarlyStopping.never(), EarlyStopping.validation_loss()])
def test_a_run_that_a_users_rule_has_ended_goes_on_without_it(rule, tmp_path):
    assert go(tmp_path, at(3)) == (3, "rule", 0)
    assert go(tmp_path, rule) == (9, "max_epochs", 3)


def test_of_several_rules_the_one_that_ended_the_run_counts(tmp_path):
    assert go(tmp_path, [at(8), at(3)]) == (3, "rule", 0)
    assert go(tmp_path, [at(3), at(8)]) == (3, "rule", 3)
    assert go(tmp_path, [at(8)]) == (8, "rule", 3)


def test_values_that_a_users_rule_reads_are_named_when_the_run_is_returned(tmp_path, monkeypatch):
    """They may be meant to change, so they do not make it another rule."""
    rule = EarlyStopping.when(reads_a_global)
    go(tmp_path, rule)
    monkeypatch.setitem(globals(), "LIMIT", 6)
    with pytest.warns(SbiIgniteWarning, match=r"LIMIT=3 \(now 6\)\. It is complete under the old"):
        assert go(tmp_path, rule) == (3, "rule", 3)


def test_another_min_delta_judges_the_epochs_of_the_run_anew(tmp_path):
    strict, lenient = (EarlyStopping.validation_loss(2, delta) for delta in (0.099, 0.0))
    assert go(tmp_path, strict) == (4, "patience", 0)
    assert go(tmp_path, strict) == (4, "patience", 4)
    assert go(tmp_path, lenient, epochs=6) == (6, "max_epochs", 4)
    assert go(tmp_path, strict) == (6, "patience", 6)


def test_a_rule_that_is_added_knows_the_epochs_before_it(tmp_path):
    flat = EarlyStopping.validation_loss(3, min_delta=1.0)
    assert go(tmp_path, EarlyStopping.never(), epochs=4) == (4, "max_epochs", 0)
    assert go(tmp_path, [EarlyStopping.never(), flat]) == (4, "patience", 4)


def test_an_added_rule_does_not_set_the_stages_back(tmp_path):
    stages = (Stage(max_epochs=3), Stage(lr_factor=0.1, max_epochs=4))
    assert go(tmp_path, at(4), epochs=20, stages=stages) == (4, "rule", 0)
    rules = [EarlyStopping.never(), at(6)]
    assert go(tmp_path, rules, epochs=20, stages=stages) == (6, "rule", 4)
    assert go(tmp_path, EarlyStopping.never(), epochs=20, stages=stages) == (7, "max_epochs", 6)


def test_losses_that_are_not_watched_do_not_count():
    """Without validation data, the training loss is what a new rule looks back on."""
    from sbi_ignite.callback import TrainingState
    from sbi_ignite.handlers.rules.validation_loss import Patience
    from sbi_ignite.handlers.stopping import StopOnRules

    state = TrainingState(model=None, validated=False)
    for loss in (3.0, 2.0, 2.0):
        state.history.append(training_loss=loss, validation_loss=math.nan)
    stopping = StopOnRules([Patience(2)], state)
    stopping.load_state_dict({"rules": []})
    stopping.ask_before_training()
    assert stopping.patience_left == 1
