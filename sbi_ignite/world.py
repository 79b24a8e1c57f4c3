"""The processes that train one network together, and what they say to each other.

`torchrun`, `srun` and `ignite.distributed.Parallel` start several processes, called ranks, of one
script. `join_world` says which of them this process is; without such a launcher it is `ONE`, which
does nothing and costs nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from sbi_ignite.exceptions import RankFailedError, SbiIgniteError
from sbi_ignite.random_state import random_states, set_random_states

T = TypeVar("T")

TIMEOUT = timedelta(seconds=60)
"""How long a rank waits for the others unless told otherwise."""

SHARE_FOR_INQUIRY = 0.1
MOST_FOR_INQUIRY = 5.0
"""The part of the timeout, and the seconds at most, in which ranks find out who is missing."""

_logger = logging.getLogger("sbi_ignite.world")


class World:
    """One process by itself: every method returns at once what it was given.

    `Ranks` does the same among several processes. All ranks must call the same methods in the same
    order.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.

    Example:
        >>> ONE.gather("here"), ONE.any(False)
        (['here'], False)
    """

    rank = 0
    size = 1

    def add(self, tensor: Tensor) -> Tensor:
        """Add the tensors of all ranks, in place, and return the sum."""
        return tensor

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """Return the sums of numbers over all ranks, in double precision."""
        return numbers

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return flag

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks in order: plain data, or anything that can be pickled."""
        return [value]

    def gather_rows(self, rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Return the rows of all ranks, in order of ranks.

        Args:
            rows: Shape (num_rows, ...); the number of rows may differ between ranks.
            counts: The number of every rank, if all know them.
        """
        return rows

    def from_first(self, value: T) -> T:
        """Return rank 0's value."""
        return value

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors by rank 0's."""

    def share_random_states(self) -> None:
        """Let all ranks draw the random numbers that rank 0 draws next."""

    @contextmanager
    def taking_part(self) -> Iterator[None]:
        """Tell the other ranks if an error ends the block on this one."""
        yield


ONE = World()
"""The world of a process that trains alone."""


class Ranks(World):
    """Several processes over torch's default process group.

    A rank that ends, or no longer answers, ends the others by a `RankFailedError` that names it.

    Args:
        timeout: How long to wait for other ranks.
        owned: Whether the group was made here, and may be taken down.
    """

    def __init__(self, timeout: timedelta, owned: bool) -> None:
        import torch.distributed as dist

        self._dist = dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.backend = str(dist.get_backend())
        self._timeout, self._owned = timeout.total_seconds(), owned
        self._device = torch.device("cpu")
        if "nccl" in self.backend and "gloo" not in self.backend:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._failed: str | None = None
        self._calls = 0
        self._board = None
        self._board = self._make_board()

    # --- what ranks exchange

    def add(self, tensor: Tensor) -> Tensor:
        """Add the tensors of all ranks, in place, and return the sum."""
        near = self._near(tensor)
        with self._listening():
            self._dist.all_reduce(near)
        return tensor if near is tensor else tensor.copy_(near)

    def _near(self, tensor: Tensor) -> Tensor:
        """Return a tensor where the backend takes it: nccl takes none on the host."""
        return tensor.to(self._device) if self._device.type == "cuda" else tensor

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """Return the sums of numbers over all ranks, in double precision."""
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        return tuple(self.add(tensor).tolist())

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return self.sums(float(flag))[0] > 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks in order."""
        found: list[Any] = [None] * self.size
        with self._listening():
            self._dist.all_gather_object(found, value)
        return found

    def gather_rows(self, rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Return the rows of all ranks, in order of ranks."""
        if counts is None:
            sizes = torch.zeros(self.size, dtype=torch.int64, device=self._device)
            sizes[self.rank] = len(rows)
            counts = [int(n) for n in self.add(sizes).tolist()]
        most = max(counts)
        # gloo gathers nothing that is on a card.
        padded = rows.new_zeros((most, *rows.shape[1:]), device=self._device)
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in counts]
        with self._listening():
            self._dist.all_gather(found, padded)
        joined = torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])
        return joined.to(rows.device)

    def from_first(self, value: T) -> T:
        """Return rank 0's value."""
        found: list[Any] = [value]
        with self._listening():
            self._dist.broadcast_object_list(found, src=0)
        return found[0]

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors by rank 0's."""
        with self._listening(), torch.no_grad():
            for tensor in tensors:
                whole = self._near(tensor.detach()).contiguous()
                self._dist.broadcast(whole, src=0)
                if whole.data_ptr() != tensor.data_ptr():
                    tensor.copy_(whole)

    def share_random_states(self) -> None:
        """Let all ranks draw the random numbers that rank 0 draws next."""
        states = random_states()
        states.pop("cuda", None)  # ranks have different cards
        states = self.from_first(states)
        if self.rank:
            set_random_states(states)

    # --- errors

    @contextmanager
    def taking_part(self) -> Iterator[None]:
        """Tell the other ranks if an error ends the block on this one.

        If all ranks end with an error, such as that of a wrong setting, nobody is waiting, and they
        can go on together afterwards. Otherwise this rank leaves.

        Raises:
            RankFailedError: If an earlier training has lost a rank.
        """
        self._calls += 1
        if self._failed is not None:
            raise RankFailedError(
                f"{self._failed} These processes cannot train together any more: start the job "
                "again. A run directory continues where it stopped."
            )
        try:
            yield
        except RankFailedError:
            raise
        except BaseException as error:
            if not self._all_failed():
                self._leave(error)
            raise

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Turn the error of a lost connection into one that names the rank."""
        if self._failed is not None:
            raise RankFailedError(self._failed)
        try:
            yield
        except (RuntimeError, ConnectionError) as error:
            if isinstance(error, SbiIgniteError):
                raise
            self._inquire(error)

    def _all_failed(self) -> bool:
        """Return whether all ranks have failed in this call, after a moment for them to say so."""
        name, until = f"failed/{self._calls}", time.monotonic() + self._patience

        def ask(board: Any) -> bool:
            board.add(name, 1)
            while time.monotonic() < until:
                if board.add(name, 0) == self.size:
                    return True
                time.sleep(0.02)
            return False

        return bool(self._at_board(ask))

    def _leave(self, error: BaseException) -> None:
        """Say why this rank ends, and close its connections, so that the others notice at once."""
        words = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        self._failed = f"Rank {self.rank} (this one) ended with {words}"
        self._close()
        self._at_board(lambda board: self._say_last_words(board, words))

    def _inquire(self, error: Exception) -> NoReturn:
        """Find out which ranks are missing, and raise an error that names them."""
        self._close()  # so that those who wait for this rank notice too
        answer = self._at_board(self._ask_around)
        if self._board is None:
            answer = (self._others if self.size == 2 else [], {})
        # Without an answer it is rank 0, which has the board, that is gone.
        silent, ended = ([0] if self.rank else [], {}) if answer is None else answer
        self._failed = self._words(error, silent, ended)
        raise RankFailedError(self._failed, ranks=tuple(ended or silent)) from error

    def _say_last_words(self, board: Any, words: str) -> None:
        board.set(f"error/{self.rank}", words)
        self._stay_for_readers(board, self._others)

    def _ask_around(self, board: Any) -> tuple[list[int], dict[int, str]]:
        """Return which ranks say nothing, and the last words of those that have ended."""
        board.set(f"here/{self.rank}", "yes")
        silent, ended = self._others, {}
        until = time.monotonic() + self._patience
        while silent and not ended and time.monotonic() < until:
            silent = [rank for rank in silent if not board.check([f"here/{rank}"])]
            told = [rank for rank in silent if board.check([f"error/{rank}"])]
            ended = {rank: board.get(f"error/{rank}").decode() for rank in told}
            time.sleep(0.05)
        board.set(f"read/{self.rank}", "yes")
        self._stay_for_readers(board, [r for r in self._others if r not in (ended or silent)])
        return silent, ended

    def _stay_for_readers(self, board: Any, readers: Sequence[int]) -> None:
        """Keep the board, which is rank 0's, until the others have read it."""
        until = time.monotonic() + self._patience
        while self.rank == 0 and time.monotonic() < until:
            if all(board.check([f"read/{rank}"]) for rank in readers):
                return
            time.sleep(0.02)

    def _at_board(self, do: Callable[[Any], T]) -> T | None:
        """Return what is done at the board, or None if it does not answer."""
        answer: list[T] = []

        def ask() -> None:
            with contextlib.suppress(RuntimeError):
                answer.append(do(self._board))

        if self._board is None:
            return None
        # The board of a process that has been stopped keeps its readers waiting for ever.
        asking = threading.Thread(target=ask, daemon=True, name="sbi_ignite-board")
        asking.start()
        asking.join(2 * self._patience + 1.0)
        return answer[0] if answer else None

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def _words(self, error: Exception, silent: Sequence[int], ended: dict[int, str]) -> str:
        if ended:
            rank, words = next(iter(ended.items()))
            return f"Rank {rank} of {self.size} ended with {words}"
        said = str(error).strip().splitlines()[0]
        if not silent:
            return (
                f"The {self.size} ranks lost each other, although all of them still run. The "
                f"network between them failed, or one was busy for more than {self._timeout:g} s "
                f"(process_timeout); torch says: {said}"
            )
        named = f"Rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent))}"
        late = "imed out" in said or "timeout" in said.lower()
        how = (
            f"did not answer within {self._timeout:g} s (process_timeout): stopped, or busy with "
            "something else"
            if late
            else "ended without a word: killed, perhaps for want of memory"
        )
        return f"{named} of {self.size} {how}. torch says: {said}"

    @property
    def _patience(self) -> float:
        return min(MOST_FOR_INQUIRY, SHARE_FOR_INQUIRY * self._timeout)

    def _make_board(self) -> Any:
        """Return a store on rank 0 where ranks leave words, beside the group; None without one."""
        import torch.distributed as dist

        host = os.environ.get("MASTER_ADDR") or socket.gethostname()
        patience, board, port = timedelta(seconds=self._patience), None, 0
        if self.rank == 0:
            with contextlib.suppress(RuntimeError):
                board = dist.TCPStore(host, 0, None, True, patience, wait_for_workers=False)
                port = board.port
        host, port = self.from_first((host, port))
        if self.rank and port:
            with contextlib.suppress(RuntimeError):
                board = dist.TCPStore(host, port, None, False, patience, wait_for_workers=False)
        return board if all(self.gather(board is not None)) else None

    def _close(self) -> None:
        """Take the group down, which closes the connections to other ranks."""
        if self._owned and self._dist.is_initialized():
            with contextlib.suppress(RuntimeError, ValueError):
                self._dist.destroy_process_group()


