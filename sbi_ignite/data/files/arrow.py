"""Arrow IPC files: columns of fixed-size lists, viewed as numpy arrays in a memory map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbi_ignite.data.files.base import (
    BLOCK_BYTES,
    FIELDS,
    Source,
    check_numbers,
    existing,
    missing,
    rows_of,
)
from sbi_ignite.data.files.mapped import MappedFile
from sbi_ignite.data.files.packages import needed
from sbi_ignite.exceptions import DataError


class ArrowSource(Source):
    """Two columns of an Arrow IPC file; rows at random are as good as rows in sequence.

    Args:
        path: The file.
        theta: Name of the column with theta.
        x: Name of the column with x.
    """

    random_access = True
    cost = "rows at random, from a memory map"

    def __init__(self, path: Any, theta: str = "theta", x: str = "x") -> None:
        pa = needed("pyarrow", "arrow")
        self.name = str(path)
        self._file = MappedFile(existing(path))
        try:
            reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._file.map)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{path}: expected an Arrow IPC file that was closed by its writer, Arrow cannot "
                f"open it: {error}"
            ) from error
        except OSError as error:
            raise DataError(f"{path}: the file is truncated or damaged: {error}") from error
        views: dict[str, list[NDArray[Any]]] = {}
        for field, asked in zip(FIELDS, (theta, x), strict=True):
            if asked not in reader.schema.names:
                raise missing(self.name, field, asked, reader.schema.names)
            shape = _shape(reader.schema.field(asked).type, f"{path}[{asked}]")
            columns = [batch.column(asked) for batch in batches if batch.num_rows]
            views[field] = [_view(column, shape, f"{path}[{asked}]") for column in columns]
        self._views = views
        if not views["theta"]:
            raise DataError(f"{path}: expected simulations, there are no rows.")
        self._starts = np.cumsum([0, *(len(view) for view in views["theta"])])
        self.num_rows = int(self._starts[-1])
        self.shapes = {f: v[0].shape[1:] for f, v in views.items()}
        self.dtypes = {f: v[0].dtype for f, v in views.items()}
        for field in FIELDS:
            check_numbers(self.name, field, self.dtypes[field])
        self.block_rows = rows_of(BLOCK_BYTES, self.shapes, self.dtypes)

    def read(
        self, start: int, stop: int, fields: Sequence[str] = FIELDS
    ) -> tuple[NDArray[Any], ...]:
        """Return copies of rows of each field."""
        rows = np.arange(start, stop)
        into = {f: np.empty((len(rows), *self.shapes[f]), dtype=self.dtypes[f]) for f in fields}
        self.put(rows, np.arange(len(rows)), into)
        return tuple(into.values())

    def put(
        self,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        into: Mapping[str, NDArray[Any]],
    ) -> None:
        """Put copies of rows with these numbers into arrays."""
        bounds = np.searchsorted(rows, self._starts).tolist()
        for i, (begin, end) in enumerate(pairwise(bounds)):
            inside = rows[begin:end] - self._starts[i]
            for field, array in into.items():
                self._file.copy_rows(self._views[field][i], inside, places[begin:end], array)


def _shape(kind: Any, name: str) -> tuple[int, ...]:
    """Return the shape of a row by the type of a column."""
    pa = needed("pyarrow", "arrow")
    if isinstance(kind, pa.FixedShapeTensorType):
        return tuple(kind.shape)
    shape = []
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise DataError(
            f"{name}: expected fixed-size lists of numbers (pyarrow.list_(pyarrow.float32(), n)), "
            f"got {kind}. Lists whose lengths may differ have no shape."
        )
    return tuple(shape)


def _view(column: Any, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """Return a column as an array of shape (num_rows, ...), without a copy."""
    pa = needed("pyarrow", "arrow")
    rows = len(column)
    if column.null_count:
        raise DataError(f"{name}: expected a value in every row, {column.null_count} are null.")
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    while pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    if column.null_count:
        raise DataError(f"{name}: expected numbers, {column.null_count} are null.")
    return column.to_numpy(zero_copy_only=True).reshape(rows, *shape)


def open_arrow(path: Any, theta: Any = None, x: Any = None) -> ArrowSource:
    """Open an Arrow IPC file, by default with the columns `theta` and `x`."""
    return ArrowSource(path, theta or "theta", x or "x")
