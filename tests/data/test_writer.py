"""A writer loses next to nothing, and no reader ever sees a row that was not written."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from sbi_ignite import SimulationWriter, open_simulations
from sbi_ignite.exceptions import ArgumentError, DataError
from tests.small import environment

FORKING = """
import os, sys, numpy as np, torch, h5py
from sbi_ignite import SimulationWriter

def write(path, chunk_rows):
    with SimulationWriter(path, chunk_rows=chunk_rows) as writer:
        while True:
            begin = writer.num_rows
            rows = np.arange(begin, begin + 5, dtype=np.float32)
            writer.append(np.stack([rows + 1, -rows - 1], 1), np.tile(rows[:, None] + 1, (1, 50)))
            print(writer.num_written, flush=True)

for line in sys.stdin:
    path, chunk_rows = line.split()
    child = os.fork()
    if child == 0:
        write(path, int(chunk_rows))
    print("pid", child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


@pytest.fixture(scope="module")
def writers():
    """A program that starts a writer, in a process of its own, for every line it is given."""
    env = environment()
    command = [sys.executable, "-c", FORKING]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=env, **pipes) as program:
        yield program
        program.stdin.close()


def start(writers, path, chunk_rows):
    """Start a writer and return its process id."""
    print(path, chunk_rows, file=writers.stdin, flush=True)
    # The writer may be the first to say something.
    return next(int(line.split()[1]) for line in writers.stdout if line.startswith("pid"))


def kill(writers, pid):
    """Kill a writer; return how many rows it said were written."""
    os.kill(pid, signal.SIGKILL)
    said = 0
    for line in writers.stdout:
        if line.endswith("dead\n"):
            break
        said = max(said, int(line))
    return said


def check(path):
    """Return how many rows there are, all of which must be what was written."""
    with open_simulations(path) as found:
        rows = torch.arange(len(found), dtype=torch.float32) + 1
        assert torch.equal(found.theta[:], torch.stack([rows, -rows], 1))
        assert torch.equal(found.x[:], rows[:, None].expand(-1, 50))
        return len(found)


@pytest.mark.parametrize("chunk_rows", [1, 7, 64])
def test_what_was_written_survives_kills_at_random_moments(tmp_path, writers, chunk_rows):
    """One file, killed and continued again and again."""
    moments, path, before = random.Random(chunk_rows), tmp_path / "s.h5", 0
    for _ in range(25):
        pid = start(writers, path, chunk_rows)
        time.sleep(moments.uniform(0, 0.08))
        said = kill(writers, pid)
        if not path.exists():
            continue
        with SimulationWriter(path) as continued:
            written = continued.num_rows
        if not written:
            assert not said
            continue
        now = check(path)
        assert now >= max(said, before)
        assert now % chunk_rows == 0
        before = now
    assert before > 0


def test_a_writer_that_is_started_again_continues(tmp_path):
    path = tmp_path / "s.h5"
    for begin in range(0, 90, 30):
        with SimulationWriter(path, chunk_rows=16) as writer:
            assert writer.num_rows == begin
            rows = np.arange(begin, begin + 30, dtype=np.float32) + 1
            writer.append(np.stack([rows, -rows], 1), np.tile(rows[:, None], (1, 50)))
    assert check(path) == 90


def test_a_file_whose_writer_was_killed_is_copied_before_it_is_continued(tmp_path, writers):
    """A file that was closed is continued as it is."""
    path, rows = tmp_path / "s.h5", torch.arange(1, 33, dtype=torch.float32)[:, None]
    with SimulationWriter(path, chunk_rows=8, source="here") as writer:
        writer.append(torch.cat([rows, -rows], 1), rows.expand(-1, 50))
    closed, size = path.stat().st_ino, path.stat().st_size
    with SimulationWriter(path):
        pass
    assert path.stat().st_ino == closed
    pid = start(writers, path, 8)
    deadline = time.monotonic() + 60
    while path.stat().st_size < 2 * size and time.monotonic() < deadline:
        time.sleep(0.01)
    kill(writers, pid)
    before = check(path)
    with SimulationWriter(path) as continued:
        assert continued.num_rows == before
        assert continued.attributes["source"] == "here"
    assert path.stat().st_ino != closed
    assert check(path) == before
    assert [item.name for item in tmp_path.iterdir()] == ["s.h5"]


def test_copies_of_killed_writers_are_removed(tmp_path):
    path = tmp_path / "s[1].h5"
    with SimulationWriter(path, chunk_rows=4) as writer:
        writer.append(torch.zeros(4, 1), torch.zeros(4, 2))
    left, others = tmp_path / ".s[1].h5.123.copy", tmp_path / ".s1.h5.123.copy"
    left.touch(), others.touch()
    with SimulationWriter(path) as writer:
        assert not left.exists()
        assert others.exists()
        assert writer.num_rows == 4