_joined: Ranks | None = None


def join_world(device: str | torch.device | None = None, timeout: timedelta | None = None) -> World:
    """Return the processes that this one trains with; all of them must call it.

    A process group that exists, as under `ignite.distributed.Parallel`, is used. Otherwise, if
    `torchrun` or `srun` has started several processes, the group is made here: nccl for CUDA, where
    every process has a card of its own, else gloo. It is taken down when python ends.

    Args:
        device: Where training will run; under "cuda", each process takes its own card.
        timeout: How long a process waits for others, if the group is made here.

    Returns:
        `ONE` where there is only this process.
    """
    global _joined
    if _joined is not None and (_joined._failed is not None or _is_initialized()):
        return _joined
    if _is_initialized():
        import torch.distributed as dist

        if dist.get_world_size() == 1:
            return ONE
        _joined = Ranks(timeout or TIMEOUT, owned=False)
        return _joined
    launcher = _launcher()
    if launcher is None:
        return ONE
    _joined = _start(launcher, str(device or "cpu").startswith("cuda"), timeout or TIMEOUT)
    return _joined


def local_card(device: str | torch.device) -> str | torch.device:
    """Return the card of this process for "cuda", of which a launcher has numbered the processes.

    Args:
        device: A device, or its name; all others are returned as they are.
    """
    if str(device) != "cuda" or _launcher() is None or not torch.cuda.is_available():
        return device
    return torch.device("cuda", _local_rank() % torch.cuda.device_count())


