"""Several processes and one run directory: locks end with their holders, kills leave it whole."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from pathlib import Path

import pytest

from sbi_ignite.exceptions import CheckpointError
from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.lock import Lock
from tests import forking


def run_python(code: str, *arguments: object) -> forking.Program:
    """Start a script in a process of its own."""
    return forking.start("-W", "error", "-c", textwrap.dedent(code), *map(str, arguments))


HOLD = """
    import sys, time
    from pathlib import Path
    from sbi_ignite.runs.lock import Lock
    lock = Lock(Path(sys.argv[1]) / ".lock")
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_kept_out_until_the_first_is_dead(tmp_path):
    """The error names the holder; after SIGKILL the directory can be used at once."""
    holder = run_python(HOLD, tmp_path)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=rf"in use by process {holder.pid} on "):
            RunDirectory.open(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    RunDirectory.open(tmp_path).close()


def test_one_process_cannot_open_a_directory_twice(tmp_path):
    """Two trainings in two threads are kept apart too; after closing, the next may come."""
    with RunDirectory.open(tmp_path), pytest.raises(CheckpointError, match="in use by process"):
        RunDirectory.open(tmp_path)
    RunDirectory.open(tmp_path).close()


def test_a_failed_opening_keeps_nobody_out(tmp_path, monkeypatch):
    """The lock is given back when the directory turns out to be unusable."""

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "no")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(CheckpointError, match="no"):
        RunDirectory.open(tmp_path)
    monkeypatch.undo()
    RunDirectory.open(tmp_path).close()


def test_a_forked_worker_does_not_keep_the_lock(tmp_path):
    """A data loader's worker that outlives its killed parent is no obstacle."""
    script = run_python(
        """
        import os, sys, time
        from pathlib import Path
        from sbi_ignite.runs.lock import Lock
        lock = Lock(Path(sys.argv[1]) / ".lock")
        if os.fork() == 0:
            print(os.getpid(), flush=True)  # a worker that has begun to live
        time.sleep(600)
        """,
        tmp_path,
    )
    child = int(script.stdout.readline())
    try:
        with pytest.raises(CheckpointError, match="in use"):
            Lock(tmp_path / ".lock")
        script.kill()
        script.wait()
        Lock(tmp_path / ".lock").release()
    finally:
        os.kill(child, signal.SIGKILL)
        script.communicate()


KILL = """
    # One import of torch for many writers: each is forked, killed, and what it left is read.
    import os, random, signal, sys, time
    import torch
    from tests.runs.conftest import same, states_at
    from sbi_ignite.runs.directory import RunDirectory
    from sbi_ignite.runs.load import load_run
    from sbi_ignite.runs.snapshot import Snapshot

    path, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)

    def write(background, ready):
        # Only a power cut needs it; without, many more writes are there to be killed in.
        os.fsync = lambda descriptor: None
        with RunDirectory.open(path) as directory:
            os.write(ready, b"!")
            checkpoint = directory.latest()
            iteration = checkpoint.iteration if checkpoint else 0
            directory.write_manifest({"status": "running"})
            directory.set_metrics({"epoch": i} for i in range(iteration))
            while True:
                iteration += 1
                directory.append_metrics({"epoch": iteration})
                snapshot = Snapshot.of(states_at(iteration))
                write = directory.write_in_background if background else directory.write
                write(iteration, iteration, snapshot)

    last = 0
    for number in range(kills):
        listen, ready = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                write(number % 2 == 0, ready)
            finally:
                os._exit(1)
        os.close(ready)
        os.read(listen, 1)
        os.close(listen)
        time.sleep(rng.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"the writer failed, seed {seed}, kill {number}"
        with RunDirectory.open(path) as directory:
            checkpoint = directory.latest()
            if checkpoint is None:
                assert last == 0, f"seed {seed}, kill {number}"
                continue
            assert checkpoint.iteration >= last, f"seed {seed}, kill {number}"
            last = checkpoint.iteration
            assert same(checkpoint.states, states_at(last)), f"seed {seed}, kill {number}"
        load_run(path)
    assert last > kills // 4, "too few checkpoints to say anything"
    print(f"{kills} kills survived, {last} checkpoints written")
"""


def kill_writers(path: Path, kills: int, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    script = run_python(KILL, path, kills, seed)
    output, errors = script.communicate(timeout=60 + 10 * kills)
    assert script.returncode == 0, f"seed {seed}: {errors}"
    with capsys.disabled():
        print(f" [{output.strip()}, seed {seed}]", end="")


def test_a_writer_killed_at_any_instant_leaves_a_readable_run(tmp_path, capsys):
    """The newest checkpoint is always whole and never older than one seen before."""
    kill_writers(tmp_path, 20, int(time.time()), capsys)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hundreds_of_killed_writers_leave_a_readable_run(tmp_path, capsys):
    """The same, three hundred times."""
    kill_writers(tmp_path, 300, int(time.time()), capsys)


def test_a_disk_that_is_really_full_costs_one_checkpoint(tmp_path):
    """With a limit on file sizes a larger checkpoint fails: a warning, and the old one stays."""
    script = run_python(
        """
        import resource, sys, warnings
        import torch
        from sbi_ignite.exceptions import SbiIgniteWarning
        from sbi_ignite.runs.directory import RunDirectory
        from sbi_ignite.runs.snapshot import Snapshot
        large = Snapshot.of({"weight": torch.zeros(10_000)})
        with RunDirectory.open(sys.argv[1]) as directory:
            assert directory.write(1, 1, Snapshot.of({"weight": torch.zeros(10)}))
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for iteration in (2, 3):
                    assert not directory.write(iteration, iteration, large)
            assert [w.category for w in caught] == [SbiIgniteWarning], caught
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            assert directory.latest().iteration == 1
            assert directory.write(4, 4, large)
            print(directory.latest().iteration)
        """,
        tmp_path,
    )
    output, errors = script.communicate(timeout=120)
    assert (script.returncode, output) == (0, "4\n"), errors
