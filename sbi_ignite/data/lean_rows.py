"""Rows for code that takes statistics of them, without the copies that it would make on its way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK = 2**18
"""Numbers to look at in one go."""


class LeanRows(Tensor):
    """Rows of which operations give what they give for plain ones, but few of them copy the rows.

    sbi's z-scoring asks every row for NaN and Inf, which takes a tensor of absolute values and two
    masks as large as the rows, and then copies the rows that are left, mostly all. Here rows are
    asked chunk by chunk, and a choice of all rows in their order is the rows themselves. Results of
    everything else are plain tensors, computed by torch from the same numbers in the same layout.

    Example:
        >>> rows = LeanRows.of(torch.randn(10, 3))
        >>> valid = ~torch.isnan(rows).any(dim=1)
        >>> rows[valid].data_ptr() == rows.data_ptr()
        True
    """

    _rows: Tensor

    @staticmethod
    def of(rows: Tensor) -> LeanRows:
        """Return rows, shape (num_rows, ...), that avoid copies; they share the memory."""
        lean = rows.as_subclass(LeanRows)
        lean._rows = rows
        return lean

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if type(first) is LeanRows:
            rest = args[1:]
            if func in _LOOKED_FOR and not rest and not kwargs:
                return _Marks.of(_plain(first), func)
            if func is Tensor.__getitem__ and not kwargs:
                return _chosen(_plain(first), _plain(rest[0]))
            if func in _SAME_ROWS:
                return _if_the_rows(func(_plain(first), *rest, **kwargs), _plain(first))
        return func(*map(_plain, args), **{name: _plain(v) for name, v in kwargs.items()})


class _Marks(Tensor):
    """Which numbers of some rows are NaN, or infinite: computed when it is asked for."""

    _rows: Tensor
    _func: Any

    @staticmethod
    def of(rows: Tensor, func: Any) -> _Marks:
        marks = rows[:0].as_subclass(_Marks)
        marks._rows, marks._func = rows, func
        return marks

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if type(first) is _Marks and func in (Tensor.any, torch.any) and _asks_by_row(args, kwargs):
            rows = first._rows
            if rows.ndim == 2 and len(rows):
                step = max(1, _CHUNK // max(1, rows.shape[1]))
                return torch.cat([first._func(chunk).any(dim=1) for chunk in rows.split(step)])
        return func(*map(_plain, args), **{name: _plain(v) for name, v in kwargs.items()})


def _asks_by_row(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return (args[1:], kwargs) in (((1,), {}), ((), {"dim": 1}))


_LOOKED_FOR = (torch.isnan, torch.isinf, Tensor.isnan, Tensor.isinf)

_SAME_ROWS = (Tensor.to, Tensor.cpu, Tensor.reshape, Tensor.flatten, Tensor.detach)
"""What may return the same numbers of the same rows."""


def _chosen(rows: Tensor, index: Any) -> Tensor:
    """Return `rows[index]`, without a copy if that is all rows in their order."""
    is_mask = isinstance(index, Tensor) and index.dtype is torch.bool and index.ndim == 1
    if is_mask and len(index) == len(rows) and rows.is_contiguous() and bool(index.all()):
        return LeanRows.of(rows)
    chosen = rows[index]
    is_choice = isinstance(index, Tensor) and index.dtype is torch.int64 and index.ndim == 1
    return LeanRows.of(chosen) if is_choice and index.device == rows.device else chosen


def _if_the_rows(result: Tensor, rows: Tensor) -> Tensor:
    """Return the same numbers of the same rows, moved or in another shape, as rows."""
    same = (result.dtype, result.numel()) == (rows.dtype, rows.numel())
    return LeanRows.of(result) if same and result.shape[:1] == rows.shape[:1] else result


def _plain(value: Any) -> Any:
    """Return plain tensors in place of rows and marks, also in lists and tuples."""
    if type(value) is LeanRows:
        return value._rows
    if type(value) is _Marks:
        return value._func(value._rows)
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value