def test_a_copy_that_the_disk_does_not_take_leaves_the_file_as_it_is(tmp_path, monkeypatch):
    import h5py

    path = tmp_path / "s.h5"
    with SimulationWriter(path, chunk_rows=8) as writer:
        writer.append(torch.ones(16, 2), torch.ones(16, 3))
    with h5py.File(path, "r+") as file:
        file.attrs["being_written"] = 1
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", full)
        with pytest.raises(DataError, match=r"rows \(16\) cannot be copied .*No space left"):
            SimulationWriter(path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["s.h5"]
    with SimulationWriter(path) as writer:
        assert writer.num_rows == 16


def test_rows_that_wait_are_not_in_the_file_and_flush_writes_them(tmp_path):
    path = tmp_path / "s.h5"
    writer = SimulationWriter(path, chunk_rows=10)
    writer.append(torch.ones(25, 2), torch.ones(25, 3))
    assert (writer.num_rows, writer.num_written) == (25, 20)
    writer.flush()
    assert writer.num_written == 25
    writer.append(torch.ones(2, 2), torch.ones(2, 3))
    writer.close()
    assert len(open_simulations(path)) == 27


def test_the_file_says_what_it_is(tmp_path):
    import h5py

    with SimulationWriter(tmp_path / "s.h5", source="two moons") as writer:
        writer.append(torch.ones(3, 2), torch.ones(3, 4, 4))
    with h5py.File(tmp_path / "s.h5") as file:
        assert file.attrs["source"] == "two moons"
        assert file.attrs["rows_written"] == 3
        assert file["x"].shape == (3, 4, 4)
        assert file.attrs["version"] == 1
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file.attrs["version"] = 2
    with pytest.raises(DataError, match="newer sbi_ignite"):
        open_simulations(tmp_path / "s.h5")


def test_bad_rows_are_refused_and_good_ones_stay(tmp_path):
    with SimulationWriter(tmp_path / "s.h5") as writer:
        writer.append(torch.ones(3, 2), torch.ones(3, 4))
        for theta, x, message in (
            (torch.ones(3, 2), torch.ones(2, 4), "as many rows of theta as of x, got 3 and 2"),
            (torch.ones(3, 3), torch.ones(3, 4), r"theta with shape \(2,\)"),
            (torch.ones(3), torch.ones(3, 4), "theta of shape"),
            ([["a"]], [[1.0]], "real numbers"),
        ):
            with pytest.raises(DataError, match=message):
                writer.append(theta, x)
    assert len(open_simulations(tmp_path / "s.h5")) == 3
    with pytest.raises(ArgumentError, match="chunk_rows"):
        SimulationWriter(tmp_path / "t.h5", chunk_rows=0)
    with pytest.raises(ArgumentError, match="float32"):
        SimulationWriter(tmp_path / "t.h5", dtype="int8")


def test_a_file_of_somebody_else_is_not_written_to(tmp_path):
    import h5py

    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["theta"] = np.ones((3, 2))
    with pytest.raises(DataError, match="that SimulationWriter has begun"):
        SimulationWriter(tmp_path / "s.h5")
    (tmp_path / "t.h5").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="HDF5 cannot open it"):
        SimulationWriter(tmp_path / "t.h5")


READING = """
import sys, torch
from sbi_ignite import open_simulations

simulations = open_simulations(sys.argv[1])
rows = torch.arange(20, dtype=torch.float32) + 1
for line in sys.stdin:
    order = torch.randperm(20)
    theta, x = simulations.read(order.numpy())
    same = torch.equal(theta[:, 0], rows[order]) and torch.equal(x[:, 3], rows[order])
    print("same" if same else "other", flush=True)
"""


def test_a_file_that_another_process_is_writing_is_refused_and_its_shards_are_read(
    tmp_path, writers
):
    """Two processes read a finished shard while a third writes the next."""
    rows = np.arange(20, dtype=np.float32) + 1
    with SimulationWriter(tmp_path / "s-0.h5") as writer:
        writer.append(np.stack([rows, -rows], 1), np.tile(rows[:, None], (1, 50)))
    pid = start(writers, tmp_path / "s-1.h5", 16)
    try:
        while int(writers.stdout.readline()) < 32:
            pass
        begun = (tmp_path / "s-1.h5").stat().st_size
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", READING, str(tmp_path / "s-0.h5")]
        readers = [subprocess.Popen(command, env=environment(), **pipes) for _ in range(2)]
        for _ in range(10):
            for reader in readers:
                print(file=reader.stdin, flush=True)
            assert [reader.stdout.readline() for reader in readers] == ["same\n"] * 2
        for reader in readers:
            assert reader.communicate() == ("", None)
            assert reader.returncode == 0
        while (tmp_path / "s-1.h5").stat().st_size == begun:
            assert int(writers.stdout.readline()) >= 32
        with pytest.raises(DataError, match="another process has it open"):
            open_simulations(tmp_path / "s-1.h5")
        with pytest.raises(DataError, match="another process has it open"):
            SimulationWriter(tmp_path / "s-1.h5")
    finally:
        kill(writers, pid)
    assert len(open_simulations(str(tmp_path / "s-*.h5"))) == 20 + check(tmp_path / "s-1.h5")
