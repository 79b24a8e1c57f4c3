"""Processes that train together, forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preload"])
_ROOT = Path(__file__).parents[2]
_preloaded = "tests.preload" in sys.modules
"""Whether this process, if it is one of them, was forked from a server that could import it."""


@dataclass
class Rank:
    """One process: the end of it, and what its function returned."""

    process: ForkServerProcess
    folder: Path
    rank: int

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def end(self, seconds: float = 120) -> Any:
        """Wait for the process and return its result, an exception or None if it was killed."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f"rank {self.rank} did not end within {seconds} s")
        file = self.folder / f"result-{self.rank}"
        return pickle.loads(file.read_bytes()) if file.exists() else None


def start(
    function: Callable[..., Any], size: int, folder: Path, *args: Any, **variables: str
) -> list[Rank]:
    """Start processes as torchrun does, which sets these variables; none for a single one."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    _start_server()
    ranks = []
    for rank in range(size):
        known = {"OMP_NUM_THREADS": "1", **variables}
        if size > 1:
            known |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        process = _context.Process(target=_run, args=(function, folder, rank, known, args))
        process.start()
        ranks.append(Rank(process, folder, rank))
    return ranks


def _start_server() -> None:
    """Start the server where it finds the tests: it looks for them in its own folder alone."""
    here = Path.cwd()
    os.chdir(_ROOT)
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(here)


def together(
    function: Callable[..., Any], size: int, folder: Path, *args: Any, **variables: str
) -> list[Any]:
    """Run a function in processes that train together and return what each returned."""
    results = [rank.end() for rank in start(function, size, folder, *args, **variables)]
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def epochs_of(directory: Path) -> int:
    metrics = directory / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def _run(
    function: Callable[..., Any],
    folder: Path,
    rank: int,
    variables: dict[str, str],
    args: Sequence[Any],
) -> None:
    assert _preloaded
    os.environ.update(variables)
    os.chdir(folder)
    import torch

    torch.set_num_threads(1)
    output = os.open(folder / f"output-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 0
    try:
        result: Any = function(*args)
    except BaseException as error:
        traceback.print_exc()
        result = error
        code = error.code if isinstance(error, SystemExit) else 1
    part = folder / f"result-{rank}.part"
    part.write_bytes(pickle.dumps(result))
    part.rename(folder / f"result-{rank}")
    from sbi_ignite import world

    if world._joined is not None:
        world._joined._close()  # as at the end of python, which a forked process skips
    os._exit(code or 0)
