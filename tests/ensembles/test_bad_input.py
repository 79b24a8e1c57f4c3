"""What cannot be an ensemble is refused before anything is trained, with words that help."""

from __future__ import annotations

import threading

import joblib
import pytest
import torch
from sbi.neural_nets.net_builders import build_maf

from sbi_ignite import (
    ArgumentError,
    Callback,
    DataError,
    NoSimulationsError,
    SettingsError,
    TrainConfig,
    train_ensemble,
)
from tests.ensembles.small import ensemble, maker
from tests.small import Silent, draw, empty, ready, train


@pytest.mark.parametrize("members", [0, -1])
def test_an_ensemble_has_at_least_one_member(members):
    with pytest.raises(SettingsError, match=f"members: expected at least 1, got {members}"):
        ensemble(members=members)


def test_members_is_a_whole_number():
    with pytest.raises(ArgumentError, match=r"members: expected a whole number, got 2\.5"):
        ensemble(members=2.5)


def test_n_jobs_beyond_the_machine_is_refused():
    cores = joblib.cpu_count()
    with pytest.raises(SettingsError, match=f"at most the {cores} cores of this machine, got 999"):
        ensemble(n_jobs=999)
    with pytest.raises(SettingsError, match="n_jobs: expected at least 1, or -1"):
        ensemble(n_jobs=0)


def test_threads_of_joblib_are_refused():
    with (
        joblib.parallel_config(backend="threading", n_jobs=2),
        pytest.raises(ArgumentError, match="runs processes, got ThreadingBackend"),
    ):
        ensemble()


def test_a_builder_that_returns_the_same_network_twice_is_refused():
    theta, x = draw(120)
    network = build_maf(theta, x, hidden_features=4, num_transforms=1)
    make = maker(density_estimator=lambda theta, x: network)
    with pytest.raises(ArgumentError, match="a builder that makes a new network in every call"):
        ensemble(make)


def test_a_builder_that_seeds_itself_is_refused():
    def build(theta, x):
        torch.manual_seed(0)
        return build_maf(theta, x, hidden_features=4, num_transforms=1)

    with pytest.raises(ArgumentError, match="without setting a seed"):
        ensemble(maker(density_estimator=build))


def test_the_same_trainer_for_several_members_is_refused():
    trainer = ready()
    with pytest.raises(ArgumentError, match="the same NPE_C, or the same network, for members 0"):
        ensemble([trainer, trainer], None)


def test_a_function_that_returns_the_same_trainer_twice_is_refused():
    def build(theta, x):
        return build_maf(theta, x, hidden_features=4, num_transforms=1)

    trainer = maker(density_estimator=build)()
    with pytest.raises(ArgumentError, match="expected a new trainer for every member"):
        ensemble(lambda: trainer)


def test_a_trained_trainer_is_refused_as_the_beginning_of_all():
    trainer = train(ready(), TrainConfig(max_epochs=1))
    with pytest.raises(ArgumentError, match="has not been trained yet"):
        ensemble(lambda: trainer)


def test_members_of_different_methods_are_refused():
    with pytest.raises(ArgumentError, match="one method, got NPE_C and NLE_A"):
        ensemble([ready("NPE_C"), ready("NLE_A")], None)


def test_members_with_different_simulations_are_refused():
    with pytest.raises(DataError, match=r"\(120, 2\).* and \(80, 2\)"):
        ensemble([ready(), ready(num_rows=80)], None)
    first = ready()
    second = empty("NPE_C")
    second.append_simulations(*draw(120))
    with pytest.raises(DataError, match="same simulations, got different ones from the list"):
        ensemble([first, second], None)


def test_a_function_that_simulates_anew_for_every_member_is_refused():
    def build(theta, x):
        return build_maf(theta, x, hidden_features=4, num_transforms=1)

    def make():
        return empty("NPE_C", density_estimator=build).append_simulations(*draw(120))

    with pytest.raises(DataError, match="Simulate once, outside of it"):
        ensemble(make)


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: None, "got NoneType from make_trainer"), (3, "expected a function"), ([], "members")],
)
def test_something_else_than_trainers_is_refused(make, words):
    with pytest.raises((ArgumentError, SettingsError), match=words):
        ensemble(make, None)


def test_trainers_without_simulations_are_refused():
    with pytest.raises(NoSimulationsError, match=r"call .*append_simulations"):
        ensemble(lambda: empty("NPE_C"))


def test_a_misspelt_argument_of_train_is_refused_before_training():
    with pytest.raises(ArgumentError, match="has no argument 'callback'"):
        ensemble(callback=[])


def test_what_cannot_be_sent_to_a_process_is_named():
    lock = threading.Lock()

    def build(theta, x):
        with lock:
            return build_maf(theta, x, hidden_features=4, num_transforms=1)

    with pytest.raises(ArgumentError, match="whose build_neural_net cannot be pickled"):
        ensemble(maker(density_estimator=build))

    class Locked(Callback):
        lock = threading.Lock()

        def on_epoch_end(self, state):
            """Do nothing."""

    Locked.__module__ = "__main__"
    with pytest.raises(ArgumentError, match="got callbacks="):
        ensemble(callbacks=[Locked()])


def test_a_logger_object_is_refused_because_curves_would_be_mixed():
    with pytest.raises(ArgumentError, match="An object is one destination"):
        ensemble(logging=Silent())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"weights": "best"}, "weights: expected 'equal' or 'validation'"),
        ({"weights": "validation", "resplit": True}, "compares losses of the same rows"),
        ({"threads": 0}, "threads: expected a whole number of at least 1"),
        ({"seed": -1}, "seed: expected a whole number of at least 0"),
        ({"only": 2}, "only: expected members from 0 to 1"),
        ({"only": []}, "only: expected members"),
        ({"seed": None, "only": 1}, "expected a seed beside it"),
        ({"config": TrainConfig(seed=1)}, "got seed=5 from train_ensemble"),
    ],
)
def test_values_out_of_range_and_contradictions_are_refused(asked, words):
    with pytest.raises((ArgumentError, SettingsError), match=words):
        ensemble(**asked)


def test_one_member_has_no_spread():
    found = train_ensemble(maker(), 1, TrainConfig(max_epochs=1))
    with pytest.raises(ArgumentError, match="expected at least 2 trained members"):
        found.spread(torch.zeros(1, 2))
