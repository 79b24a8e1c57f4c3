"""The states of all random generators: python's, numpy's and torch's."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """Return the states of python's, numpy's and torch's generators, as tensors and plain data."""
    put_awaited_in_force()
    states = {
        "python": random.getstate(),
        "numpy": _as_plain(np.random.get_state()),
        "torch": torch.get_rng_state(),
    }
    # Asking would start CUDA, on every card, for a training that has nothing to do with it.
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Bring all generators to states that `random_states` returned."""
    put_awaited_in_force()
    random.setstate(_as_tuple(states["python"]))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def draws_of(*numbers: int) -> Iterator[None]:
    """Draw, inside the block, what these numbers alone decide; all states are put back after it.

    Args:
        numbers: Non-negative integers, such as a seed and the number of a batch.

    Example:
        >>> with draws_of(0, 1):
        ...     first = torch.rand(1)
        >>> with draws_of(0, 1):
        ...     same = torch.rand(1)
        >>> torch.equal(first, same)
        True
    """
    before = random_states()
    try:
        seed_all(np.random.SeedSequence(numbers))
        yield
    finally:
        set_random_states(before)


def seed_all(sequence: np.random.SeedSequence) -> None:
    """Seed python's, numpy's and torch's global generators from one sequence of seeds.

    Args:
        sequence: Numpy's sequence, whose children never collide.
    """
    of_torch, of_numpy, of_python = sequence.spawn(3)
    high, low = of_torch.generate_state(2)
    torch.manual_seed(int(high) << 31 ^ int(low))
    np.random.seed(of_numpy.generate_state(8))
    random.seed(of_python.generate_state(8).tobytes())


def _as_plain(numpy_state: Any) -> tuple[Any, ...]:
    """Return numpy's state without its arrays, which torch.load(weights_only=True) refuses."""
    name, keys, position, has_gauss, cached = numpy_state
    return name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached


def _as_tuple(value: Any) -> Any:
    """Return nested lists as the nested tuples that python's generator insists on."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


class OwnRandomState:
    """The random states of one of several computations that take turns in a process.

    It begins with the states that are in force when it is made. A turn costs tens of
    microseconds, of which a training may have hundreds in an epoch.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> own = OwnRandomState()
        >>> first = torch.rand(1)
        >>> with own.in_force():
        ...     same = torch.rand(1)
        >>> torch.equal(first, same)
        True
    """

    def __init__(self) -> None:
        self._numpy = _NumpyState()
        self._take()
        self._numpy.detach()

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Draw from these states inside the block, and from those before it afterwards."""
        if not _in_force:  # the process's own
            _in_force.append(OwnRandomState.__new__(OwnRandomState))
            _in_force[0]._numpy = _NumpyState()
        before = _in_force[-1]
        before._take()
        self._put()
        _in_force.append(self)
        try:
            yield
        finally:
            self._take()
            _in_force.pop()
            before._put()
            if len(_in_force) == 1:
                _in_force.clear()

    @contextmanager
    def in_force_when_asked(self) -> Iterator[None]:
        """Put these states in force only when something asks for states inside the block.

        For turns that are known to draw nothing, which saves the time of an exchange.
        """
        with ExitStack() as turn:
            _awaited.append((self, turn))
            try:
                yield
            finally:
                if _awaited and _awaited[-1][0] is self:
                    _awaited.pop()

    def state_dict(self) -> dict[str, Any]:
        """Return the states outside of `in_force`, as `random_states` does."""
        states = {
            "python": self._python,
            "numpy": _as_plain(self._numpy.state()),
            "torch": self._torch,
        }
        return states if self._cuda is None else {**states, "cuda": self._cuda}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Go on from states that `random_states` returned."""
        before = random_states()
        set_random_states(states)
        self._numpy = _NumpyState()
        self._take()
        self._numpy.detach()
        set_random_states(before)

    def _take(self) -> None:
        """Remember the states that are in force."""
        self._python = random.getstate()
        self._torch = torch.get_rng_state()
        started = torch.cuda.is_available() and torch.cuda.is_initialized()
        self._cuda = torch.cuda.get_rng_state_all() if started else None
        self._numpy.take()

    def _put(self) -> None:
        """Put these states in force."""
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        self._numpy.put()


def put_awaited_in_force() -> None:
    """Put the states in force that wait to be asked for, until their block ends; see there."""
    if _awaited:
        own, turn = _awaited.pop()
        turn.enter_context(own.in_force())


_awaited: list[tuple[OwnRandomState, ExitStack]] = []
"""The states that are put in force when they are asked for; at most one."""

_in_force: list[OwnRandomState] = []
"""Whose states are in force, innermost last; the first are the process's own."""


class _NumpyState:
    """State of numpy's global generator, exchanged as a whole.

    numpy copies a state of 624 numbers one by one, 0.07 ms each way. Its bit generator is exchanged
    in a microsecond, but does not include the second of a pair of normal numbers that is kept for
    the next draw; whether there is one is asked only if numbers were drawn.
    """

    def __init__(self) -> None:
        self._bits: Any = None
        self._seen = b""
        self._kept: tuple[int, float] = (1, 0.0)  # unknown

    def take(self) -> None:
        bits = np.random.get_bit_generator()  # type: ignore[attr-defined] # numpy's stubs lack it
        seen = _memory(bits)
        if bits is not self._bits or self._kept[0] or not seen or seen != self._seen:
            state: Any = np.random.get_state(legacy=False)
            self._kept = state["has_gauss"], state["gauss"]
        self._bits, self._seen = bits, seen

    def put(self) -> None:
        np.random.set_bit_generator(self._bits)  # type: ignore[attr-defined] # likewise
        if self._kept[0]:
            np.random.set_state(self.state())

    def detach(self) -> None:
        """Go on with a copy of the bit generator, which draws of others do not move."""
        self._bits = deepcopy(self._bits)

    def state(self) -> Any:
        """Return numpy's form of the state."""
        inside = self._bits.state["state"]
        return ("MT19937", inside["key"], inside["pos"], *self._kept)


def _memory(bits: Any) -> bytes:
    """Return the memory of a bit generator, by which it is seen whether it has been used."""
    if not isinstance(bits, np.random.MT19937):
        return b""
    return ctypes.string_at(bits.ctypes.state_address, _BYTES)


_BYTES = 624 * 4 + 4
"""Size of a Mersenne twister: 624 numbers and the position among them."""
