"""`find_learning_rate` suggests a rate and leaves no trace."""

from __future__ import annotations

import math
from typing import Any

import pytest
import sbi.inference
import torch

from sbi_ignite import (
    ArgumentError,
    DataError,
    LearningRateRange,
    LossArgsNLE,
    NoSimulationsError,
    SettingsError,
    TrainConfig,
    find_learning_rate,
)
from sbi_ignite.bridge.learning_rate import has_diverged, smooth
from sbi_ignite.bridge.patch import is_patched
from sbi_ignite.random_state import random_states
from tests.small import METHODS, SBI_WARNS, empty, ready, same, train, weights

pytestmark = SBI_WARNS


def books(trainer: Any) -> dict[str, Any]:
    """Return what a trainer knows, networks as their weights and tensors by identity."""
    kept = {}
    for name, value in vars(trainer).items():
        if isinstance(value, torch.nn.Module):
            kept[name] = {n: v.tolist() for n, v in weights(value).items()}
        elif isinstance(value, dict):
            kept[name] = {n: [*v] if isinstance(v, list) else v for n, v in value.items()}
        else:
            kept[name] = [*map(id, value)] if isinstance(value, list) else id(value)
    return kept


def plain(states: Any) -> Any:
    """Return random states without tensors, so that == compares them."""
    if isinstance(states, dict):
        return {name: plain(value) for name, value in states.items()}
    if isinstance(states, tuple | list):
        return [plain(value) for value in states]
    return states.tolist() if isinstance(states, torch.Tensor) else states


@pytest.mark.parametrize("name", METHODS)
def test_it_suggests_a_rate_for_every_method_and_leaves_trainer_and_random_states_as_they_were(
    name,
):
    trainer = ready(name, 200)
    before, states = books(trainer), plain(random_states())
    found = find_learning_rate(trainer, TrainConfig(batch_size=50), num_steps=60)
    assert books(trainer) == before
    assert plain(random_states()) == states
    assert found.half_fall is not None
    assert 1e-6 < found.suggestion < 1.0
    assert len(found.rates) == len(found.losses) == len(found.smoothed) <= 60


def test_a_trained_network_keeps_its_weights_and_trains_on_as_if_nothing_had_been_tried():
    config = TrainConfig(max_epochs=2, seed=3)
    tried, untouched = (train(ready(num_rows=200), config) for _ in range(2))
    find_learning_rate(tried, num_steps=40)
    assert same(tried, untouched)
    more = TrainConfig(max_epochs=4, resume_training=True)
    assert same(train(tried, more), train(untouched, more))
    for name in ("training_loss", "validation_loss", "epochs_trained"):
        assert tried.summary[name] == untouched.summary[name]


def test_the_suggested_rate_learns_faster_than_a_hundredth_of_it():
    trainer = ready(num_rows=500)
    found = find_learning_rate(trainer)
    assert found.half_fall is not None
    losses = []
    for rate in (found.suggestion, found.suggestion / 100):
        trained = train(ready(num_rows=500), TrainConfig(learning_rate=rate, max_epochs=5, seed=1))
        losses.append(trained.training_summary.best_validation_loss)
    assert losses[0] < losses[1] - 0.1


def test_losses_below_zero_are_no_reason_to_stop_after_the_first_step():
    trainer = empty("NLE_A")
    theta = torch.rand(300, 2) * 2 - 1
    trainer.append_simulations(theta, 1e-3 * (theta + 0.1 * torch.randn_like(theta)))
    train(trainer, TrainConfig(max_epochs=20, learning_rate=5e-3))
    found = find_learning_rate(trainer, None, LossArgsNLE(), max_rate=1e-2, num_steps=50)
    assert max(found.losses[:10]) < 0
    assert len(found.rates) == 50
    assert not found.diverged


def test_the_same_call_twice_finds_the_same():
    assert find_learning_rate(ready(), num_steps=30) == find_learning_rate(ready(), num_steps=30)


def test_rates_that_destroy_the_network_end_the_test_with_what_was_seen_before():
    found = find_learning_rate(ready("NLE_A", 200), max_rate=1e6, num_steps=100)
    assert found.diverged
    assert len(found.rates) < 100
    assert all(map(math.isfinite, found.losses))
    assert found.half_fall is not None


def test_a_trainer_of_sbi_itself_will_do_and_sbi_stays_unpatched():
    trainer = ready(inference=sbi.inference)
    before = books(trainer)
    assert find_learning_rate(trainer, num_steps=30).half_fall is not None
    assert books(trainer) == before
    assert not is_patched()


def test_neither_tracker_nor_environment_makes_it_write_anything(monkeypatch, tmp_path):
    monkeypatch.setenv("SBI_IGNITE_CHECKPOINT__DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("SBI_IGNITE_LOGGING__BACKEND", "jsonl")
    trainer = ready()
    find_learning_rate(trainer, num_steps=30)
    assert trainer._tracker.calls == []
    assert list(tmp_path.iterdir()) == []


def test_the_figure_shows_losses_over_rates_and_the_suggestion():
    found = find_learning_rate(ready(), num_steps=30)
    (axes,) = found.plot().axes
    points, average, line = axes.get_lines()
    assert tuple(points.get_xdata()) == found.rates
    assert tuple(points.get_ydata()) == found.losses
    assert tuple(average.get_ydata()) == found.smoothed
    assert set(line.get_xdata()) == {found.suggestion}
    assert f"{found.suggestion:.1e}" in str(found)


def test_without_a_rate_at_which_the_loss_falls_there_is_no_suggestion():
    """Rather than a None that some other function would refuse."""
    found = LearningRateRange((1e-4, 1e-3), (1.0, 2.0), (1.0, 1.5), None, False)
    with pytest.raises(
        DataError, match=r"2 rates from 1\.0e-04 .*fell at none of them\. Try other"
    ):
        found.suggestion  # noqa: B018 # it is a property


def test_a_range_that_is_none_and_a_trainer_without_data_are_refused():
    with pytest.raises(SettingsError, match=r"min_rate=1\.0 and max_rate=0\.1"):
        find_learning_rate(ready(), min_rate=1.0, max_rate=0.1)
    with pytest.raises(SettingsError, match="num_steps >= 20, got 3"):
        find_learning_rate(ready(), num_steps=3)
    with pytest.raises(NoSimulationsError):
        find_learning_rate(empty("NPE_C"))
    with pytest.raises(ArgumentError, match="expected a trainer"):
        find_learning_rate(torch.nn.Linear(1, 1))


def test_running_averages_are_those_of_a_hand_computation():
    first, second = 0.1 * 4.0, 0.9 * (0.1 * 4.0) + 0.1 * 1.0
    assert smooth([4.0, 1.0]) == pytest.approx((first / 0.1, second / (1 - 0.81)))


def test_a_loss_diverges_when_it_rises_above_its_start_by_half_of_its_fall():
    falling = [-1.0] * 10 + [-3.0]
    assert not has_diverged([*falling, -0.1])
    assert has_diverged([*falling, 0.1])
    assert has_diverged([1.0, math.nan])


def test_with_a_recipe_it_tries_what_the_recipe_would_train_with():
    """Its batches and optimizer; its stages and its average have no part in a range test."""
    recipe = TrainConfig.fast(averaging="ema", max_epochs=1)
    found = find_learning_rate(ready("NPE_C", 300), recipe, max_rate=1e-3, num_steps=100)
    assert len(found.losses) == 100
    assert found.rates[-1] == pytest.approx(1e-3)
