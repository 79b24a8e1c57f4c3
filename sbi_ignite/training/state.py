"""Take snapshots of all parts of a training that have state, and restore them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events

from sbi_ignite.callback import TrainingState
from sbi_ignite.handlers.stop_mid_epoch import ends_epoch
from sbi_ignite.random_state import random_states, set_random_states
from sbi_ignite.runs.snapshot import Snapshot

SHARE = 0.01
"""The part of a training's time that snapshots at ends of epochs may take. An exception undoes at
most a hundred times what a snapshot takes, or one epoch; Ctrl-C undoes nothing."""


class Saved(Protocol):
    """Anything that can be saved."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state."""
        ...


class Stateful(Saved, Protocol):
    """Anything that can be saved and continued."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Continue from a state."""
        ...


def states_of(parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """Return every part's state and the random states; tensors are live: later steps change them.

    Args:
        parts: Names and objects; their states hold tensors and plain data only.
    """
    return {**{name: part.state_dict() for name, part in parts.items()}, "random": random_states()}


def restore(parts: Mapping[str, Stateful], states: Mapping[str, Any]) -> None:
    """Restore every part, and the random states, from a snapshot.

    Args:
        parts: The objects of this training, under the same names.
        states: Their states, see `Snapshot.states`.
    """
    for name, part in parts.items():
        if name in states:
            part.load_state_dict(_frozen(states[name]))
    set_random_states(states["random"])


_PLAIN = frozenset((int, float, bool, str, bytes, complex, type(None)))


def _frozen(state: Any) -> Any:
    """Copy containers and tensors, so that later steps change neither side."""
    kind = type(state)
    if kind in _PLAIN:
        return state
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {name: _frozen(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        # A generator's state and a long history are thousands of numbers, copied every epoch.
        if _PLAIN.issuperset(map(type, state)):
            return kind(state)
        return kind(_frozen(value) for value in state)
    return deepcopy(state)


class Snapshots:
    """Takes snapshots of a training, at most one per moment.

    Args:
        parts: The parts of the training that have state.
        state: The training's numbers.
        keep: Receives snapshots of the beginning, of the end, and of as many ends of epochs in
            between as fit into `SHARE` of the time; also all that others ask for.
        extra: More to save, which `restore` does not put back.
        mid_epoch: Whether a training can be continued between two batches; if not, its last
            snapshot is that of an epoch's end.
    """

    def __init__(
        self,
        parts: Mapping[str, Stateful],
        state: TrainingState,
        keep: Callable[[Snapshot], None] | None = None,
        extra: Mapping[str, Saved] | None = None,
        mid_epoch: bool = True,
    ) -> None:
        self._parts, self._state, self._keep = parts, state, keep
        self._mid_epoch = mid_epoch
        self._engine: Engine | None = None
        self._extra = dict(extra or {})
        self._latest: Snapshot | None = None
        self._moment = (-1, -1)
        self._due = 0.0

    @property
    def up_to_date(self) -> bool:
        """Whether training can end between two batches without losing a finished epoch."""
        return self._mid_epoch or self._keep is None or self._moment[0] == self._state.epoch

    def attach(self, engine: Engine) -> None:
        """Listen to the training engine; attach it after what changes at the end of an epoch."""
        self._engine = engine
        if self._keep is not None:
            engine.add_event_handler(Events.STARTED, self.take)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def conclude(self) -> None:
        """Keep a snapshot of the end of the training, if it can be continued from there."""
        if self._keep is not None and (self._mid_epoch or self._is_between_epochs()):
            self.take()

    def take(self) -> Snapshot:
        """Return a snapshot of the training as it is now."""
        moment = (self._state.epoch, self._state.iteration)
        if self._latest is None or moment != self._moment:
            began = time.perf_counter()
            extra = {name: part.state_dict() for name, part in self._extra.items()}
            self._latest = Snapshot.of({**states_of(self._parts), **extra}, self._latest)
            self._moment = moment
            if self._keep is not None:
                self._keep(self._latest)
            ended = time.perf_counter()
            self._due = ended + (ended - began) / SHARE
        return self._latest

    def _epoch_completed(self) -> None:
        if time.perf_counter() >= self._due:
            self.take()

    def _is_between_epochs(self) -> bool:
        engine = self._engine
        return engine is None or engine.state.epoch_length is None or ends_epoch(engine)
