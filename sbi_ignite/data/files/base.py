"""What a page for a file layout provides: rows of theta and x, in pieces that read well."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbi_ignite.exceptions import DataError

FIELDS = ("theta", "x")
"""What every source has, in this order."""

BLOCK_BYTES = 2**19
"""Bytes to read at a time where a layout has no chunks of its own."""

_SAMPLED_BLOCKS = 64
_SAMPLED_BYTES = 2**18
"""How much of the content a fingerprint reads: at most 16 MB, however large the file."""


class Source(ABC):
    """Rows of theta and x in a file or several.

    Attributes:
        name: The path, for messages.
        num_rows: Rows that are there to be read.
        shapes: Shape of a row of theta and of x.
        dtypes: Their dtypes in the file.
        block_rows: Rows that are read best together.
        random_access: Whether rows in any order read nearly as fast as in sequence.
        cost: How rows are read from this layout, in words.
    """

    name: str
    num_rows: int
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype[Any]]
    block_rows: int
    random_access: bool = False
    cost: str = ""

    @abstractmethod
    def read(
        self, start: int, stop: int, fields: Sequence[str] = FIELDS
    ) -> tuple[NDArray[Any], ...]:
        """Return rows `start` to `stop` of each field, in the file's dtype.

        Args:
            start: The first row.
            stop: The row after the last.
            fields: "theta", "x" or both.
        """

    def put(
        self,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        into: Mapping[str, NDArray[Any]],
    ) -> None:
        """Put rows with these numbers into arrays, reading block by block.

        Args:
            rows: Row numbers in ascending order, shape (num_taken,).
            places: Where each row goes, shape (num_taken,).
            into: An array for each field, of any real dtype.
        """
        for begin, end in runs(rows, self.block_rows):
            first, last = int(rows[begin]), int(rows[end - 1]) + 1
            inside = rows[begin:end] - first
            whole = is_run(inside)
            pieces = self.read(first, last, tuple(into))
            for array, piece in zip(into.values(), pieces, strict=True):
                array[places[begin:end]] = piece if whole else piece[inside]

    def starts(self) -> NDArray[np.int64]:
        """Return the first row of every block, shape (num_blocks,)."""
        return np.arange(0, max(1, self.num_rows), max(1, self.block_rows), dtype=np.int64)

    def close(self) -> None:  # noqa: B027 # most have nothing to close
        """Close what is open."""

    def fingerprint(self, num_rows: int) -> list[dict[str, Any]]:
        """Return dtype, shape and a digest of sampled content for theta and x.

        The digest reads evenly spaced rows, the first and the last among them. A copy of the file
        elsewhere has the same one; rows that were appended after the first `num_rows` do not
        change it.

        Args:
            num_rows: How many rows are in use.
        """
        return [self._fingerprint_of(field, num_rows) for field in FIELDS]

    def _fingerprint_of(self, field: str, num_rows: int) -> dict[str, Any]:
        shape, dtype = self.shapes[field], self.dtypes[field]
        size = max(1, dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
        rows = max(1, min(self.block_rows, _SAMPLED_BYTES // size))
        spread = np.linspace(0, max(0, num_rows - rows), _SAMPLED_BLOCKS).astype(np.int64)
        digest = hashlib.sha256()
        for start in np.unique(spread).tolist():
            (piece,) = self.read(start, min(start + rows, num_rows), (field,))
            digest.update(np.ascontiguousarray(piece).tobytes())
        return {
            "dtype": str(dtype),
            "shape": [num_rows, *shape],
            "digest": digest.hexdigest()[:32],
            "sampled": True,
        }


class ArraySource(Source):
    """Rows of two arrays that can be sliced: HDF5 datasets, zarr arrays, memory maps.

    Args:
        name: The path.
        arrays: theta and x, which share their first dimension.
        num_rows: How many rows count; None for all.
        block_rows: Rows to read together; None for as many as take `BLOCK_BYTES`.
    """

    def __init__(
        self,
        name: str,
        arrays: Mapping[str, Any],
        num_rows: int | None = None,
        block_rows: int | None = None,
    ) -> None:
        self.name, self.arrays = name, dict(arrays)
        lengths = {field: _length(name, field, self.arrays[field]) for field in FIELDS}
        if lengths["theta"] != lengths["x"]:
            raise DataError(
                f"{name}: expected as many rows of theta as of x, got {lengths['theta']} and "
                f"{lengths['x']}. Write both in one go, or cut the longer one."
            )
        self.num_rows = lengths["theta"] if num_rows is None else num_rows
        if self.num_rows > lengths["theta"]:
            raise DataError(
                f"{name}: expected the {self.num_rows} rows that it says were written, got "
                f"{lengths['theta']}. The file is damaged; restore it from a copy."
            )
        self.shapes = {f: tuple(map(int, self.arrays[f].shape[1:])) for f in FIELDS}
        self.dtypes = {f: np.dtype(self.arrays[f].dtype) for f in FIELDS}
        for field in FIELDS:
            check_numbers(name, field, self.dtypes[field])
        self.block_rows = block_rows or rows_of(BLOCK_BYTES, self.shapes, self.dtypes)

    def read(
        self, start: int, stop: int, fields: Sequence[str] = FIELDS
    ) -> tuple[NDArray[Any], ...]:
        """Return rows of each field."""
        return tuple(np.asarray(self.arrays[field][start:stop]) for field in fields)


def _length(name: str, field: str, array: Any) -> int:
    if not getattr(array, "shape", ()):
        raise DataError(f"{name}: expected an array with one row per simulation as {field}.")
    return int(array.shape[0])


def runs(rows: NDArray[np.int64], block_rows: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of pieces of ascending row numbers that lie in the same block."""
    block = rows // max(1, block_rows)
    cuts = np.flatnonzero(block[1:] != block[:-1]) + 1
    bounds = [0, *cuts.tolist(), len(rows)]
    yield from ((begin, end) for begin, end in pairwise(bounds) if end > begin)


def is_run(numbers: NDArray[np.int64]) -> bool:
    """Return whether these are numbers one after the other."""
    return len(numbers) > 0 and bool((np.diff(numbers) == 1).all())


def rows_of(
    num_bytes: int, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype[Any]]
) -> int:
    """Return how many rows of theta and x together take about that many bytes, at least one."""
    row = sum(dtypes[f].itemsize * int(np.prod(shapes[f], dtype=np.int64)) for f in FIELDS)
    return max(1, num_bytes // max(1, row))


def check_numbers(name: str, field: str, dtype: np.dtype[Any]) -> None:
    """Refuse anything but real numbers.

    Raises:
        DataError: If it is anything else.
    """
    if dtype.kind not in "fiub":
        raise DataError(
            f"{name}: expected real numbers as {field}, got dtype {dtype}. Complex data go into "
            "two real channels; records need the names of their fields."
        )


def missing(name: str, field: str, asked: str, there: Sequence[str]) -> DataError:
    """Return the error for a name that is not in a file."""
    shown = ", ".join(repr(n) for n in sorted(there)[:20]) or "nothing"
    return DataError(
        f"{name}: expected {field} under the name {asked!r}, found {shown}. Name it: "
        f"open_simulations(..., {field}='...')."
    )


def existing(path: str | Path) -> Path:
    """Return a path that exists.

    Raises:
        DataError: If there is nothing.
    """
    found = Path(path)
    if not found.exists():
        raise DataError(f"{path}: expected a file of simulations, there is none.")
    return found
