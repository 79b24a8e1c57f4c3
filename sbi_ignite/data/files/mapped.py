"""Files that are mapped into memory and given back, so that they never fill it."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbi_ignite.exceptions import DataError

RESIDENT = 2**27
"""Bytes of a mapped file that may stay in the memory of this process."""

_ROWS, _PIECE = 1_024, 2**18
"""Rows, and bytes, that are copied at a time: few enough to stay in a processor's cache."""

_PER_ROW = 2**16
"""What the system maps around a page that is touched."""


class MappedFile:
    """A file that is read through memory.

    Pages that were touched count as memory of the process until they are given back. The system's
    cache keeps them anyway, so that a second look costs next to nothing.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.num_bytes = self.path.stat().st_size
        if self.num_bytes == 0:
            raise DataError(f"{path}: expected a file of simulations, this one is empty (0 bytes).")
        with self.path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            # A descriptor that is closed before the map could belong to another file.
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        self._touched = 0

    def array(
        self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool = False
    ) -> NDArray[Any]:
        """Return an array over a part of the file.

        Raises:
            DataError: If the file ends before the array does.
        """
        count = int(np.prod(shape, dtype=np.int64))
        if offset + count * dtype.itemsize > self.num_bytes:
            raise DataError(
                f"{self.path}: the file is truncated: its header promises "
                f"{offset + count * dtype.itemsize} bytes, there are {self.num_bytes}. Copy it "
                "again."
            )
        flat = np.frombuffer(self.map, dtype=dtype, count=count, offset=offset)
        return flat.reshape(shape, order="F" if fortran else "C")

    def check_size(self) -> None:
        """Refuse to read a file that has become shorter: touching what is gone ends the process.

        Raises:
            DataError: If it is shorter than when it was opened.
        """
        if (there := os.fstat(self._file).st_size) < self.num_bytes:
            raise DataError(
                f"{self.path}: the file has changed since it was opened: expected at least "
                f"{self.num_bytes} bytes, got {there}. Open it again."
            )

    def copy_rows(
        self,
        array: NDArray[Any],
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        into: NDArray[Any],
    ) -> None:
        """Copy rows of an array over this file, which ascend, to places in another array."""
        step = max(1, min(_ROWS, _PIECE // max(1, into[:1].nbytes)))
        for begin in range(0, len(rows), step):
            now = rows[begin : begin + step]
            self.check_size()
            piece = array[now]
            into[places[begin : begin + step]] = piece
            together = int(now[-1]) - int(now[0]) < 2 * len(now)
            self.touched(piece.nbytes, 1 if together else len(now))

    def touched(self, num_bytes: int, pieces: int = 1) -> None:
        """Note that bytes were read, in so many places; give pages back once there are many."""
        self._touched += max(num_bytes, pieces * _PER_ROW)
        if self._touched >= RESIDENT and hasattr(mmap, "MADV_DONTNEED"):
            self._touched = 0
            self.map.madvise(mmap.MADV_DONTNEED)
