"""dingo's HDF5: records as `parameters`, and whatever a user's function makes of the rest as x."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbi_ignite.data.files.base import BLOCK_BYTES, FIELDS, Source, check_numbers, missing, rows_of
from sbi_ignite.data.files.hdf5 import data_set, open_to_read
from sbi_ignite.exceptions import ArgumentError, DataError


class DingoSource(Source):
    """Records of parameters, with x computed for each slice of rows.

    Args:
        path: The file.
        x: `x(file, rows)` returns x for a slice of rows of the open `h5py.File`, as an array of
            shape (num_rows, ...).
        names: The parameters in theta, in order; None for all.
    """

    cost = "slices, each of which the function for x reads"

    def __init__(
        self, path: Any, x: Callable[[Any, slice], Any], names: Sequence[str] | None = None
    ) -> None:
        self.name, self._x = str(path), x
        self.file = open_to_read(path)
        self._parameters = data_set(self.file, self.name, "theta", "parameters")
        there = self._parameters.dtype.names
        if not there:
            raise DataError(
                f"{path}: expected records with named fields as 'parameters', got dtype "
                f"{self._parameters.dtype}."
            )
        self.names = tuple(there if names is None else names)
        for name in self.names:
            if name not in there:
                raise missing(self.name, "theta", name, there)
            check_numbers(self.name, name, self._parameters.dtype[name])
        self.num_rows = len(self._parameters)
        if not self.num_rows:
            raise DataError(f"{path}: expected simulations, there are no rows.")
        first = self._x_of(0, 1)
        self.shapes = {"theta": (len(self.names),), "x": first.shape[1:]}
        self.dtypes = {"theta": np.dtype(np.float64), "x": first.dtype}
        check_numbers(self.name, "x", first.dtype)
        self.block_rows = rows_of(BLOCK_BYTES, self.shapes, self.dtypes)

    def _x_of(self, start: int, stop: int) -> NDArray[Any]:
        made = np.asarray(self._x(self.file, slice(start, stop)))
        if made.shape[:1] != (stop - start,):
            raise DataError(
                f"{self.name}: expected x(file, rows) to return one row for each of "
                f"{stop - start}, got shape {made.shape}."
            )
        return made

    def read(
        self, start: int, stop: int, fields: Sequence[str] = FIELDS
    ) -> tuple[NDArray[Any], ...]:
        """Return rows of each field."""
        return tuple(
            self._theta_of(start, stop) if field == "theta" else self._x_of(start, stop)
            for field in fields
        )

    def _theta_of(self, start: int, stop: int) -> NDArray[Any]:
        records = self._parameters[start:stop]
        return np.stack([records[name].astype(np.float64) for name in self.names], axis=1)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def open_dingo(path: Any, theta: Any = None, x: Any = None) -> DingoSource:
    """Open a data set of dingo's.

    Raises:
        ArgumentError: If `x` is not a function.
    """
    if not callable(x):
        raise ArgumentError(
            "x: expected a function (file, rows) -> array for a file of dingo's, whose x is "
            f"assembled from several data sets, got {x!r}."
        )
    return DingoSource(path, x, [theta] if isinstance(theta, str) else theta)
