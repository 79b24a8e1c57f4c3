"""Fingerprint the Python state that objects can reach, to notice when it changes.

The values of tensors do not count, only which tensors there are: a computation sees the current
values of a tensor anyway.
"""

from __future__ import annotations

import operator
import random
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
COMPARED = frozenset(PLAIN) - {float, complex}
"""Types whose values are their own fingerprints; a NaN equals nothing, not even itself."""
MAX_DEPTH = 80
"""How many levels of objects to follow; a chain of a few hundred layers is less deep."""


class Fingerprint:
    """What a set of objects can reach, for comparison with what they reach later.

    Args:
        roots: Modules, functions and other objects, followed through attributes, containers and
            closures.

    Example:
        >>> net = torch.nn.Dropout(0.5)
        >>> before = Fingerprint(net)
        >>> net.p = 0.1
        >>> Fingerprint(net) == before
        False
    """

    __hash__ = None  # type: ignore[assignment] # it describes what changes

    def __init__(self, *roots: Any) -> None:
        # Identities are compared; holding the objects keeps their ids from being reused.
        self._held: dict[int, Any] = {}
        self._roots = roots
        self._found = [_look(root, self._held, 0) for root in roots]
        self._noted = _Noted(self._held.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self._found == other._found

    def holds(self) -> bool:
        """Return whether a new fingerprint would be equal to this one.

        If nothing has changed, a fraction of the work suffices: containers hold the same objects,
        and each of these has been looked at.
        """
        return self._noted.holds() or self._found == [_look(root, {}, 0) for root in self._roots]


class _Noted:
    """What objects held when they were looked at, arranged for a fast comparison.

    Args:
        values: The objects.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self._owners: list[Any] = []
        self._attributes: list[dict[str, Any]] = []
        self._empty: list[Any] = []
        self._dicts: list[dict[Any, Any]] = []
        self._containers: list[tuple[Any, list[Any]]] = []
        self._tensors: list[Tensor] = []
        self._described: list[Any] = []
        for value in values:
            self._note(value)
        self._keys = list(chain.from_iterable(self._dicts))
        self._values = list(_values_of(self._dicts))
        self._lengths = list(map(len, self._dicts))
        self._kinds = list(map(_KIND, self._tensors))
        self._descriptions = list(map(_description, self._described))

    def _note(self, value: Any) -> None:
        if isinstance(value, Mapping | list | set | FunctionType):
            self._note_container(value)
        elif isinstance(value, Tensor):
            self._tensors.append(value)
        elif isinstance(value, _DESCRIBED):
            self._described.append(value)
        # Immutable holders have been looked into, and what they hold is noted by itself.
        elif not isinstance(value, tuple | frozenset | type | ModuleType | MethodType):
            attributes = getattr(value, "__dict__", None)
            if isinstance(attributes, dict):
                self._owners.append(value)
                self._attributes.append(attributes)
                self._note_container(attributes)

    def _note_container(self, container: Any) -> None:
        if not container:  # a network has a thousand empty dicts for unregistered hooks
            self._empty.append(container)
        elif type(container) in _PLAIN_DICTS:
            self._dicts.append(container)
        else:
            self._containers.append((container, list(_items(container))))

    def holds(self) -> bool:
        """Return whether all of them still hold the same objects and are of the same kind."""
        return (
            not any(self._empty)
            and all(map(operator.is_, map(_ATTRIBUTES, self._owners), self._attributes))
            and list(map(len, self._dicts)) == self._lengths
            and all(map(operator.is_, chain.from_iterable(self._dicts), self._keys))
            and all(map(operator.is_, _values_of(self._dicts), self._values))
            and all(_holds(container, items) for container, items in self._containers)
            and list(map(_KIND, self._tensors)) == self._kinds
            and list(map(_description, self._described)) == self._descriptions
        )


_ATTRIBUTES = operator.attrgetter("__dict__")
_PLAIN_DICTS = (dict, OrderedDict)
_KIND = operator.attrgetter("shape", "dtype", "device", "requires_grad")
_DESCRIBED = np.ndarray | random.Random | np.random.Generator | torch.Generator
"""Objects that are known by a description of what is in them."""


def _values_of(dicts: Iterable[dict[Any, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(_VALUES, dicts))


_VALUES = operator.methodcaller("values")


def _items(container: Any) -> Iterable[Any]:
    """Return a mapping's keys and values, what a function can reach, or the items of the rest."""
    if isinstance(container, list | tuple | set | frozenset):
        return container
    if isinstance(container, FunctionType):
        return parts_of_function(container)
    return chain(container, container.values())


def _holds(container: Any, items: list[Any]) -> bool:
    """Return whether a container has the same items as before, by identity."""
    now = list(_items(container))
    return len(now) == len(items) and all(map(operator.is_, now, items))


def _description(value: Any) -> Any:
    """Return a value that changes when an object that is known by a description changes."""
    return _inside(value, {}, 0)


def _look(value: Any, held: dict[int, Any], depth: int) -> Any:
    kind = type(value)
    if kind in COMPARED:
        return value if kind is str else (kind, value)
    if isinstance(value, PLAIN):
        return kind, repr(value)
    identity = id(value)
    if kind in _PLAIN_DICTS and not value:
        held[identity] = value
        return ()
    if isinstance(value, Tensor):
        held[identity] = value
        return identity, *_KIND(value)
    if identity in held or depth > MAX_DEPTH or isinstance(value, type | ModuleType):
        held[identity] = value
        return identity
    held[identity] = value
    return identity, *_inside(value, held, depth + 1)


def _inside(value: Any, held: dict[int, Any], depth: int) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return [(key, _look(item, held, depth)) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [_look(item, held, depth) for item in value]
    if isinstance(value, np.ndarray):
        return [_digest(value)] if value.dtype != object else []
    if isinstance(value, random.Random):
        return [value.getstate()]
    if isinstance(value, np.random.Generator):
        return [repr(value.bit_generator.state)]
    if isinstance(value, torch.Generator):
        return [bytes(value.get_state().numpy())]
    if isinstance(value, MethodType):
        return [_look(part, held, depth) for part in (value.__func__, value.__self__)]
    if isinstance(value, FunctionType):
        return _function(value, held, depth)
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict):
        return []
    return [(key, _look(item, held, depth)) for key, item in attributes.items()]


def _digest(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    """Return a value that changes with an array's values, without keeping a copy of them."""
    return array.shape, array.dtype.str, zlib.crc32(np.ascontiguousarray(array).data.cast("B"))


def _function(function: FunctionType, held: dict[int, Any], depth: int) -> Iterable[Any]:
    """Look at what a function closes over, and at the names of its module that it uses."""
    return [_look(part, held, depth) for part in parts_of_function(function)]


def parts_of_function(function: FunctionType) -> Iterator[Any]:
    """Yield the objects that a function can reach, in a fixed order."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            yield None
    yield function.__defaults__
    yield function.__kwdefaults__
    yield function.__dict__
    names = function.__globals__
    for name in function.__code__.co_names:
        if name in names and isinstance(names[name], (*PLAIN, list, dict, set, Tensor)):
            yield names[name]
