"""Batches from files keep the data contract, in every order and from every layout."""

from __future__ import annotations

import json
import pickle
import threading
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sbi_ignite import open_simulations
from sbi_ignite.data import table as table_module
from sbi_ignite.data.files import arrow, base, dingo, hdf5, swyft
from sbi_ignite.data.in_memory import ShuffledBatches
from sbi_ignite.data.on_disk import OnDiskBatches, prefetched
from sbi_ignite.data.source import Batches
from sbi_ignite.data.table import PartInMemory, StoredPart, Table
from sbi_ignite.exceptions import ArgumentError, DataError
from tests.data import write

ROWS = 211

OTHER_CHUNKS = (1, 40)
"""Rows in a chunk of files of ours, beside the 7 of `write.ours`."""


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Read a few rows at a time: files of tests would be one block otherwise."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (base, hdf5, swyft, arrow, dingo, table_module):
            patched.setattr(module, "BLOCK_BYTES", 200)
        yield


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Return tables over the same rows in every layout."""
    theta, x = write.simulations(ROWS)
    found = {}
    for layout, writer in write.WRITERS.items():
        folder = tmp_path_factory.mktemp(layout)
        found[layout] = Table([StoredPart(open_simulations(writer(folder, theta, x)))])
    for chunk_rows in OTHER_CHUNKS:
        folder = tmp_path_factory.mktemp("chunks")
        path = write.ours(folder, theta, x, chunk_rows=chunk_rows)
        found[f"ours-{chunk_rows}"] = Table([StoredPart(open_simulations(path))])
    folder = tmp_path_factory.mktemp("shards")
    for i, cut in enumerate(np.array_split(np.arange(ROWS), 3)):
        (folder / str(i)).mkdir()
        write.ours(folder / str(i), theta[cut], x[cut], chunk_rows=4 + i)
    shards = open_simulations(str(folder / "*" / "ours.h5"))
    found["shards"] = Table([StoredPart(shards)])
    half = PartInMemory({"theta": torch.from_numpy(theta[150:]), "x": torch.from_numpy(x[150:])})
    found["mixed"] = Table([StoredPart(shards, valid=np.arange(150)), half])
    return found


def numbers(batches):
    return [batch[0][:, 0].long().tolist() for batch in batches]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    layout=st.sampled_from(
        [*write.WRITERS, *(f"ours-{n}" for n in OTHER_CHUNKS), "shards", "mixed"]
    ),
    batch_size=st.integers(1, 80),
    buffer_bytes=st.sampled_from([1, 100, 700, 2_000, 10**6]),
    num_rows=st.integers(1, ROWS),
    shuffle=st.booleans(),
    random_access=st.sampled_from([None, False]),
    num_ranks=st.integers(1, 3),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_row_comes_exactly_once_in_every_pass(
    tables, layout, batch_size, buffer_bytes, num_rows, shuffle, random_access, num_ranks, seed
):
    """Whatever the layout, chunks, buffer, batches and ranks; and rows go with their numbers."""
    indices = torch.from_numpy(np.random.default_rng(seed % 97).permutation(ROWS)[:num_rows])
    source = OnDiskBatches(
        tables[layout],
        indices,
        batch_size,
        seed,
        shuffle=shuffle,
        buffer_bytes=buffer_bytes,
        random_access=random_access,
    )
    for _ in range(2):
        seen = []
        for theta, x in source:
            assert torch.equal(theta[:, 0].long(), source.rows)
            assert torch.equal(x[:, 0], theta[:, 0] + 0.5)
            seen += source.rows.tolist()
        assert sorted(seen) == sorted(indices.tolist())
    smallest = num_rows // len(source)
    if num_ranks > smallest:
        with pytest.raises(ArgumentError, match="cannot be shared"):
            source.shard(0, num_ranks)
        return
    whole = numbers(source)
    source._pass -= 1
    shares = []
    for rank in range(num_ranks):
        shares.append(numbers(source.shard(rank, num_ranks)))
    assert [sorted(chain(*parts)) for parts in zip(*shares, strict=True)] == [
        sorted(batch) for batch in whole
    ]


@pytest.mark.parametrize("layout", [*write.WRITERS, "shards", "mixed"])
def test_sources_in_files_keep_the_contract(tables, layout):
    source = OnDiskBatches(tables[layout], torch.arange(100), 9, seed=5)
    assert isinstance(source, Batches)
    assert len(list(source)) == len(source) == 12
    json.dumps(source.state_dict())
    for batch in source:
        assert all(map(torch.equal, batch, source.rows_at(source.rows)))
    assert source.name
    assert len(source.fingerprint()) >= 2
    assert source.select(torch.arange(50, 150))
    assert sorted(chain(*numbers(source))) == list(range(50, 150))


@pytest.mark.parametrize("layout", [*write.WRITERS, "shards", "mixed"])
def test_batches_that_are_kept_keep_their_rows(tables, layout):
    """Buffers are filled again, but none that a batch looks into."""
    source = OnDiskBatches(
        tables[layout], torch.arange(ROWS), 7, seed=1, buffer_bytes=400, random_access=False
    )
    kept = [(source.rows, batch) for _ in range(3) for batch in source]
    assert all(torch.equal(theta[:, 0].long(), rows) for rows, (theta, _) in kept)
    assert all(torch.equal(x[:, 0], theta[:, 0] + 0.5) for _, (theta, x) in kept)


def test_no_more_than_three_buffers_outlive_their_batches(tables):
    """Also where somebody has kept all batches of a pass; and none is copied with its source."""
    source = OnDiskBatches(tables["ours"], torch.arange(ROWS), 7, seed=1, buffer_bytes=400)
    kept = list(source)
    assert len(source._arrays._made) == 3
    again = pickle.loads(pickle.dumps(source._arrays))
    assert not again._made
    assert len(again.unused(2)["theta"]) == 2
    assert sum(len(theta) for theta, _ in kept) == ROWS


def test_buffers_are_filled_again_once_their_batches_are_gone(tables, monkeypatch):
    source = OnDiskBatches(tables["ours"], torch.arange(ROWS), 7, seed=1, buffer_bytes=400)
    made, new = [], source.table.empty
    monkeypatch.setattr(source.table, "empty", lambda n: made.append(n) or new(n))
    for _ in range(3):
        for _ in source:
            pass
    assert len(source._blocks.drawn(1, 0)[1]) > 5
    assert len(made) <= 3


@pytest.mark.parametrize("layout", [*write.WRITERS, "shards", "mixed"])
@pytest.mark.parametrize("rows", [[3, 3, 5], [5, 3, 3], [7], [180, 2, 180, 180, 1], []])
def test_rows_may_be_asked_for_more_than_once(tables, layout, rows):
    theta, x = tables[layout].read(np.asarray(rows, dtype=np.int64))
    assert theta[:, 0].tolist() == rows
    assert x[:, 0].tolist() == [row + 0.5 for row in rows]
    simulations = getattr(tables[layout].parts[0], "simulations", None)
    if layout != "mixed":
        assert simulations.theta[rows][:, 0].tolist() == rows


@pytest.mark.parametrize("layout", ["npy", "arrow", "npz"])
def test_where_random_rows_are_cheap_the_order_is_that_in_memory(tables, layout):
    indices = torch.randperm(ROWS)[:180]
    tensors = tables["npy"].read(np.arange(ROWS))
    memory = ShuffledBatches(tensors, indices, 16, seed=9)
    files = OnDiskBatches(tables[layout], indices, 16, seed=9)
    for _ in range(3):
        assert numbers(memory) == numbers(files)


@pytest.mark.parametrize("buffer_bytes", [1, 500, 10**6])
@pytest.mark.parametrize("layout", ["ours", "npy", "shards"])
@pytest.mark.parametrize("handed_out", [0, 1, 5, 11, 12])
def test_a_pass_continues_with_the_very_next_batch(tables, layout, buffer_bytes, handed_out):
    def source(seed):
        indices = torch.arange(190)
        return OnDiskBatches(tables[layout], indices, 16, seed, buffer_bytes=buffer_bytes)

    first = source(4)
    list(first)
    running = iter(first)
    for _ in range(handed_out):
        next(running)
    state = first.state_dict()
    expected = [*numbers(running), *numbers(first)]
    resumed = source(77)
    resumed.load_state_dict(state)
    again = [*numbers(resumed), *numbers(resumed)]
    assert again[: len(expected)] == expected[: len(again)]


def test_passes_differ_and_validation_has_one_order(tables):
    indices = torch.arange(100)
    shuffled = OnDiskBatches(tables["ours"], indices, 10, seed=1, buffer_bytes=400)
    assert numbers(shuffled) != numbers(shuffled)
    ordered = OnDiskBatches(tables["ours"], indices, 10, seed=1, shuffle=False)
    assert numbers(ordered) == numbers(ordered)


def test_a_buffer_mixes_rows_from_all_over_the_file(tables):
    """In a sorted file, batches are not runs of neighbours."""
    source = OnDiskBatches(tables["ours"], torch.arange(ROWS), 20, seed=1, buffer_bytes=60 * 20)
    spreads = [max(batch) - min(batch) for batch in numbers(source)]
    assert sorted(spreads)[len(spreads) // 4] > ROWS / 2


def test_sbis_sizes_leave_out_what_fills_no_batch(tables):
    source = OnDiskBatches(tables["ours"], torch.arange(100), 16, seed=1, drop_last=True)
    assert [len(batch) for batch in numbers(source)] == [16] * 6


@pytest.mark.parametrize("random_access", [True, False])
def test_the_next_rows_are_read_while_a_batch_is_in_use(tables, monkeypatch, random_access):
    source = OnDiskBatches(
        tables["ours"], torch.arange(ROWS), 7, 1, buffer_bytes=400, random_access=random_access
    )
    reads, second, whole = [], threading.Event(), source.table.read

    def watched(*args, **kwargs):
        reads.append(threading.current_thread())
        if len(reads) == 2:
            second.set()
        return whole(*args, **kwargs)

    monkeypatch.setattr(source.table, "read", watched)
    passing = iter(source)
    next(passing)
    assert second.wait(5)
    assert threading.current_thread() not in reads
    passing.close()


def test_a_pass_that_is_left_ends_its_thread(tables):
    def reading():
        return sum(thread.name == "sbi_ignite-prefetch" for thread in threading.enumerate())

    before = reading()
    # More batches than are read ahead, so that the thread waits.
    passing = iter(OnDiskBatches(tables["ours"], torch.arange(ROWS), 4, 1, random_access=True))
    next(passing)
    assert reading() > before
    passing.close()
    assert reading() == before


def test_an_error_while_reading_ahead_is_raised_in_its_place():
    def items():
        yield 1
        raise DataError("broken")

    fetched = prefetched(items, 3)
    assert next(fetched) == 1
    with pytest.raises(DataError, match="broken"):
        next(fetched)
    assert list(prefetched(lambda: iter(range(5)), 2)) == list(range(5))
