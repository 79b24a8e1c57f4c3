"""Every source of batches keeps the data contract."""

from __future__ import annotations

import json
from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from sbi_ignite.data.foreign import ForeignBatches, as_batches
from sbi_ignite.data.in_memory import (
    BatchIndices,
    OrderedBatches,
    SbiOrderBatches,
    ShuffledBatches,
)
from sbi_ignite.data.source import Batches, num_rows
from sbi_ignite.exceptions import ArgumentError

THETA, X = torch.arange(44.0).reshape(22, 2), torch.arange(22.0)
CHOSEN = torch.tensor([1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 0])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(THETA)

    def __len__(self):
        return len(THETA)


def in_memory():
    """Return sources that number their rows, by name."""
    tensors = (THETA, X)
    return {
        "in sbi's order": SbiOrderBatches(tensors, CHOSEN, 4),
        "shuffled": ShuffledBatches(tensors, CHOSEN, 4, seed=3),
        "ordered": OrderedBatches(tensors, CHOSEN, 4),
    }


def foreign():
    """Return users' loaders, by name, with the rows and the batch size they show."""
    data = TensorDataset(THETA, X)
    even = BatchIndices(CHOSEN, 4, seed=3)
    return {
        "DataLoader": (DataLoader(data, batch_size=5), 22, 5),
        "DataLoader of a subset": (DataLoader(Subset(data, [1, 2, 3]), batch_size=2), 3, 2),
        "DataLoader with our sampler": (DataLoader(data, batch_sampler=even), 11, 4),
        "stream": (DataLoader(Stream(), batch_size=4), 22, 4),
        "list": ([(THETA[:3], X[:3]), (THETA[3:5], X[3:5])], 5, 3),
    }


@pytest.mark.parametrize("name", [*in_memory(), *foreign()])
def test_every_source_keeps_the_contract(name):
    """Passes have the promised length, states are plain data, and data have a name."""
    source = in_memory().get(name) or as_batches(foreign()[name][0], "val_loader")
    assert isinstance(source, Batches)
    assert as_batches(source) is source
    assert len(list(source)) == len(source) > 0
    json.dumps(source.state_dict(), default=torch.Tensor.tolist)
    source.load_state_dict(source.state_dict())
    assert source.name
    assert not source.uses_processes


@pytest.mark.parametrize("name", in_memory())
def test_rows_are_found_again_by_their_numbers(name):
    source = in_memory()[name]
    for batch in source:
        again = source.rows_at(source.rows)
        assert all(map(torch.equal, batch, again))
        assert torch.equal(batch[0], THETA[source.rows])


@pytest.mark.parametrize("name", in_memory())
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ranks_share_every_batch_and_see_every_row_once(name, num_ranks):
    """Which rows share a batch does not depend on how many processes there are."""

    def batches_of(rank, num_ranks):
        torch.manual_seed(0)
        source = in_memory()[name].shard(rank, num_ranks)
        return [source.rows.tolist() for _ in source]

    whole = batches_of(0, 1)
    shares = [batches_of(rank, num_ranks) for rank in range(num_ranks)]
    assert [sorted(chain(*batch)) for batch in zip(*shares, strict=True)] == list(
        map(sorted, whole)
    )


def test_of_a_batch_with_fewer_rows_than_ranks_some_ranks_get_none():
    shares = [in_memory()["shuffled"].shard(rank, 6) for rank in range(6)]
    sizes = torch.tensor([[len(batch[0]) for batch in share] for share in shares])
    assert sizes.sum() == len(CHOSEN)
    assert sizes.min() == 0
    assert sizes.max() == 1


def test_a_shard_also_has_the_rows_that_its_loss_meets():
    for share in (in_memory()["shuffled"].shard(rank, 2, met=(0,)) for rank in range(2)):
        for batch, (every, *_) in zip(share, in_memory()["shuffled"], strict=True):
            assert torch.equal(batch[-1], every)
            assert torch.equal(batch[-1][batch[-2]], batch[0])


def test_ranks_take_turns_in_the_rows_of_a_list_of_batches():
    shares = [ForeignBatches([THETA, THETA[:1]], "val_loader").shard(rank, 2) for rank in (0, 1)]
    first, second = (list(share) for share in shares)
    assert torch.equal(torch.stack([first[0], second[0]], dim=1).flatten(0, 1), THETA)
    assert (len(first[1]), len(second[1])) == (1, 0)


def test_a_loader_whose_workers_would_collate_nothing_is_refused():
    loader = DataLoader(TensorDataset(THETA), batch_sampler=BatchIndices(CHOSEN, 2, seed=3))
    with pytest.raises(ArgumentError, match="at least 4 rows, one for each of the 4 processes"):
        as_batches(loader).shard(0, 4)


@pytest.mark.parametrize("name", foreign())
def test_a_foreign_loader_shows_what_it_knows(name):
    loader, rows, batch_size = foreign()[name]
    source = as_batches(loader)
    assert (source.num_rows, source.batch_size) == (rows, batch_size)
    assert source.rows is None
    assert not source.resumes_inside_epoch
    assert source.name == f"train_loader ({type(loader).__name__})"
    has_tensors = name not in ("stream", "list")
    assert (source.fingerprint() is not None) == has_tensors


def test_the_state_of_a_batch_sampler_is_continued():
    def source():
        return as_batches(
            DataLoader(TensorDataset(THETA), batch_sampler=BatchIndices(CHOSEN, 4, seed=3))
        )

    first = source()
    passes = [[batch[0].tolist() for batch in first] for _ in range(2)]
    state = first.state_dict()
    third = [batch[0].tolist() for batch in first]
    again = source()
    again.load_state_dict(state)
    assert [batch[0].tolist() for batch in again] == third
    assert third not in passes


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        (THETA, 22),
        ((THETA[:3], X[:3]), 3),
        ({"x": X[:2]}, 2),
        (["name", torch.tensor(1.0), X[:4]], 4),
        (X[:5].numpy(), 5),
        ("words", 1),
        (torch.tensor(1.0), 1),
    ],
)
def test_rows_of_a_batch_are_counted_in_any_structure(batch, rows):
    assert num_rows(batch) == rows