def _is_initialized() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def _launcher() -> str | None:
    """Return which launcher has started several processes; None if none has."""
    known = os.environ
    if all(name in known for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return "torchrun" if known["WORLD_SIZE"] != "1" else None
    # Only srun sets this one: a batch script sees SLURM_NTASKS too, but runs once.
    if known.get("SLURM_STEP_NUM_TASKS", "1") != "1" and "SLURM_PROCID" in known:
        return "srun"
    return None


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def _local_size() -> int:
    """Return how many processes of the job run on this machine."""
    known = os.environ
    if "LOCAL_WORLD_SIZE" in known:
        return int(known["LOCAL_WORLD_SIZE"])
    per_node = known.get("SLURM_STEP_TASKS_PER_NODE", known.get("WORLD_SIZE", "1"))
    return max(1, int("".join(c for c in per_node.split(",")[0].split("(")[0] if c.isdigit())))


def _start(launcher: str, on_cuda: bool, timeout: timedelta) -> Ranks:
    """Make the process group that a launcher has prepared, and return this process's place."""
    seconds = timeout.total_seconds()
    waits = seconds - min(MOST_FOR_INQUIRY, SHARE_FOR_INQUIRY * seconds)
    backend = "gloo"
    if on_cuda and torch.cuda.is_available():
        torch.cuda.set_device(_local_rank() % torch.cuda.device_count())
        backend = "nccl" if torch.cuda.device_count() >= _local_size() else "gloo"
    if launcher == "torchrun":
        # ignite.distributed.initialize refuses torchrun inside a Slurm job of several nodes, where
        # Slurm counts launchers and torchrun counts processes.
        import torch.distributed as dist

        dist.init_process_group(backend, timeout=timedelta(seconds=waits))
    else:
        import ignite.distributed as idist

        idist.initialize(backend, timeout=timedelta(seconds=waits))
    ranks = Ranks(timeout, owned=True)
    atexit.register(ranks._close)
    _set_threads(ranks)
    return ranks


def _set_threads(ranks: Ranks) -> None:
    """Share the processors of a machine out among its processes, and say so once."""
    if "OMP_NUM_THREADS" in os.environ:  # torchrun sets it to 1 unless the user has
        why = "OMP_NUM_THREADS"
    else:
        here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        own = os.environ.get("SLURM_CPUS_PER_TASK")
        threads = int(own) if own else max(1, (here or 1) // _local_size())
        torch.set_num_threads(threads)
        why = "SLURM_CPUS_PER_TASK" if own else "processors / processes; OMP_NUM_THREADS decides"
    if ranks.rank == 0:
        _logger.warning(
            "%d processes train one network (%s). batch_size counts the rows of all of them; each "
            "has %d thread%s (%s).",
            ranks.size,
            ranks.backend,
            torch.get_num_threads(),
            "s" * (torch.get_num_threads() != 1),
            why,
        )
