"""Random states are saved and continued, those of graphics cards included."""

from __future__ import annotations

import random

import numpy as np
import torch

from sbi_ignite.random_state import random_states, set_random_states
from sbi_ignite.runs.packing import pack, unpack


def draws():
    return [random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()]


def test_all_generators_go_on_where_they_were():
    """Also after the way through a file, and in the middle of numpy's pairs of normal numbers."""
    np.random.randn()
    states = unpack(pack(random_states()))
    first = draws()
    draws()
    set_random_states(states)
    assert draws() == first


def test_the_states_of_every_graphics_card_are_saved_and_set(monkeypatch):
    """With stand-ins for torch's functions, which a machine without such a card does not have."""
    cards = [torch.arange(16, dtype=torch.uint8), torch.arange(16, 32, dtype=torch.uint8)]
    put = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: cards)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put.extend)
    states = unpack(pack(random_states()))
    set_random_states(states)
    assert len(put) == 2
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(put, cards, strict=True))


def test_a_run_from_a_machine_with_a_card_goes_on_without_one(monkeypatch):
    """The states of cards that are not there are left out."""
    states = {**random_states(), "cuda": [torch.zeros(16, dtype=torch.uint8)]}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    first = draws()
    set_random_states(states)
    assert draws() == first
