"""swyft's Zarr store (version 2 layout): `data/<name>`, and `meta/sim_status` of every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbi_ignite.data.files.base import BLOCK_BYTES, FIELDS, ArraySource, existing, missing, rows_of
from sbi_ignite.data.files.packages import needed
from sbi_ignite.exceptions import DataError

FINISHED = 1
"""The status of rows that are complete."""


class SwyftSource(ArraySource):
    """Complete rows of a Zarr store.

    Args:
        name: The path.
        arrays: theta and x.
        status: Status of every row, shape (num_rows,); None if the store has none.
    """

    cost = "whole chunks, decompressed; a row at random costs a chunk"

    def __init__(self, name: str, arrays: dict[str, Any], status: NDArray[Any] | None) -> None:
        chunk = max(int(a.chunks[0]) for a in arrays.values())
        own = rows_of(
            BLOCK_BYTES,
            {f: a.shape[1:] for f, a in arrays.items()},
            {f: np.dtype(a.dtype) for f, a in arrays.items()},
        )
        super().__init__(name, arrays, block_rows=max(chunk, own // chunk * chunk))
        if status is not None and len(status) != self.num_rows:
            raise DataError(
                f"{name}: expected a status for each of {self.num_rows} rows, got {len(status)}."
            )
        self._in_store: NDArray[np.int64] | None = None
        self._block_starts = super().starts()
        if status is not None and not (status == FINISHED).all():
            self._in_store = np.flatnonzero(status == FINISHED)
            # Blocks follow the chunks of the store, whatever is left of each.
            first = np.searchsorted(self._in_store, self._block_starts)
            self.num_rows = len(self._in_store)
            self._block_starts = np.unique(first[first < max(1, self.num_rows)])

    def starts(self) -> NDArray[np.int64]:
        """Return the first row of every block."""
        return self._block_starts

    def read(
        self, start: int, stop: int, fields: Sequence[str] = FIELDS
    ) -> tuple[NDArray[Any], ...]:
        """Return rows of each field."""
        if self._in_store is None:
            return super().read(start, stop, fields)
        rows = self._in_store[start:stop]
        if not len(rows):
            return super().read(0, 0, fields)
        first = int(rows[0])
        return tuple(
            piece[rows - first] for piece in super().read(first, int(rows[-1]) + 1, fields)
        )


def open_swyft(path: Any, theta: Any = None, x: Any = None) -> SwyftSource:
    """Open a Zarr store, by default with the arrays `data/theta` and `data/x`.

    Raises:
        DataError: If it is no store or lacks an array.
        MissingPackageError: If zarr is not installed.
    """
    zarr = needed("zarr", "zarr")
    found = existing(path)
    try:
        group = zarr.open_group(str(found), mode="r")
    except Exception as error:
        raise DataError(f"{path}: expected a Zarr store, zarr cannot open it: {error}") from error
    arrays = {}
    for field, asked in zip(FIELDS, (theta or "theta", x or "x"), strict=True):
        array = next((group[n] for n in (f"data/{asked}", asked) if n in group), None)
        if array is None or not hasattr(array, "chunks"):
            names = [name for name, _ in group.get("data", group).arrays()]
            raise missing(str(path), field, asked, names)
        arrays[field] = array
    status = np.asarray(group["meta/sim_status"][:]) if "meta/sim_status" in group else None
    return SwyftSource(str(path), arrays, status)
