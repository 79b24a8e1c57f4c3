"""A computation runs inside; what of it a recording could not repeat comes out, or an error.

A recording of tensor operations is the same computation as long as Python took no decision from a
value, wrote to no tensor of others and drew from no generator that the recording does not name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from sbi_ignite.engine.operations import operation

aten = torch.ops.aten

READS_IN_BULK = frozenset(
    ("numpy", "tolist", "data_ptr", "storage", "__array__", "__dlpack__", "__deepcopy__")
)
"""Methods by which values leave torch unseen by its dispatcher."""


class NotTraceable(Exception):  # noqa: N818 # says what is the matter, and never reaches users
    """Why a computation cannot be replaced by a recording of it."""


class Guards:
    """Values on which Python took decisions, and what they were.

    A recording holds for as long as all of them are what they were.
    """

    def __init__(self) -> None:
        self._read: list[tuple[Tensor, float | int | bool]] = []

    def __len__(self) -> int:
        return len(self._read)

    def add(self, tensor: Tensor, value: float | int | bool) -> None:
        """Note that a tensor of shape () was read."""
        self._read.append((tensor.clone(), value))

    def hold(self) -> Tensor:
        """Return whether all values are what they were, shape ()."""
        # A bool is compared as a number: TorchScript has no comparison of a tensor with a bool.
        held = [
            torch.eq(tensor, int(value) if isinstance(value, bool) else value)
            for tensor, value in self._read
        ]
        return held[0] if len(held) == 1 else torch.stack(held).all()


@contextmanager
def watched(own: Iterable[Tensor]) -> Iterator[Guards]:
    """Watch a computation.

    Args:
        own: Tensors that the computation may write to.

    Raises:
        NotTraceable: Before anything is done that a recording could not repeat.
    """
    guards = Guards()
    with _NoReadsInBulk(), _Watch(guards, own):
        yield guards


class _NoReadsInBulk(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS_IN_BULK:
            raise NotTraceable(f"it reads values by Tensor.{name}")
        return func(*args, **(kwargs or {}))


class _Watch(TorchDispatchMode):
    def __init__(self, guards: Guards, own: Iterable[Tensor]) -> None:
        super().__init__()
        self._guards = guards
        self._own = {_storage(tensor) for tensor in own}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            with _disable_current_modes():
                value = args[0].item()
            self._guards.add(args[0], value)
            return value
        _check_repeatable(func, args, kwargs)
        for tensor in _written(func, args, kwargs):
            if _storage(tensor) not in self._own:
                raise NotTraceable(f"it writes to a tensor that is not the network's ({func})")
        out = func(*args, **kwargs)
        given = {_storage(tensor) for tensor in _tensors(args)}
        self._own.update({_storage(tensor) for tensor in _tensors((out,))} - given)
        return out


def _check_repeatable(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if kwargs.get("generator") is not None:
        raise NotTraceable("it draws from a random generator of its own")
    if torch.Tag.data_dependent_output in func.tags:
        raise NotTraceable(f"it reads values by {func}")
    if torch.Tag.dynamic_output_shape in func.tags and not _indexes_by_number(func, args):
        raise NotTraceable(f"shapes inside it depend on values ({func})")


def _indexes_by_number(func: Any, args: Sequence[Any]) -> bool:
    if func is not aten.index.Tensor:
        return False
    masks = (torch.bool, torch.uint8)
    return not any(index is not None and index.dtype in masks for index in args[1])


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an operation writes to."""
    about = operation(func)
    for position in about.written:
        yield from _tensors((about.arguments[position].given(position, args, kwargs),))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments or results, those in lists included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _storage(tensor: Tensor) -> int:
    """Return what all views of the same memory share."""
    return tensor.untyped_storage()._cdata
