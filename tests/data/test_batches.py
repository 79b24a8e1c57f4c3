"""Batches: every row once, even sizes, and a position to continue from."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from sbi_ignite.data import in_memory
from sbi_ignite.data.in_memory import (
    BatchIndices,
    OrderedBatches,
    SbiOrderBatches,
    ShuffledBatches,
    even_bounds,
    looked_up,
    permutation,
)
from sbi_ignite.data.split import check_split, split_rows
from sbi_ignite.exceptions import DataError

ROWS = torch.arange(40).float().reshape(20, 2)
CHOSEN = torch.tensor([1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 0])

SOURCES = {
    "sbi": lambda: SbiOrderBatches((ROWS,), CHOSEN, 3),
    "shuffled": lambda: ShuffledBatches((ROWS,), CHOSEN, 4, seed=5),
    "ordered": lambda: OrderedBatches((ROWS,), CHOSEN, 4),
}


def test_an_order_takes_the_memory_of_its_permutation_and_is_let_go_before_the_next(monkeypatch):
    monkeypatch.setattr(in_memory, "_LOOKED_UP_AT_ONCE", 7)
    places = torch.randperm(100)
    expected, memory = torch.arange(5, 105)[places], places.data_ptr()
    order = looked_up(torch.arange(5, 105), places)
    assert torch.equal(order, expected)
    assert order.data_ptr() == memory
    source = SOURCES["shuffled"]()
    for _ in source:
        pass
    draw, held = source._order, []
    monkeypatch.setattr(source, "_order", lambda: held.append(len(source.rows)) or draw())
    next(iter(source))
    assert held == [0]
    assert len(source.rows) == 3


@given(st.integers(1, 200), st.integers(1, 50))
def test_bounds_cut_rows_into_even_parts(num_rows, num_parts):
    bounds = even_bounds(num_rows, min(num_parts, num_rows))
    sizes = [b - a for a, b in pairwise(bounds)]
    assert sum(sizes) == num_rows
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@pytest.mark.parametrize("name", ["shuffled", "ordered"])
def test_a_pass_has_every_chosen_row_once_in_even_batches(name):
    source = SOURCES[name]()
    for _ in range(3):
        batches = [batch[0] for batch in source]
        assert len(batches) == len(source) == 3
        assert sorted(map(len, batches)) == [3, 4, 4]
        assert sorted(torch.cat(batches)[:, 0].tolist()) == sorted(ROWS[CHOSEN][:, 0].tolist())


def test_rows_name_the_batch_handed_out_last():
    source = SOURCES["shuffled"]()
    for (batch,) in source:
        assert torch.equal(batch, ROWS[source.rows])


def test_shuffled_passes_differ_and_ordered_ones_do_not():
    shuffled, ordered = SOURCES["shuffled"](), SOURCES["ordered"]()

    def one_pass(source):
        return torch.cat([batch[0] for batch in source])

    assert not torch.equal(one_pass(shuffled), one_pass(shuffled))
    assert torch.equal(one_pass(ordered), one_pass(ordered))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("position", [0, 1])
def test_a_second_source_continues_a_pass_where_the_first_stood(name, position):
    """Also with another random state in between; and the passes after it are the same."""
    torch.manual_seed(0)
    first, second = SOURCES[name](), SOURCES[name]()
    next(iter(first))
    running = iter(first)
    for _ in range(position + 1):
        next(running)
    state, random_state = first.state_dict(), torch.get_rng_state()
    rest = [batch[0] for batch in running]

    second.load_state_dict(state)
    torch.set_rng_state(random_state)
    continued = [batch[0] for batch in second]
    assert len(continued) == len(rest)
    assert all(map(torch.equal, continued, rest))

    torch.set_rng_state(random_state)
    after = [batch[0] for batch in first]
    torch.set_rng_state(random_state)
    assert all(map(torch.equal, after, [batch[0] for batch in second]))


def test_batch_indices_count_passes_on():
    first, second = BatchIndices(CHOSEN, 4, seed=2), BatchIndices(CHOSEN, 4, seed=9)
    list(first)
    second.load_state_dict(first.state_dict())
    assert list(first) == list(second)
    assert list(first) != list(BatchIndices(CHOSEN, 4, seed=2))


def test_sbis_order_is_that_of_torchs_data_loader():
    """The same rows and the same random state afterwards, pass after pass."""
    loader = DataLoader(
        TensorDataset(ROWS), batch_size=3, drop_last=True, sampler=SubsetRandomSampler(CHOSEN)
    )
    ours = SOURCES["sbi"]()
    torch.manual_seed(1)
    theirs = [[batch[0] for batch in loader] for _ in range(3)]
    state = torch.get_rng_state()
    torch.manual_seed(1)
    for expected in theirs:
        assert all(map(torch.equal, [batch[0] for batch in ours], expected))
    assert len(ours) == len(loader) == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_neighbouring_seeds_do_not_share_permutations():
    orders = {
        tuple(permutation(12, seed, number).tolist()) for seed in range(9) for number in range(9)
    }
    assert len(orders) == 81


def test_a_split_is_random_complete_and_of_the_wanted_size():
    train, validation = split_rows(CHOSEN, 0.25)
    assert (len(train), len(validation)) == (8, 3)
    assert sorted([*train.tolist(), *validation.tolist()]) == sorted(CHOSEN.tolist())
    assert train.tolist() != split_rows(CHOSEN, 0.25)[0].tolist()


def test_a_split_that_leaves_too_little_says_what_would_do():
    """The advice, followed, is accepted."""
    with pytest.raises(DataError, match=r"have 1 of 10.*take validation_fraction=0\.11"):
        check_split(9, 1, 2, 0.1)
    train = int((1 - 0.11) * 10)
    check_split(train, 10 - train, 2, 0.11)
    with pytest.raises(DataError, match=r"at least 4 in all"):
        check_split(2, 1, 2, 0.1)
    with pytest.raises(DataError, match=r"training set would have 1 of 20.*lower"):
        check_split(1, 19, 2, 0.95)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("batches", [0, 1, 2])
def test_a_source_that_was_brought_somewhere_says_so_before_it_moves(name, batches):
    """A training saved again right after a resume must not forget its position."""
    first, second, third = (SOURCES[name]() for _ in range(3))
    passing = iter(first)
    for _ in range(batches):
        next(passing)
    second.load_state_dict(first.state_dict())
    third.load_state_dict(second.state_dict())
    left = [batch[0] for batch in passing]
    # A pass that had not begun yet begins from the same random state.
    state = torch.get_rng_state()
    again = [batch[0] for batch in second]
    torch.set_rng_state(state)
    once_more = [batch[0] for batch in third]
    assert len(once_more) == len(again) == len(first) - batches
    assert all(map(torch.equal, again, once_more))
    if batches:
        assert all(map(torch.equal, left, again))
