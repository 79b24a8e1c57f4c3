"""Means and deviations of rows that are read by pieces, and a few rows that stand for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_ignite.data.table import Table
from sbi_ignite.random_state import draws_of

FEW_BYTES = 2**24
FEW_ROWS = 4_096
"""Size of the few rows that stand for all: at most so many bytes and rows, at least two rows."""

_MAX_COLUMNS = 256
_MAX_VALUES = 1_000
"""Up to these, every value of a column of whole numbers is among the few rows."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of every number in a row, over rows without NaN or Inf.

    Attributes:
        count: How many rows.
        mean: Shape of a row, float64.
        std: Shape of a row, float64; divided by count - 1.
    """

    count: int
    mean: Tensor
    std: Tensor


class MomentsSoFar:
    """Mean and deviation of rows that come piece by piece, relative to the first row.

    Relative to it, constant columns give exactly zero, and large offsets cost no precision.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._count = 0
        self._sum = self._squares = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Add rows, shape (num_rows, ...); those with NaN or Inf do not count."""
        flat = rows.flatten(1) if rows.ndim > 1 else rows[:, None]
        finite = flat.isfinite().all(dim=1)
        if not bool(finite.all()):
            rows = rows[finite]
        if not len(rows):
            return
        if self._first is None:
            self._first = rows[0].double().clone()
            self._sum = torch.zeros_like(self._first)
            self._squares = torch.zeros_like(self._first)
        # In pieces that fit a cache: a double copy of everything would be the largest there is.
        step = max(1, 2**18 // max(1, rows[0].numel()))
        for begin in range(0, len(rows), step):
            off = rows[begin : begin + step].double() - self._first
            self._sum += off.sum(dim=0)
            self._squares += off.square_().sum(dim=0)
        self._count += len(rows)

    def result(self) -> Moments:
        """Return the moments of all rows so far."""
        if self._first is None:
            empty = torch.full((), float("nan"), dtype=torch.float64)
            return Moments(0, empty, empty)
        mean = self._sum / self._count
        squares = (self._squares - self._count * mean.square()).clamp(min=0)
        std = (squares / max(1, self._count - 1)).sqrt()
        return Moments(self._count, self._first + mean, std)


Step = Callable[[Tensor], Tensor]


@dataclass
class RowsInUse:
    """The rows of a table on which a network is built, read in sequence.

    Attributes:
        table: The table.
        indices: Row numbers in use.
        seed: Decides what transforms draw while moments are computed.
    """

    table: Table
    indices: Tensor
    seed: int = 0
    _moments: dict[tuple[str, ...], Moments] = field(default_factory=dict)

    def pieces(self, fields: Sequence[str]) -> Iterator[tuple[Tensor, ...]]:
        """Yield all rows in use in ascending order, as a training sees them."""
        everything = self.table.transforms
        ascending = np.sort(self.indices.numpy())
        step = self.table.rows_in_piece
        for number, begin in enumerate(range(0, len(ascending), step)):
            rows = ascending[begin : begin + step]
            read = self.table.read(rows, None if everything else fields)
            if everything:
                with draws_of(self.seed, number):
                    drawn = self.table.transformed(rows, read)
                found = dict(zip(self.table.fields, drawn, strict=True))
                read = tuple(found[name] for name in fields)
            yield read

    def few_rows(self) -> tuple[RowSample, ...]:
        """Return a few rows of every field but the masks, which answer for all rows in use.

        One pass over all rows in use. Among the few are all values of columns of whole numbers.
        """
        names = tuple(name for name in self.table.fields if name != "masks")
        sums = [MomentsSoFar() for _ in names]
        kept: list[list[Tensor]] = [[] for _ in names]
        seen = [_Values() for _ in names]
        few = max(2, min(FEW_ROWS, FEW_BYTES // max(1, self.table.row_bytes)))
        num_pieces = max(1, -(-len(self.indices) // self.table.rows_in_piece))
        each = max(2, -(-few // num_pieces))
        for piece in self.pieces(names):
            count = len(piece[0])
            chosen = set(np.linspace(0, count - 1, min(each, count)).astype(int).tolist())
            for values, rows in zip(seen, piece, strict=True):
                chosen.update(values.new_rows(rows))
            at = torch.tensor(sorted(chosen))
            for into, so_far, rows in zip(kept, sums, piece, strict=True):
                into.append(rows[at])
                so_far.add(rows)
        samples = []
        for i, name in enumerate(names):
            self._moments[(name,)] = sums[i].result()
            samples.append(RowSample.of(torch.cat(kept[i]), self, name))
        return tuple(samples)

    def moments(self, name: str, steps: Sequence[tuple[str, Step]]) -> Moments:
        """Return the moments of a field, or of what steps make of its rows."""
        key = (name, *(text for text, _ in steps))
        if key not in self._moments:
            so_far = MomentsSoFar()
            for (rows,) in self.pieces((name,)):
                for _, step in steps:
                    rows = step(rows)
                so_far.add(rows)
            self._moments[key] = so_far.result()
        return self._moments[key]


class _Values:
    """The values of whole-number columns that have been seen."""

    def __init__(self) -> None:
        self._seen: dict[int, set[float]] = {}
        self._fractional: set[int] = set()

    def new_rows(self, rows: Tensor) -> list[int]:
        """Return rows with a value, or the first fraction, that no earlier row had."""
        if rows.ndim != 2 or rows.shape[1] > _MAX_COLUMNS:
            return []
        found = []
        for column in range(rows.shape[1]):
            if column in self._fractional:
                continue
            values = rows[:, column].numpy()
            whole = values == np.round(values)
            if not whole.all():
                self._fractional.add(column)
                found.append(int(np.flatnonzero(~whole)[0]))
                continue
            seen = self._seen.setdefault(column, set())
            if len(seen) > _MAX_VALUES:
                continue
            unique, first = np.unique(values, return_index=True)
            for value, row in zip(unique.tolist(), first.tolist(), strict=True):
                if value not in seen and len(seen) <= _MAX_VALUES:
                    seen.add(value)
                    found.append(row)
        return found


_SAME_VALUES = (Tensor.to, Tensor.cpu, Tensor.float, Tensor.double, Tensor.clone, Tensor.detach)

_ROW_WISE = (
    Tensor.log,
    torch.log,
    Tensor.add,
    Tensor.sub,
    Tensor.mul,
    Tensor.div,
    Tensor.__add__,
    Tensor.__sub__,
    Tensor.__mul__,
    Tensor.__truediv__,
    torch.add,
    torch.mul,
)
"""What acts on every row by itself, if the other arguments are numbers."""


class RowSample(Tensor):
    """A few rows of a field whose mean and standard deviation are those of all rows.

    Code that builds a network takes shapes, means and deviations from the rows that it is given:
    `torch.mean` over all numbers or over rows, and `torch.std` over rows or within a row, answer
    for all rows in use, exactly. Everything else sees the few rows.
    """

    _few: Tensor
    _rows: RowsInUse
    _name: str
    _steps: tuple[tuple[str, Step], ...]

    @staticmethod
    def of(
        few: Tensor, rows: RowsInUse, name: str, steps: Sequence[tuple[str, Step]] = ()
    ) -> RowSample:
        """Return a few rows that answer for all.

        Args:
            few: The few rows, shape (num_few, ...).
            rows: All rows.
            name: The field.
            steps: What has been done to the rows since they were read.
        """
        sample = few.as_subclass(RowSample)
        sample._few, sample._rows, sample._name, sample._steps = few, rows, name, tuple(steps)
        return sample

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        plain = func(*map(_plain, args), **{n: _plain(v) for n, v in kwargs.items()})
        if not isinstance(first, RowSample) or not isinstance(plain, Tensor):
            return plain
        rest = args[1:]
        if func in (torch.mean, Tensor.mean):
            return first._mean(plain, *rest, **kwargs)
        if func in (torch.std, Tensor.std):
            return first._std(plain, *rest, **kwargs)
        if func is Tensor.__getitem__:
            return first._indexed(plain, rest[0])
        if func in _SAME_VALUES:
            return RowSample.of(plain, first._rows, first._name, first._steps)
        if func in _ROW_WISE and not any(isinstance(a, Tensor) for a in rest):
            return first._after(plain, func, rest, kwargs)
        return plain

    def _moments(self) -> Moments:
        return self._rows.moments(self._name, self._steps)

    def _mean(self, plain: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
        if kwargs:
            return plain
        if dim is None:
            return self._moments().mean.mean().to(plain.dtype)
        if dim in (0, (0,), [0]):
            mean = self._moments().mean.to(plain.dtype)
            return mean[None] if keepdim else mean
        return plain

    def _std(self, plain: Tensor, dim: Any = None, **kwargs: Any) -> Tensor:
        if dim in (0, (0,), [0]) and not kwargs:
            return self._moments().std.to(plain.dtype)
        if dim == 1 and not kwargs:
            step = _step(torch.std, (), {"dim": 1})
            return RowSample.of(plain, self._rows, self._name, (*self._steps, step))
        return plain

    def _indexed(self, plain: Tensor, index: Any) -> Tensor:
        if isinstance(index, Tensor) and index.ndim == 1:
            # A choice among the few rows, which stand for all.
            return RowSample.of(plain, self._rows, self._name, self._steps)
        first = index[0] if isinstance(index, tuple) and index[1:] else None
        if first is Ellipsis or (isinstance(first, slice) and first == slice(None)):
            # An ellipsis that stands for no dimension would index rows.
            if first is Ellipsis and len(index) > self._few.ndim:
                return plain
            return self._after(plain, Tensor.__getitem__, (index,), {})
        return plain

    def _after(self, plain: Tensor, func: Any, args: Any, kwargs: Any) -> Tensor:
        step = _step(func, args, kwargs)
        return RowSample.of(plain, self._rows, self._name, (*self._steps, step))


def _step(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Step]:
    text = f"{getattr(func, '__name__', func)}{args!r}{kwargs!r}"
    return text, partial(_call, func, args, kwargs)


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rows: Tensor) -> Tensor:
    return func(rows, *args, **kwargs)


def _plain(value: Any) -> Any:
    if isinstance(value, RowSample):
        return value._few
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value
    return value


def plain_rows(samples: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the few rows as ordinary tensors."""
    return tuple(_plain(sample) for sample in samples)
