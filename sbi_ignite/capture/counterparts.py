"""Find the tensors of one network that are in the places of another one's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from sbi_ignite.capture.python_state import MAX_DEPTH, PLAIN, parts_of_function

_PLAIN = (*PLAIN, range)

MOST = 50_000
"""Objects after which a comparison is given up: they are more than a network's."""


def counterparts(first: Sequence[Any], other: Sequence[Any]) -> dict[int, Tensor] | None:
    """Compare what two sets of objects can reach, but for the values of tensors.

    Args:
        first: Modules, functions and other objects.
        other: As many others.

    Returns:
        For the id of each tensor that the first can reach, the tensor in its place; None if they
        differ in anything else, or hold something that cannot be compared. Where it is not None,
        code that knows nothing else does the same with both.

    Example:
        >>> import torch
        >>> one, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> counterparts([one], [other])[id(one.weight)] is other.weight
        True
        >>> counterparts([torch.nn.Dropout(0.1)], [torch.nn.Dropout(0.2)]) is None
        True
    """
    pairs = _Pairs()
    try:
        for one, another in zip(first, other, strict=True):
            pairs.compare(one, another, 0)
    except _DifferError:
        return None
    return pairs.tensors


class _DifferError(Exception):
    """Two objects are not alike."""


class _Pairs:
    """Objects that are in each other's places.

    Attributes:
        tensors: The tensors among them, by the ids of the first ones.
    """

    def __init__(self) -> None:
        self.tensors: dict[int, Tensor] = {}
        self._of_first: dict[int, Any] = {}
        self._of_other: dict[int, Any] = {}

    def compare(self, one: Any, other: Any, depth: int) -> None:
        """Raise unless two objects are alike."""
        if type(one) is not type(other) or depth > MAX_DEPTH:
            raise _DifferError
        if isinstance(one, _PLAIN):
            if one is not other and repr(one) != repr(other):
                raise _DifferError
            return
        known = id(one) in self._of_first
        if known or id(other) in self._of_other:
            if not known or self._of_first[id(one)] is not other:
                raise _DifferError
            return
        # Held, so that no other object gets an id that was seen.
        self._of_first[id(one)], self._of_other[id(other)] = other, one
        if len(self._of_first) > MOST:
            raise _DifferError
        if isinstance(one, Tensor):
            if _about(one) != _about(other):
                raise _DifferError
            self.tensors[id(one)] = other
            return
        parts, others = list(_inside(one, other)), list(_inside(other, one))
        if len(parts) != len(others):
            raise _DifferError
        for part, another in zip(parts, others, strict=True):
            self.compare(part, another, depth + 1)


def _about(tensor: Tensor) -> Any:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def _inside(value: Any, other: Any) -> Iterable[Any]:
    """Return what an object consists of.

    Raises:
        _DifferError: If it cannot be looked into, and is not the same as the other one.
    """
    kind = type(value)
    if kind in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return value
    if isinstance(value, dict):
        return chain(value.keys(), value.values(), _attributes(value))
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    if isinstance(value, FunctionType):
        if value.__code__ is not other.__code__ or value.__globals__ is not other.__globals__:
            raise _DifferError
        return parts_of_function(value)
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, np.ndarray) and value.dtype != object:
        if not np.array_equal(value, other, equal_nan=value.dtype.kind in "fc"):
            raise _DifferError
        return ()
    if isinstance(value, set | frozenset):
        if value != other or not all(isinstance(item, _PLAIN) for item in value):
            raise _DifferError
        return ()
    if not isinstance(value, type | ModuleType) and _hides_nothing(kind):
        return chain(value.__dict__.keys(), value.__dict__.values())
    if value is not other:
        raise _DifferError
    return ()


def _attributes(value: Any) -> Iterable[Any]:
    """Return the attributes of a container of a class of its own."""
    attributes = getattr(value, "__dict__", {})
    return chain(attributes.keys(), attributes.values())


def _hides_nothing(kind: type) -> bool:
    """Return whether objects of a class have nothing but attributes."""
    # What is written in C, or has slots, is larger than room for attributes and weak references.
    room = object.__basicsize__ + 2 * tuple.__itemsize__
    return kind.__basicsize__ <= room and kind.__dictoffset__ != 0
