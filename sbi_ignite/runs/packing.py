"""Nested states full of small tensors come in; a few flat tensors and a text go out, and back.

Saving hundreds of small tensors one by one costs far more than their bytes. Here all tensors of
one dtype become one flat tensor, copied in the same stroke, and everything else becomes a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_ignite.exceptions import CheckpointError

LONG = 16
"""Number of plain numbers from which on a list is stored as a tensor."""


def pack(states: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the states as one text and one flat tensor per dtype.

    Args:
        states: Numbers, texts, None, tensors (any device), numpy arrays, and lists, tuples and
            mappings of these, nested as they like.

    Returns:
        "text": the structure as JSON; "tensors": dtype name to flat tensor on the CPU.

    Raises:
        CheckpointError: If something else is among them; the message says where.

    Example:
        >>> unpack(pack({"weight": torch.arange(3), "steps": (1, 2.5)}))
        {'weight': tensor([0, 1, 2]), 'steps': (1, 2.5)}
    """
    packer = _Packer()
    text = json.dumps(packer.encode(states, ()))
    return {"text": text, "tensors": packer.tensors()}


def unpack(packed: Mapping[str, Any]) -> Any:
    """Return the states that `pack` was given; mappings come back as dicts.

    Args:
        packed: What `pack` returned.
    """
    return _decode(json.loads(packed["text"]), packed["tensors"])


class _Packer:
    """Collects the tensors that it meets on its way through nested states."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[Tensor]] = {}
        self._sizes: dict[str, int] = {}

    def encode(self, value: Any, path: tuple[Any, ...]) -> Any:
        """Return what JSON can hold; a list is always a tag followed by its content."""
        kind = type(value)
        if value is None or kind in (bool, str, int, float):
            return value
        if isinstance(value, Tensor):
            return ["tensor", *self._add(value.detach(), path), list(value.shape)]
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, list | tuple):
            return self._sequence(value, path)
        if isinstance(value, np.ndarray):
            return ["array", *self._add(torch.from_numpy(value), path), list(value.shape)]
        if isinstance(value, np.generic):
            return self.encode(value.item(), path)
        for plain in (str, int, float):
            if isinstance(value, plain):
                return plain(value)
        raise CheckpointError(
            f"{'.'.join(map(str, path))}: a checkpoint holds numbers, texts, tensors and "
            f"containers of these, not {kind.__qualname__}. Let state_dict() return plain data."
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return one flat tensor on the CPU for every dtype."""
        return {name: _joined(pieces) for name, pieces in self._pieces.items()}

    def _mapping(self, value: Mapping[Any, Any], path: tuple[Any, ...]) -> Any:
        if all(type(key) is str for key in value):
            return {key: self.encode(item, (*path, key)) for key, item in value.items()}
        pairs = [
            [self.encode(key, (*path, key)), self.encode(item, (*path, key))]
            for key, item in value.items()
        ]
        return ["mapping", pairs]

    def _sequence(self, value: list[Any] | tuple[Any, ...], path: tuple[Any, ...]) -> Any:
        tag = "list" if isinstance(value, list) else "tuple"
        kinds = set(map(type, value)) if len(value) >= LONG else set()
        if kinds == {float}:
            return [f"numbers-{tag}", *self._add(torch.tensor(value, dtype=torch.float64), path)]
        if kinds == {int} and min(value) >= -(2**63) and max(value) < 2**63:
            return [f"numbers-{tag}", *self._add(torch.tensor(value), path)]
        return [tag, [self.encode(item, (*path, number)) for number, item in enumerate(value)]]

    def _add(self, tensor: Tensor, path: tuple[Any, ...]) -> tuple[str, int, int]:
        """Queue a tensor and return its dtype, the place of its first element and its length."""
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise CheckpointError(f"{'.'.join(map(str, path))}: only dense tensors can be saved.")
        name = str(tensor.dtype).removeprefix("torch.")
        begin, size = self._sizes.get(name, 0), tensor.numel()
        self._pieces.setdefault(name, []).append(tensor.reshape(-1))
        self._sizes[name] = begin + size
        return name, begin, size


def _joined(pieces: list[Tensor]) -> Tensor:
    """Concatenate on each device first, so that data crosses between devices in one piece each."""
    with torch.no_grad():
        if len({piece.device for piece in pieces}) == 1:
            return torch.cat(pieces).cpu()
        return torch.cat([piece.cpu() for piece in pieces])


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what the tagged value stands for."""
    if isinstance(value, dict):
        return {key: _decode(item, tensors) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    tag, *rest = value
    if tag == "mapping":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in rest[0]}
    if tag in ("list", "tuple"):
        items = [_decode(item, tensors) for item in rest[0]]
        return items if tag == "list" else tuple(items)
    name, begin, size, *shape = rest
    flat = tensors[name][begin : begin + size]
    if tag.startswith("numbers"):
        return flat.tolist() if tag == "numbers-list" else tuple(flat.tolist())
    own = flat.clone().reshape(shape[0])
    return own.numpy() if tag == "array" else own
