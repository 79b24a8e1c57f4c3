"""Simulations in files, as a data set whose rows are read when they are asked for."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sbi_ignite.data.files.base import FIELDS, Source, is_run
from sbi_ignite.data.files.table import open_source
from sbi_ignite.exceptions import ArgumentError, DataError

_logger = logging.getLogger("sbi_ignite.data")

_OF_PROCESS = ("_source", "_process", "_lock", "_locked_by")

PIECE = 2**26
"""Bytes to read at a time when all rows are gone through."""


class Simulations(Dataset[tuple[Tensor, Tensor]]):
    """Simulations in files: theta and x, row by row, without ever holding all of them.

    Made by `open_simulations`. It is a torch data set, so that a DataLoader takes it, with any
    number of workers; it can be pickled, and opens its files again in another process. Rows are
    float32, whatever the files hold.

    Attributes:
        path: What was opened.
        num_rows: How many rows there were when it was opened; later ones are not seen.
        theta_shape: Shape of a row of theta.
        x_shape: Shape of a row of x.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/sims.h5"
        >>> from sbi_ignite import SimulationWriter, open_simulations
        >>> with SimulationWriter(path) as writer:
        ...     writer.append(torch.randn(100, 2), torch.randn(100, 3))
        >>> simulations = open_simulations(path)
        >>> len(simulations), simulations.x_shape, simulations.x[5:8].shape
        (100, (3,), torch.Size([3, 3]))
    """

    def __init__(
        self,
        path: Any,
        theta: Any = None,
        x: Any = None,
        format: str | None = None,
        num_rows: int | None = None,
    ) -> None:
        self.path = path
        self._names: tuple[Any, Any, str | None] = (theta, x, format)
        self._lock, self._locked_by = threading.Lock(), os.getpid()
        self._digest: list[dict[str, Any]] | None = None
        self._source: Source | None = open_source(path, theta, x, format)
        self._process = os.getpid()
        source = self._source
        there = source.num_rows
        if num_rows is not None and not 0 < num_rows <= there:
            self.close()
            raise DataError(
                f"{source.name}: expected num_rows between 1 and the {there} that are there, got "
                f"{num_rows}."
            )
        self.num_rows = there if num_rows is None else num_rows
        self.name = source.name
        self.theta_shape, self.x_shape = source.shapes["theta"], source.shapes["x"]
        self.random_access, self.cost = source.random_access, source.cost
        self.block_rows = source.block_rows
        self._dtypes = {field: source.dtypes[field] for field in FIELDS}
        if not self.num_rows:
            self.close()
            raise DataError(f"{self.name}: expected simulations, there are no rows.")
        for field, dtype in self._dtypes.items():
            if dtype != np.float32:
                _logger.info("%s: %s is %s, read as float32.", self.name, field, dtype)

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        stored = ", ".join(f"{f} {self._dtypes[f]} {self._shape(f)}" for f in FIELDS)
        gigabytes = self.num_bytes / 1e9
        return f"Simulations({self.name!r}: {self.num_rows} rows, {stored}, {gigabytes:.3g} GB)"

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        theta, x = self.read([row])
        return theta[0], x[0]

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return several rows at once, as torch's DataLoader asks for them."""
        theta, x = self.read(rows)
        return list(zip(theta, x, strict=True))

    def __enter__(self) -> Simulations:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {n: v for n, v in vars(self).items() if n not in _OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._source, self._process = None, -1
        self._lock, self._locked_by = threading.Lock(), os.getpid()

    @property
    def theta(self) -> RowsOf:
        """Rows of theta, read by indexing."""
        return RowsOf(self, "theta")

    @property
    def x(self) -> RowsOf:
        """Rows of x, read by indexing."""
        return RowsOf(self, "x")

    @property
    def num_bytes(self) -> int:
        """Size of all rows as they are in the files, without compression."""
        return sum(
            self.num_rows * self._dtypes[f].itemsize * int(np.prod(self._shape(f), dtype=np.int64))
            for f in FIELDS
        )

    @property
    def row_bytes(self) -> int:
        """Size of a row as it is handed out."""
        return 4 * sum(int(np.prod(self._shape(f), dtype=np.int64)) for f in FIELDS)

    def read(self, rows: Any, fields: Sequence[str] = FIELDS) -> tuple[Tensor, ...]:
        """Return rows with these numbers, in this order.

        Args:
            rows: Row numbers, shape (num_read,); negative ones count from the end.
            fields: "theta", "x" or both.

        Returns:
            float32 tensors of shape (num_read, ...), one per field.

        Raises:
            IndexError: If there is no such row.
        """
        numbers = np.asarray(rows, dtype=np.int64).reshape(-1)
        from_end = (numbers < 0) & (numbers >= -self.num_rows)
        numbers = np.where(from_end, numbers + self.num_rows, numbers)
        if is_run(numbers) and 0 <= numbers[0] <= numbers[-1] < self.num_rows:
            return self.slice(int(numbers[0]), int(numbers[-1]) + 1, fields)
        into = {f: np.empty((len(numbers), *self._shape(f)), dtype=np.float32) for f in fields}
        self.put(numbers, np.arange(len(numbers)), into)
        return tuple(map(torch.from_numpy, into.values()))

    def put(
        self,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        into: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Put rows with these numbers, in any order, into arrays.

        Args:
            rows: Row numbers, shape (num_read,).
            places: Where each row goes, shape (num_read,).
            into: An array for each field, with rows of its shape.

        Raises:
            IndexError: If there is no such row.
        """
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.num_rows):
            raise IndexError(f"{self.name}: expected rows below {self.num_rows}, got {rows}")
        order = np.argsort(rows, kind="stable")
        with self._alone, np.errstate(over="ignore"):  # see as_float32
            self._opened().put(rows[order], places[order], into)

    def slice(self, start: int, stop: int, fields: Sequence[str] = FIELDS) -> tuple[Tensor, ...]:
        """Return rows `start` to `stop`, shape (stop - start, ...) per field."""
        with self._alone:
            arrays = self._opened().read(start, min(stop, self.num_rows), fields)
        return tuple(map(as_float32, arrays))

    def pieces(self, fields: Sequence[str] = FIELDS) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Yield all rows in sequence: the number of the first row, and a tensor per field."""
        step = max(1, PIECE // max(1, self.row_bytes))
        step = max(self.block_rows, step // self.block_rows * self.block_rows)
        for start in range(0, self.num_rows, step):
            yield start, self.slice(start, start + step, fields)

    def starts(self) -> NDArray[np.int64]:
        """Return the first row of every block that reads well, shape (num_blocks,)."""
        starts = self._opened().starts()
        return starts[starts < self.num_rows]

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return dtype, shape and a digest of sampled content for theta and x."""
        if self._digest is None:
            with self._alone:
                self._digest = self._opened().fingerprint(self.num_rows)
        return self._digest

    def close(self) -> None:
        """Close the files; reading opens them again."""
        if self._source is not None and self._process == os.getpid():
            self._source.close()
        self._source = None

    @property
    def _alone(self) -> threading.Lock:
        # A thread of the parent may have held the lock when this process was forked.
        if self._locked_by != os.getpid():
            self._lock, self._locked_by = threading.Lock(), os.getpid()
        return self._lock

    def _opened(self) -> Source:
        # An HDF5 file that was opened before a fork must not be read by both sides.
        if self._source is None or self._process != os.getpid():
            source = open_source(self.path, *self._names)
            shapes = source.shapes["theta"], source.shapes["x"]
            if source.num_rows < self.num_rows or shapes != (self.theta_shape, self.x_shape):
                raise DataError(
                    f"{self.name}: the file has changed since it was opened: expected at least "
                    f"{self.num_rows} rows of theta {self.theta_shape} and x {self.x_shape}, got "
                    f"{source.num_rows} of {shapes[0]} and {shapes[1]}."
                )
            self._source, self._process = source, os.getpid()
        return self._source

    def _shape(self, field: str) -> tuple[int, ...]:
        return self.theta_shape if field == "theta" else self.x_shape


class RowsOf:
    """Rows of one field of simulations in files, which are read by indexing.

    Args:
        simulations: The simulations.
        field: "theta" or "x".
    """

    def __init__(self, simulations: Simulations, field: str) -> None:
        self._simulations, self._field = simulations, field

    def __repr__(self) -> str:
        return f"{self._field} of {self._simulations!r}"

    def __len__(self) -> int:
        return self._simulations.num_rows

    @property
    def shape(self) -> torch.Size:
        """Shape of all rows."""
        row = getattr(self._simulations, f"{self._field}_shape")
        return torch.Size((self._simulations.num_rows, *row))

    def __getitem__(self, rows: Any) -> Tensor:
        if isinstance(rows, tuple):
            return self[rows[0]][inside_rows(rows)]
        (found,) = self._simulations.read(row_numbers(rows, len(self)), (self._field,))
        return found[0] if isinstance(rows, int | np.integer) else found


def inside_rows(index: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the part of an index that is left once its rows have been read."""
    return index[1:] if isinstance(index[0], int | np.integer) else (slice(None), *index[1:])


def row_numbers(rows: Any, num_rows: int) -> NDArray[np.int64]:
    """Return what an index over rows stands for as row numbers.

    Args:
        rows: An integer, a slice, numbers or a mask.
        num_rows: How many rows there are.
    """
    if isinstance(rows, slice):
        return np.arange(*rows.indices(num_rows), dtype=np.int64)
    numbers = np.asarray(rows)
    return np.flatnonzero(numbers) if numbers.dtype == bool else numbers.reshape(-1).astype(int)


def as_float32(array: NDArray[Any]) -> Tensor:
    """Return an array of any byte order, layout and real dtype as a float32 tensor."""
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is found as such
        plain = np.ascontiguousarray(array, dtype=np.float32)
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy())


def open_simulations(
    path: Any,
    *,
    theta: str | Sequence[str] | None = None,
    x: str | Callable[[Any, slice], Any] | None = None,
    format: str | None = None,
    num_rows: int | None = None,
) -> Simulations:
    """Open simulations in files, without reading them.

    Formats, with their paths and the names in them:

    * `hdf5`: `.h5` of `SimulationWriter`, of LAMPE, or any with two data sets `theta` and `x`.
    * `swyft`: a Zarr store, its rows with `meta/sim_status` 1; `theta="z"` for `data/z`, ...
    * `npy`: `(theta.npy, x.npy)`, or a folder with both.
    * `npz`: an `.npz` by `np.savez`, not compressed, with `theta` and `x`.
    * `arrow`: an Arrow IPC file with columns `theta` and `x` of fixed-size lists.
    * `dingo`: `.h5` of dingo; `theta` takes names of parameters, `x` a function.

    A pattern such as `"sims-*.h5"`, or a list of files, joins their rows in sorted order. float64,
    integers, big-endian numbers and Fortran order are converted as they are read.

    Args:
        path: A file or folder, a pair, a list or a pattern.
        theta: Name of theta in the file; for dingo, the names of the parameters.
        x: Name of x in the file; for dingo, a function `(file, rows) -> array`.
        format: Name of the format; None lets the path tell.
        num_rows: Use the first rows only, such as those that a growing file had earlier.

    Raises:
        DataError: If the files are not there, damaged, empty, or not what they should be.
        ArgumentError: If the format is unknown or the path tells none.
        MissingPackageError: If the package that reads the format is not installed.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> np.save(folder + "/theta.npy", np.zeros((10, 2)))
        >>> np.save(folder + "/x.npy", np.ones((10, 4, 4), dtype=">f4"))
        >>> simulations = open_simulations(folder)
        >>> simulations.x[3].shape
        torch.Size([4, 4])
    """
    if num_rows is not None and (isinstance(num_rows, bool) or not isinstance(num_rows, int)):
        raise ArgumentError(f"num_rows: expected an integer or None, got {num_rows!r}.")
    return Simulations(path, theta, x, format, num_rows)
