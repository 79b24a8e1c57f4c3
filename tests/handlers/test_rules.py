"""Stopping rules, best weights and clipping, fed with numbers and without an engine."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sbi_ignite.callback import TrainingState
from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.handlers.best_weights import BestWeights
from sbi_ignite.handlers.callbacks import UserCallbacks
from sbi_ignite.handlers.rules.lr_threshold import LearningRateThreshold
from sbi_ignite.handlers.rules.two_standard_deviations import TwoStandardDeviations
from sbi_ignite.handlers.rules.validation_loss import Patience
from sbi_ignite.handlers.rules.when import When

losses = st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=60)


def stops_after(rule, values):
    """Return after how many values a rule stops; None if never."""
    return next((i for i, value in enumerate(values, 1) if rule.observe(value)), None)


@given(losses, st.integers(1, 5), st.floats(0, 10))
def test_patience_counts_epochs_since_the_last_improvement(values, patience, min_delta):
    """Checked against the definition, written as a search over all epochs."""

    def expected():
        reference, last = math.inf, 0
        for epoch, value in enumerate(values, 1):
            if value < reference - min_delta:
                reference, last = value, epoch
            if epoch - last >= patience:
                return epoch
        return None

    assert stops_after(Patience(patience, min_delta), values) == expected()


def test_a_slow_steady_descent_is_not_a_plateau():
    """Each step is below min_delta, and still they add up."""
    descent = [10 - 0.04 * i for i in range(200)]
    assert stops_after(Patience(patience=4, min_delta=0.1), descent) is None
    assert stops_after(Patience(patience=2, min_delta=0.1), descent) == 3


@pytest.mark.parametrize("offset", [0.0, -100.0])
def test_min_delta_has_the_units_of_the_loss_whatever_its_sign(offset):
    assert stops_after(Patience(2, 0.5), [offset + v for v in (3, 2, 1.6, 1.6)]) == 4
    assert stops_after(Patience(2, 0.5), [offset + v for v in (3, 2, 1.4, 1.4)]) is None


def test_two_standard_deviations_is_sbis_rule():
    """Compared with sbi's own _converged over many random sequences of losses."""
    from tests.small import empty

    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(60, generator=generator)
        values = (1 + 2 / (1 + torch.arange(60)) + 0.05 * seed * noise).tolist()
        trainer = empty("FMPE")
        trainer._neural_net = nn.Linear(1, 1)
        rule = TwoStandardDeviations(patience=3, smoothing=0.3)
        smoothed: list[float] = []
        sbis, trainer._val_loss = [], math.inf
        for epoch in range(60):
            if epoch:
                sbis.append(trainer._converged(epoch, 3))
            else:
                trainer._converged(0, 3)
            if sbis and sbis[-1]:
                break
            previous = smoothed[-1] if smoothed else values[epoch]
            smoothed.append(0.7 * previous + 0.3 * values[epoch])
            trainer._val_loss = values[epoch]
            trainer._summary["validation_loss"] = list(smoothed)
        ours = [rule.observe(value) for value in values[: len(sbis)]]
        assert ours == [bool(stop) for stop in sbis], f"seed {seed}"


@pytest.mark.parametrize(("rate", "stops"), [(1e-6, False), (9e-7, True), (math.nan, False)])
def test_the_rate_threshold_is_exclusive(rate, stops):
    assert LearningRateThreshold(1e-6).observe(rate) is stops


def test_when_asks_the_callable_with_the_state():
    state = TrainingState(model=None, epoch=4)
    assert When(lambda s: s is state).should_stop(state) is True
    assert When(lambda s: 0).should_stop(state) is False


def end_epoch(state: TrainingState, loss: float) -> None:
    state.epoch += 1
    state.validation_loss = loss
    state.history.append(validation_loss=loss)


def test_best_weights_are_a_copy_that_later_steps_do_not_change():
    model = nn.Linear(1, 1)
    state = TrainingState(model=model)
    best = BestWeights(state)
    for loss in (2.0, -1.0, math.nan, 5.0):
        end_epoch(state, loss)
        nn.init.constant_(model.weight, state.epoch)
        best.update()
    best.restore(model)
    assert (best.epoch, best.loss, model.weight.item()) == (2, -1.0, 2.0)


def test_without_any_number_the_model_stays_as_it_is():
    model = nn.Linear(1, 1)
    state = TrainingState(model=model)
    best = BestWeights(state)
    before = model.weight.item()
    end_epoch(state, math.inf)
    best.update()
    best.restore(model)
    assert model.weight.item() == before
    assert best.epoch == 0


def test_something_that_is_no_callback_is_refused():
    with pytest.raises(ArgumentError, match=r"on_epoch_end.*attach"):
        UserCallbacks([3], TrainingState(model=None))


def test_the_first_reason_to_stop_is_kept():
    state = TrainingState(model=None)
    state.stop("patience")
    state.stop("something else")
    assert (state.stop_reason, state.stop_message) == ("patience", "")
