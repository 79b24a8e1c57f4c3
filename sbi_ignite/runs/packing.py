"""Pack nested states full of small tensors into a few flat tensors and a text, and unpack them.

Saving hundreds of small tensors one by one costs far more than their bytes. Here all tensors of
one dtype become one flat tensor, copied in the same step, and everything else becomes a text.
The text names the tensors in the order in which they lie in the flat ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from sbi_ignite.exceptions import CheckpointError
from sbi_ignite.optim.private_torch import joined

LONG = 16
"""A list of at least this many plain numbers is stored as a tensor."""


@dataclass(frozen=True)
class Packed:
    """A copy of nested states that later changes of the original do not reach.

    Attributes:
        tree: The structure: plain data, lists of which are a tag followed by their content.
        tensors: All tensors, one flat tensor on the CPU per dtype, by the dtype's name.
        others: Copies of all other objects, which only memory can hold, with their places.
    """

    tree: Any
    tensors: Mapping[str, Tensor]
    others: Sequence[tuple[str, object]] = ()

    @classmethod
    def of(cls, states: Mapping[str, Any]) -> Packed:
        """Pack states.

        Args:
            states: Numbers, texts, None, tensors (any device), numpy arrays, and lists, tuples and
                mappings of these, nested in any way; and objects that can be copied.
        """
        packer = _Packer()
        with torch.no_grad():
            tree = packer.encode(states)
            others = [(next(_places(states, o, ""), ""), deepcopy(o)) for o in packer.others]
            return cls(tree, packer.tensors(), others)

    def unpacked(self) -> Any:
        """Return a copy of what was packed; mappings come back as dicts."""
        return _Unpacker(self.tensors, self.others).decode(self.tree)

    def require_savable(self) -> None:
        """Check that a file can hold it.

        Raises:
            CheckpointError: If there are other objects among the states; the message says where.
        """
        for where, culprit in self.others:
            raise CheckpointError(
                f"{where}: a checkpoint holds numbers, texts, dense tensors and containers of "
                f"these, not {type(culprit).__qualname__}. Let state_dict() return plain data."
            )

    def for_file(self) -> dict[str, Any]:
        """Return "text", the structure as JSON, and "tensors", as `unpack` takes them.

        Raises:
            CheckpointError: If a file cannot hold it.
        """
        self.require_savable()
        return {"text": json.dumps(self.tree), "tensors": self.tensors}


def pack(states: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the states as one text and one flat tensor per dtype.

    Args:
        states: As for `Packed.of`, without other objects.

    Raises:
        CheckpointError: If there are other objects among them; the message says where.

    Example:
        >>> unpack(pack({"weight": torch.arange(3), "steps": (1, 2.5)}))
        {'weight': tensor([0, 1, 2]), 'steps': (1, 2.5)}
    """
    return Packed.of(states).for_file()


def unpack(packed: Mapping[str, Any]) -> Any:
    """Return the states that `pack` was given; mappings come back as dicts.

    Args:
        packed: What `pack` returned.
    """
    return Packed(json.loads(packed["text"]), packed["tensors"]).unpacked()


class _Packer:
    """Collects the tensors that it meets on its way through nested states."""

    def __init__(self) -> None:
        self._pieces: dict[torch.dtype, list[Tensor]] = {}
        self._names: dict[torch.dtype, str] = {}
        self.others: list[object] = []

    def encode(self, value: Any) -> Any:
        """Return what JSON can hold; a list is always a tag followed by its content."""
        kind = type(value)
        if kind is float or kind is int or kind is str or kind is bool or value is None:
            return value
        if _is_dense(value):
            return ["tensor", self._add(value), value.shape]
        if kind is dict or isinstance(value, Mapping):
            return self._mapping(value)
        if isinstance(value, list | tuple):
            return self._sequence(value)
        if isinstance(value, np.ndarray) and value.dtype != object:
            return ["array", self._add(torch.from_numpy(value)), value.shape]
        if isinstance(value, np.generic):
            return self.encode(value.item())
        for plain in (str, int, float):
            if isinstance(value, plain):
                return plain(value)
        self.others.append(value)
        return ["other", len(self.others) - 1]

    def tensors(self) -> dict[str, Tensor]:
        """Return one flat tensor on the CPU for every dtype."""
        return {self._names[dtype]: _joined(pieces) for dtype, pieces in self._pieces.items()}

    def _mapping(self, value: Mapping[Any, Any]) -> Any:
        named = all(type(key) is str for key in value)
        items = list(value.values())
        # State dicts have hundreds of tensors: one entry for all of them, not one for each.
        if named and len(items) > 1 and all(map(_is_dense, items)):
            return ["tensors", list(value), *self._add_all(items)]
        if named:
            return {key: self.encode(item) for key, item in value.items()}
        keys = [self.encode(key) for key in value]
        rows = _table(items)
        if rows is not None:  # the state of an optimizer, by parameter
            return ["table", keys, list(items[0]), *self._add_all(rows)]
        return ["mapping", keys, [self.encode(item) for item in items]]

    def _sequence(self, value: list[Any] | tuple[Any, ...]) -> Any:
        tag = "list" if isinstance(value, list) else "tuple"
        if len(value) > 1 and all(map(_is_dense, value)):
            return [f"tensors-{tag}", *self._add_all(value)]
        kinds = set(map(type, value)) if len(value) >= LONG else set()
        if kinds == {float}:
            numbers = torch.from_numpy(np.array(value))
        elif kinds == {int} and min(value) >= -(2**63) and max(value) < 2**63:
            numbers = torch.from_numpy(np.array(value, dtype=np.int64))
        else:
            return [tag, [self.encode(item) for item in value]]
        return [f"numbers-{tag}", self._add(numbers), numbers.shape]

    def _add(self, tensor: Tensor) -> str:
        """Queue a tensor and return the name of its dtype."""
        dtype = tensor.dtype
        if dtype not in self._pieces:
            self._pieces[dtype] = []
            self._names[dtype] = str(dtype).removeprefix("torch.")
        self._pieces[dtype].append(tensor)
        return self._names[dtype]

    def _add_all(self, tensors: Sequence[Tensor]) -> tuple[list[str], list[Sequence[int]]]:
        """Queue tensors and return the names of their dtypes, and their shapes."""
        return list(map(self._add, tensors)), [tensor.shape for tensor in tensors]


