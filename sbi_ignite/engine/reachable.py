"""Objects come in; a value goes out that changes when Python state that they can reach changes.

Values of tensors do not count, only which tensors there are: whoever computes with a tensor sees
its present values anyway.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
MAX_DEPTH = 80
"""How many objects deep to look; a network of a few hundred layers in a row."""


@dataclass(frozen=True, eq=False)
class _Same:
    """An object that counts as equal to itself only; holding it keeps its identity from reuse."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment] # nothing looks these up


def fingerprint(*roots: Any) -> list[Any]:
    """Return a value to compare with an earlier one of the same objects.

    Args:
        roots: Modules, functions and other objects, followed through attributes, containers and
            closures.

    Returns:
        Nested lists, equal as long as nothing has been replaced, added, removed or switched.
    """
    seen: dict[int, Any] = {}
    return [_look(root, seen, 0) for root in roots]


def _look(value: Any, seen: dict[int, Any], depth: int) -> Any:
    if isinstance(value, PLAIN):
        return (type(value), repr(value) if isinstance(value, float) else value)
    if isinstance(value, Tensor):
        return (_Same(value), value.shape, value.dtype, value.device, value.requires_grad)
    if id(value) in seen or depth > MAX_DEPTH or isinstance(value, type | ModuleType):
        return _Same(value)
    seen[id(value)] = value
    return (_Same(value), *_inside(value, seen, depth + 1))


def _inside(value: Any, seen: dict[int, Any], depth: int) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return [(key, _look(item, seen, depth)) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [_look(item, seen, depth) for item in value]
    if isinstance(value, np.ndarray):
        return [value.tobytes()] if value.dtype != object else []
    if isinstance(value, random.Random):
        return [value.getstate()]
    if isinstance(value, np.random.Generator):
        return [repr(value.bit_generator.state)]
    if isinstance(value, torch.Generator):
        return [bytes(value.get_state().numpy())]
    if isinstance(value, MethodType):
        return [_look(part, seen, depth) for part in (value.__func__, value.__self__)]
    if isinstance(value, FunctionType):
        return _function(value, seen, depth)
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict):
        return []
    return [(key, _look(item, seen, depth)) for key, item in attributes.items()]


def _function(function: FunctionType, seen: dict[int, Any], depth: int) -> Iterable[Any]:
    """Look at what a function closes over, and at the names of its module that it uses."""
    for cell in function.__closure__ or ():
        try:
            yield _look(cell.cell_contents, seen, depth)
        except ValueError:  # not filled yet
            yield None
    yield _look(function.__defaults__, seen, depth)
    yield _look(function.__kwdefaults__, seen, depth)
    yield _look(function.__dict__, seen, depth)
    names = function.__globals__
    for name in function.__code__.co_names:
        if name in names and isinstance(names[name], (*PLAIN, list, dict, set, Tensor)):
            yield _look(names[name], seen, depth)
