"""Nested states survive packing exactly."""

from __future__ import annotations

import math
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbi_ignite.exceptions import CheckpointError
from sbi_ignite.random_state import random_states
from sbi_ignite.runs.packing import Packed, pack, unpack
from tests.runs.conftest import same

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
tensors = st.builds(
    lambda shape, dtype: (torch.randn(shape) * 10).to(dtype),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]),
)
nested = st.recursive(
    scalars | tensors | st.lists(st.floats(allow_nan=False), min_size=16),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=3), nested))
def test_what_is_unpacked_is_what_was_packed(states):
    """Numbers, texts, tensors and containers come back with values, types and shapes."""
    assert same(unpack(pack(states)), states)


def test_long_lists_keep_nan_and_infinity():
    """A history with NaN and infinities comes back with them."""
    history = [math.nan, math.inf, -math.inf, -0.0, *map(float, range(20))]
    back = unpack(pack({"history": history}))["history"]
    assert math.isnan(back[0])
    assert back[1:] == history[1:]
    assert math.copysign(1, back[3]) == -1


def test_the_states_of_an_optimizer_and_of_all_generators_come_back_exactly():
    """Adam's integer keys and python's tuple of numbers are restored as they were."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    states = {"optimizer": optimizer.state_dict(), "random": random_states()}
    back = unpack(pack(states))
    assert same(back, states)
    optimizer.load_state_dict(back["optimizer"])
    random.setstate(back["random"]["python"])


def test_ordered_dicts_and_numpy_come_back_as_plain_values():
    """A state dict comes back as a dict, a numpy scalar as a number, an array as an array."""
    back = unpack(pack({"d": OrderedDict(a=np.float32(0.5)), "n": np.arange(3)}))
    assert back["d"] == {"a": 0.5}
    assert type(back["d"]["a"]) is float
    np.testing.assert_array_equal(back["n"], np.arange(3))


@pytest.mark.parametrize("number", [1, 2])
def test_the_copy_does_not_change_with_the_original(number):
    """A training that goes on does not reach into what was packed."""
    weights = {str(i): torch.zeros(3, 2) for i in range(number)}
    packed = pack(weights)
    for weight in weights.values():
        weight += 1
    assert all(torch.equal(w, torch.zeros(3, 2)) for w in unpack(packed).values())


def test_tensors_that_are_parts_of_others_are_packed_by_their_values():
    """Transposed, strided and overlapping tensors come back with their values."""
    whole = torch.arange(24.0).reshape(4, 6)
    states = {"t": whole.T, "s": whole[:, ::2], "e": whole[:1].expand(3, 6), "n": whole[0, 0]}
    assert same(unpack(pack(states)), states)


@pytest.mark.parametrize("culprit", [object(), {1, 2}, torch.eye(2).to_sparse(), 1j])
def test_what_cannot_be_saved_is_named_with_its_place(culprit):
    """The error says where in the states the object is and what it is."""
    with pytest.raises(CheckpointError, match=rf"rule-0\.memory\.1: .*{type(culprit).__name__}"):
        pack({"rule-0": {"memory": [1, culprit]}})


def test_what_cannot_be_saved_is_named_among_tensors():
    """Also inside a state dict."""
    with pytest.raises(CheckpointError, match=r"model\.sparse: .*Tensor"):
        pack({"model": {"dense": torch.eye(2), "sparse": torch.eye(2).to_sparse()}})


@pytest.mark.parametrize(
    "states",
    [
        {0: {"a": torch.ones(2), "b": torch.zeros(3)}, 1: {"a": torch.ones(1), "b": torch.ones(3)}},
        {0: {"a": torch.ones(2), "b": torch.zeros(3)}, 1: {"b": torch.ones(1), "a": torch.ones(3)}},
        {0: {"a": torch.ones(2)}, 1: {"a": torch.ones(2), "b": torch.ones(1)}},
        {0: {"a": torch.ones(2)}, 1: {"a": 3.0}},
        {0: {}, 1: {}},
        {0: {1: torch.ones(2)}, 1: {1: torch.ones(2)}},
    ],
    ids=["a table", "another order", "more columns", "a number", "no columns", "no names"],
)
def test_states_by_parameter_come_back_with_their_keys_and_names(states):
    """Whether or not all parameters have the same kinds of state, and in whatever order."""
    back = unpack(pack({"state": states}))["state"]
    assert same(back, states)
    assert [list(row) for row in back.values()] == [list(row) for row in states.values()]


def test_other_objects_stay_in_memory_and_are_copies():
    """What no file can hold is handed back as it was, and the original may change."""
    culprit = {1, 2}
    packed = Packed.of({"rule": [torch.eye(2), culprit]})
    culprit.add(3)
    back = packed.unpacked()["rule"][1]
    back.add(4)
    assert packed.unpacked()["rule"][1] == {1, 2}
