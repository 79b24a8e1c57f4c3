"""Computations that take turns draw as if each were alone in the process."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from sbi_ignite.random_state import OwnRandomState, random_states, set_random_states


def draws() -> list[float]:
    """Return a draw of each generator; of numpy a single normal number, which it draws in pairs."""
    return [random.random(), random.gauss(0, 1), np.random.normal(), torch.rand(1).item()]


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.fixture(autouse=True)
def _as_before():
    states = random_states()
    yield
    set_random_states(states)


def test_taking_turns_changes_no_draw_of_any_generator():
    alone = []
    for number in range(3):
        seed(number)
        alone.append([draws() for _ in range(5)])
    streams = []
    for number in range(3):
        seed(number)
        streams.append(OwnRandomState())
    together: list[list[list[float]]] = [[], [], []]
    for turn in range(5):
        for stream, drawn in zip(streams, together, strict=True):
            if turn == 3:
                np.random.normal()  # moves the process's own state only
            with stream.in_force():
                drawn.append(draws())
    assert together == alone


def test_the_states_of_the_process_are_afterwards_as_before():
    seed(7)
    np.random.normal()  # the second of the pair is still to come
    before = random_states()
    own = OwnRandomState()
    with own.in_force():
        draws()
        with OwnRandomState().in_force():
            draws()
        np.random.seed(1)
        np.random.set_state(np.random.RandomState(5).get_state())
    after = random_states()
    assert str(before) == str(after)
    assert all(torch.equal(before[n], after[n]) for n in ("torch",))
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    assert draws() == _from(before)


def _from(states):
    set_random_states(states)
    return draws()


def test_a_stream_goes_on_from_its_saved_states():
    seed(3)
    first = OwnRandomState()
    with first.in_force():
        draws()
    saved = first.state_dict()
    with first.in_force():
        expected = [draws() for _ in range(3)]
    second = OwnRandomState()
    second.load_state_dict(saved)
    with second.in_force():
        assert [draws() for _ in range(3)] == expected
