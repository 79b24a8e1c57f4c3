"""HDF5: the layout of `SimulationWriter`, that of LAMPE, and any file with two data sets."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbi_ignite.data.files.base import BLOCK_BYTES, FIELDS, ArraySource, existing, missing, rows_of
from sbi_ignite.data.files.packages import needed
from sbi_ignite.exceptions import DataError

FORMAT, VERSION = "sbi_ignite simulations", 1
"""Attributes `format` and `version` of our own files."""

ROWS = "rows_written"
"""Attribute of our own files that counts the rows that are complete."""

_logger = logging.getLogger("sbi_ignite.data")


class Hdf5Source(ArraySource):
    """Two data sets of an HDF5 file; random rows cost a chunk each.

    Args:
        path: The file.
        theta: Name of the data set with theta.
        x: Name of the data set with x.
    """

    cost = "whole chunks; a row at random costs a chunk"

    def __init__(self, path: str | Path, theta: str = "theta", x: str = "x") -> None:
        self.file = open_to_read(path)
        try:
            super().__init__(str(path), *self._found(str(path), theta, x))
        except BaseException:
            self.close()
            raise

    def _found(self, name: str, theta: str, x: str) -> tuple[dict[str, Any], int | None, int]:
        arrays = {
            field: data_set(self.file, name, field, asked)
            for field, asked in zip(FIELDS, (theta, x), strict=True)
        }
        chunks = [a.chunks[0] for a in arrays.values() if a.chunks]
        shapes = {f: a.shape[1:] for f, a in arrays.items()}
        own = rows_of(BLOCK_BYTES, shapes, {f: a.dtype for f, a in arrays.items()})
        # Small chunks are read several at a time, and always whole.
        largest = max(chunks, default=1)
        block_rows = max(largest, own // largest * largest)
        written = rows_written(self.file, name)
        if written is None:
            written = _without_zeros_at_the_end(name, arrays, block_rows)
        return arrays, written, block_rows

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def open_to_read(path: str | Path) -> Any:
    """Return an open HDF5 file.

    Raises:
        DataError: If it is none, is truncated, or another process is writing it.
        MissingPackageError: If h5py is not installed.
    """
    h5py = needed("h5py", "h5")
    found = existing(path)
    try:
        return h5py.File(found, "r")
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: Exception) -> DataError:
    """Return the error for a file that HDF5 refuses."""
    text = str(error)
    if "lock" in text or getattr(error, "errno", None) in (11, 35):
        return DataError(
            f"{path}: another process has it open for writing (or, for a writer, for reading). "
            "Wait until it has closed the file, or let every writer write a file of its own and "
            f"open them together by a pattern such as 'sims-*.h5'. HDF5 says: {text}"
        )
    if "already open" in text:
        return DataError(
            f"{path}: this process has it open already. Close that first: simulations by close(), "
            f"or a with statement. HDF5 says: {text}"
        )
    if Path(path).is_file() and Path(path).stat().st_size == 0:
        return DataError(f"{path}: expected an HDF5 file, this one is empty (0 bytes).")
    if "truncated" in text:
        return DataError(
            f"{path}: the file is truncated: a copy of it broke off, or its disk was full. Copy "
            f"it again. HDF5 says: {text}"
        )
    return DataError(f"{path}: expected an HDF5 file, HDF5 cannot open it: {text}")


def data_set(file: Any, name: str, field: str, asked: str) -> Any:
    """Return a data set by its name.

    Raises:
        DataError: If there is none of that name.
    """
    found = file.get(asked)
    if found is None or not hasattr(found, "dtype"):
        names: list[str] = []
        file.visititems(lambda path, item: names.append(path) if hasattr(item, "dtype") else None)
        raise missing(name, field, asked, names)
    return found


def rows_written(file: Any, name: str) -> int | None:
    """Return how many rows of one of our own files are complete; None for other files.

    Raises:
        DataError: If a later version has written the file.
    """
    if file.attrs.get("format") != FORMAT:
        return None
    version = int(file.attrs["version"])
    if version > VERSION:
        raise DataError(
            f"{name}: expected layout {VERSION} of {FORMAT!r} at most, got {version}. Install a "
            "newer sbi_ignite."
        )
    return int(file.attrs[ROWS])


def _without_zeros_at_the_end(name: str, arrays: dict[str, Any], block_rows: int) -> int | None:
    """Leave out rows at the end that were announced and never written: LAMPE's store keeps them."""
    total = int(min(len(a) for a in arrays.values()))
    kept = total
    while kept:
        start = max(0, kept - block_rows)
        written = np.zeros(kept - start, dtype=bool)
        for array in arrays.values():
            written |= _any_number(np.asarray(array[start:kept]))
        if written.any():
            kept = start + int(np.flatnonzero(written)[-1]) + 1
            break
        kept = start
    if kept == total or not kept or len({len(a) for a in arrays.values()}) > 1:
        return None
    _logger.warning(
        "%s: the last %d of %d rows are zeros in theta and x: they were announced and not "
        "written, and are left out.",
        name,
        total - kept,
        total,
    )
    return kept


def _any_number(piece: NDArray[Any]) -> NDArray[np.bool_]:
    if piece.dtype.kind not in "fiub":
        return np.ones(len(piece), dtype=bool)
    return (piece.reshape(len(piece), -1) != 0).any(axis=1)


def open_hdf5(path: Any, theta: Any = None, x: Any = None) -> Hdf5Source:
    """Open an HDF5 file with two data sets, by default `theta` and `x`."""
    return Hdf5Source(path, theta or "theta", x or "x")
