"""Trainings in threads: one clear warning where they meet, and no wrong ones."""

from __future__ import annotations

import os
import threading
import time
import warnings

import pytest
import torch

from sbi_ignite import SbiIgniteWarning, TrainConfig, run_training
from sbi_ignite.concurrency import others_train
from tests.small import ready

CONFIG = TrainConfig(max_epochs=6, batch_size=20, compile="trace")


def in_threads(*targets) -> list[str]:
    """Run functions at once, each in a thread of its own; return what was warned of."""
    errors: list[BaseException] = []

    def guarded(target):
        try:
            target()
        except BaseException as error:
            errors.append(error)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    return [str(w.message) for w in said if issubclass(w.category, SbiIgniteWarning)]


class MeetsOthers:
    """A callback that waits, at the end of the first epoch, until all others stand there."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self._barrier = barrier

    def on_epoch_end(self, state):
        if state.epoch == 1:
            self._barrier.wait(60)


def test_trainings_that_meet_in_threads_warn_once_and_name_processes():
    """Traced ones included, which do not take others' random numbers for differences of theirs."""
    trainers, barrier = [ready() for _ in range(4)], threading.Barrier(4)
    said = in_threads(
        *(lambda t=t: t.train(CONFIG, callbacks=[MeetsOthers(barrier)]) for t in trainers)
    )
    assert len(said) == 1, said
    assert "share torch's random numbers" in said[0]
    assert "joblib" in said[0]
    assert [t.training_summary.epochs_trained for t in trainers] == [6] * 4


def test_the_next_trainings_that_meet_are_warned_of_again():
    for _ in range(2):
        barrier = threading.Barrier(2)
        trainers = [ready() for _ in range(2)]
        said = in_threads(
            *(
                lambda t=t, b=barrier: t.train(max_num_epochs=1, callbacks=[MeetsOthers(b)])
                for t in trainers
            )
        )
        assert len(said) == 1


def test_one_training_after_another_or_inside_another_is_no_cause_for_a_warning():
    class TrainsToo:
        def on_epoch_end(self, state):
            ready().train(TrainConfig(max_epochs=1))

    assert in_threads(lambda: ready().train(CONFIG)) == []
    ready().train(TrainConfig(max_epochs=1), callbacks=[TrainsToo()])
    assert not others_train()


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), lambda: __import__("random").random()])
def test_random_numbers_that_another_thread_draws_are_not_taken_for_a_difference(draw):
    """As where the next members of an ensemble simulate, while the first is traced."""
    done = threading.Event()

    def simulate():
        for _ in range(50):
            draw()
            time.sleep(0.002)
        done.wait(60)

    def training():
        try:
            ready(num_rows=400).train(TrainConfig(max_epochs=20, batch_size=20, compile="trace"))
        finally:
            done.set()

    assert in_threads(simulate, training) == []


def test_a_loss_that_truly_differs_is_still_told_of_in_a_thread():
    """After some more tries, and with both of the causes that there can be."""

    class Differs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x):
            return self.layer(x) * time.perf_counter()

    batches = [torch.randn(8, 2) for _ in range(10)]
    config = TrainConfig(max_epochs=30, compile="trace")

    def training():
        run_training(config, Differs(), lambda m, x: m(x).square().mean(dim=1), batches)

    (said,) = in_threads(training)
    assert said.startswith("compile='trace'")
    assert "other threads" in said


def test_a_training_with_a_run_directory_says_that_signals_do_not_reach_its_thread(tmp_path):
    (said,) = in_threads(
        lambda: ready().train(TrainConfig(max_epochs=1), checkpoint=tmp_path / "run")
    )
    assert said.startswith(str(tmp_path / "run"))
    assert "SIGTERM" in said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_fork_in_the_middle_of_a_training_begins_to_count_anew():
    """The thread that trains is not there in the child."""
    began, end, codes = threading.Event(), threading.Event(), []

    class Waits:
        def on_epoch_end(self, state):
            began.set()
            end.wait(60)

    def fork():
        began.wait(60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            child = os.fork()
        if not child:
            os._exit(3 if others_train() else 0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        codes.append(others_train())
        end.set()

    in_threads(lambda: ready().train(TrainConfig(max_epochs=1), callbacks=[Waits()]), fork)
    assert codes == [0, True]
