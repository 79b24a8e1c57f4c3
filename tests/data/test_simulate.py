"""Simulating into a file: every batch has noise of its own, and a killed call continues."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch

from sbi_ignite import SimulationWriter, simulate_to_file
from sbi_ignite.exceptions import ArgumentError, DataError
from tests import forking
from tests.data.simulators import OwnGenerator, noisy
from tests.small import box


def test_batches_depend_on_the_seed_and_their_place_alone(tmp_path):
    """However many processes simulate, and wherever the call was interrupted."""
    kwargs = {"batch_rows": 20, "seed": 3, "show_progress": False}
    one = simulate_to_file(noisy, box(), tmp_path / "a.h5", 130, **kwargs)
    two = simulate_to_file(noisy, box(), tmp_path / "b.h5", 130, num_workers=2, **kwargs)
    assert torch.equal(one.x[:], two.x[:])
    for num_simulations in (40, 80, 130):
        parts = simulate_to_file(noisy, box(), tmp_path / "c.h5", num_simulations, **kwargs)
        assert len(parts) == num_simulations
        parts.close()
    assert torch.equal(one.x[:], parts.x[:])
    for num_simulations in (50, 70, 130):  # which cuts batches short
        parts = simulate_to_file(noisy, box(), tmp_path / "e.h5", num_simulations, **kwargs)
        parts.close()
    for found in (one, parts):
        assert len((found.x[:] - found.theta[:])[:, 0].unique()) == 130
        assert len(found.theta[:].unique()) == 260
    del kwargs["seed"]
    other = simulate_to_file(noisy, box(), tmp_path / "d.h5", 20, **kwargs)
    assert not torch.equal(other.theta[:], one.theta[:20])


def test_a_file_with_rows_tells_how_they_were_drawn(tmp_path, monkeypatch):
    """Also one whose first rows were the last thing that its process wrote."""
    kwargs = {"batch_rows": 20, "seed": 3, "show_progress": False}
    whole = simulate_to_file(noisy, box(), tmp_path / "a.h5", 60, **kwargs)
    write = SimulationWriter._write

    def last_words(self, count):
        write(self, count)
        raise KeyboardInterrupt

    monkeypatch.setattr(SimulationWriter, "_write", last_words)
    with pytest.raises(KeyboardInterrupt):
        simulate_to_file(noisy, box(), tmp_path / "b.h5", 60, **kwargs)
    monkeypatch.setattr(SimulationWriter, "_write", write)
    found = simulate_to_file(noisy, box(), tmp_path / "b.h5", 60, **kwargs)
    assert torch.equal(found.x[:], whole.x[:])


def test_progress_begins_where_the_file_ends(tmp_path, capsys):
    for num_simulations in (40, 130):
        simulate_to_file(noisy, box(), tmp_path / "a.h5", num_simulations, batch_rows=20).close()
    first, second = capsys.readouterr().err.split("40.0/40.0", 1)
    assert "0.00/40.0" in first
    assert "40.0/130" in second
    assert "130/130" in second


def test_the_random_states_of_the_caller_stay_as_they_are(tmp_path):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    simulate_to_file(noisy, box(), tmp_path / "a.h5", 50, show_progress=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_that_repeats_in_every_worker_is_refused(tmp_path):
    kwargs = {"show_progress": False}
    with pytest.raises(DataError, match="random generator of its own"):
        simulate_to_file(OwnGenerator(), box(), tmp_path / "a.h5", 50, **kwargs)
    assert not (tmp_path / "a.h5").exists()

    def fresh(theta):  # another stream in every call is noise like any other
        return theta.numpy() + np.random.default_rng().normal(size=theta.shape)

    found = simulate_to_file(fresh, box(), tmp_path / "b.h5", 50, **kwargs)
    assert len((found.x[:] - found.theta[:])[:, 0].unique()) == 50


def test_arguments_that_do_not_fit_are_refused(tmp_path):
    path, kwargs = tmp_path / "a.h5", {"show_progress": False, "batch_rows": 10}
    simulate_to_file(noisy, box(), path, 20, seed=1, **kwargs).close()
    with pytest.raises(DataError, match="begun with seed 1, got seed 2"):
        simulate_to_file(noisy, box(), path, 30, seed=2, **kwargs)
    with pytest.raises(DataError, match="begun with batch_rows=10, got 11"):
        simulate_to_file(noisy, box(), path, 30, **{**kwargs, "batch_rows": 11})
    assert len(simulate_to_file(noisy, box(), path, 15, **kwargs)) == 15
    with pytest.raises(ArgumentError, match="num_simulations"):
        simulate_to_file(noisy, box(), path, 0)
    with pytest.raises(ArgumentError, match="num_workers"):
        simulate_to_file(noisy, box(), path, 5, num_workers=0)
    with pytest.raises(DataError, match="one row for each of"):
        simulate_to_file(lambda theta: theta[0], box(3), tmp_path / "b.h5", 5, show_progress=False)


PROGRAM = """
import sys, time
from sbi_ignite import SimulationWriter, simulate_to_file
from tests.data.simulators import noisy
from tests import forking
from tests.data.simulators import OwnGenerator, noisy
from tests.small import box

def slow(theta):
    time.sleep(0.01)
    print("batch", flush=True)
    return noisy(theta)

simulate_to_file(slow, box(), sys.argv[1], 400, batch_rows=10, seed=3, show_progress=False)
"""


def test_a_killed_call_continues_as_if_nothing_had_happened(tmp_path):
    process = forking.start("-c", PROGRAM, str(tmp_path / "a.h5"))
    for _ in range(12):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kwargs = {"batch_rows": 10, "seed": 3, "show_progress": False}
    found = simulate_to_file(noisy, box(), tmp_path / "a.h5", 400, **kwargs)
    whole = simulate_to_file(noisy, box(), tmp_path / "b.h5", 400, **kwargs)
    assert torch.equal(found.x[:], whole.x[:])
    assert torch.equal(found.theta[:], whole.theta[:])
