"""Refuse operations that a recording cannot repeat, and guard decisions made from values.

A recording of tensor operations is the same computation as long as Python made no decision based on
a value, wrote to no foreign tensor and drew from no generator that the recording does not name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sbi_ignite.capture.operations import Operation
from sbi_ignite.capture.private_torch import storage_of

aten = torch.ops.aten

READS_IN_BULK = frozenset(
    ("numpy", "tolist", "data_ptr", "storage", "__array__", "__dlpack__", "__deepcopy__")
)
"""Methods that take values out of torch without its dispatcher noticing."""


class NotTraceable(Exception):  # noqa: N818 # says what is wrong, and never reaches users
    """Why a computation cannot be replaced by a recording of it."""


class Guards:
    """The tensors whose values Python has read to make decisions, and those values.

    A recording is valid for as long as none of them has changed.
    """

    def __init__(self) -> None:
        self._read: list[tuple[Tensor, float | int | bool]] = []

    def __len__(self) -> int:
        return len(self._read)

    def add(self, tensor: Tensor, value: float | int | bool) -> None:
        """Record the value read from a tensor of shape (), which nothing else may write to."""
        self._read.append((tensor, value))

    def hold(self) -> Tensor:
        """Return whether all values are unchanged, shape ()."""
        # A bool is compared as a number: TorchScript has no comparison of a tensor with a bool.
        held = [
            torch.eq(tensor, int(value) if isinstance(value, bool) else value)
            for tensor, value in self._read
        ]
        return held[0] if len(held) == 1 else torch.stack(held).all()


class NoReadsInBulk(TorchFunctionMode):
    """Refuse, inside the block, methods that take values out of torch past its dispatcher."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, unless it is one of these methods."""
        name = getattr(func, "__name__", "")
        if name in READS_IN_BULK:
            raise NotTraceable(f"it reads values by Tensor.{name}")
        return func(*args, **(kwargs or {}))


class Writable:
    """The tensors that a computation may write to: the network's, and those it creates.

    Args:
        own: Tensors of the network.
    """

    def __init__(self, own: Iterable[Tensor]) -> None:
        self._own = {storage_of(tensor) for tensor in own}
        self._made: set[int] = set()

    def check(
        self, func: Any, about: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Refuse an operation that writes to any other tensor, before it runs.

        Raises:
            NotTraceable: If it does, naming the operation.
        """
        for tensor in _written(about, args, kwargs):
            storage = storage_of(tensor)
            if storage not in self._own and storage not in self._made:
                raise NotTraceable(f"it writes to a tensor that is not the network's ({func})")

    def add(self, results: Any, about: Operation, args: Sequence[Any]) -> None:
        """Record what an operation has created; views of its arguments do not count."""
        if about.returns_views:
            return
        given = {storage_of(tensor) for tensor in _tensors(args)}
        self._made.update({storage_of(tensor) for tensor in _tensors((results,))} - given)

    def discard(self, tensor: Tensor) -> None:
        """Take note of a tensor that was not created here, where one that was may have been."""
        self._made.discard(storage_of(tensor))


def check_repeatable(
    func: Any, about: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Refuse an operation that would not be the same for another batch.

    Raises:
        NotTraceable: If it would not, saying why.
    """
    if kwargs.get("generator") is not None:
        raise NotTraceable("it draws from a random generator of its own")
    if about.reads:
        raise NotTraceable(f"it reads values by {func}")
    if about.shapes_by_values and not _indexes_by_number(func, args):
        raise NotTraceable(f"shapes inside it depend on values ({func})")


def _indexes_by_number(func: Any, args: Sequence[Any]) -> bool:
    if func is not aten.index.Tensor:
        return False
    masks = (torch.bool, torch.uint8)
    return not any(index is not None and index.dtype in masks for index in args[1])


def _written(about: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an operation writes to."""
    for position in about.written:
        yield from _tensors((about.arguments[position].given(position, args, kwargs),))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments or results, those in lists included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