def _table(items: Sequence[Any]) -> list[Tensor] | None:
    """Return the tensors of dicts that have the same names, row by row; None if not a table."""
    first = items[0] if len(items) > 1 else None
    if type(first) is not dict or not all(type(i) is dict and [*i] == [*first] for i in items):
        return None
    tensors = [tensor for item in items for tensor in item.values()]
    named = all(type(name) is str for name in first)
    return tensors if named and all(map(_is_dense, tensors)) else None


def _is_dense(value: object) -> TypeGuard[Tensor]:
    """Say whether something is a tensor that is stored densely, number by number."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _joined(pieces: list[Tensor]) -> Tensor:
    """Concatenate on each device first, so that data crosses between devices in one piece each."""
    if len(pieces) == 1:  # torch would return a view of it
        return pieces[0].reshape(-1).to("cpu", copy=True)
    if len({piece.device for piece in pieces}) == 1:
        return joined(pieces).cpu()
    return joined([piece.cpu() for piece in pieces])


def _places(value: Any, culprit: object, path: str) -> Iterator[str]:
    """Yield the paths at which an object occurs in nested states."""
    if value is culprit:
        yield path.removeprefix(".")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _places(item, culprit, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _places(item, culprit, f"{path}.{number}")


class _Unpacker:
    """Takes tensors from flat ones, in the order in which they were put there."""

    def __init__(
        self, tensors: Mapping[str, Tensor], others: Sequence[tuple[str, object]] = ()
    ) -> None:
        self._tensors, self._others = tensors, others
        self._places = dict.fromkeys(tensors, 0)

    def decode(self, value: Any) -> Any:
        """Return what a tagged value stands for."""
        if isinstance(value, dict):
            return {key: self.decode(item) for key, item in value.items()}
        if not isinstance(value, list):
            return value
        tag, content, *shape = value
        if tag == "mapping":
            items = map(self.decode, shape[0])
            return dict(zip(map(self.decode, content), items, strict=True))
        if tag == "tensors":
            return dict(zip(content, self._take_all(*shape), strict=True))
        if tag == "table":
            names, flow = shape[0], self._take_all(*shape[1:])
            return {self.decode(key): {name: next(flow) for name in names} for key in content}
        if tag in ("tensors-list", "tensors-tuple"):
            own = self._take_all(content, *shape)
            return list(own) if tag == "tensors-list" else tuple(own)
        if tag in ("list", "tuple"):
            items = [self.decode(item) for item in content]
            return items if tag == "list" else tuple(items)
        if tag == "other":
            return deepcopy(self._others[content][1])
        own = self._take(content, shape[0])
        if tag == "tensor":
            return own
        if tag == "array":
            return own.numpy()
        return own.tolist() if tag == "numbers-list" else tuple(own.tolist())

    def _take_all(self, names: Sequence[str], shapes: Sequence[list[int]]) -> Iterator[Tensor]:
        return map(self._take, names, shapes)

    def _take(self, name: str, shape: list[int]) -> Tensor:
        begin = self._places[name]
        end = self._places[name] = begin + math.prod(shape)
        return self._tensors[name][begin:end].clone().reshape(shape)
