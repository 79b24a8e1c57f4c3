"""Write simulations to a file as they are made, so that a killed writer loses next to nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbi_ignite._version import __version__
from sbi_ignite.data.files.base import FIELDS, rows_of
from sbi_ignite.data.files.hdf5 import FORMAT, ROWS, VERSION, rows_written, unreadable
from sbi_ignite.data.files.packages import needed
from sbi_ignite.exceptions import ArgumentError, DataError

_BEGUN = "being_written"
"""Attribute that is 1 from a writer's first rows on, and 0 once it has closed the file."""

_COPIED_BYTES = 2**26
"""How much is copied at a time."""

CHUNK_BYTES = 2**18
"""Size of a chunk, in which rows of a file lie together."""


class SimulationWriter:
    """Appends simulations to an HDF5 file.

    Rows are written in whole chunks. A chunk counts once its data are on their way to the disk, so
    that a writer that is killed loses the rows since the last chunk and no others, and no reader
    ever sees a row that was not written. A writer that is started again on the same file continues
    it. After a kill it first puts a copy of the complete rows in its place, because HDF5 may not
    have noted all that it had begun; the copy takes time and disk space. Several processes write
    several files, which `open_simulations("sims-*.h5")` joins.

    Args:
        path: The file; it is made with the first rows, or continued.
        chunk_rows: Rows in a chunk; None for about 256 kB. Rows are written when so many have
            come, or by `flush()`.
        source: What is said about the origin of the simulations in the file's attributes.
        dtype: "float32" or "float64", to which everything is converted.

    Raises:
        DataError: If the file is something else, damaged, or open in another process.
        MissingPackageError: If h5py is not installed.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/sims.h5"
        >>> with SimulationWriter(path, source="two moons, July") as writer:
        ...     for _ in range(3):
        ...         theta = torch.rand(50, 2)
        ...         writer.append(theta, theta + 0.1 * torch.randn(50, 2))
        >>> writer.num_rows
        150
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        chunk_rows: int | None = None,
        source: str | None = None,
        dtype: str = "float32",
    ) -> None:
        if chunk_rows is not None and chunk_rows < 1:
            raise ArgumentError(f"chunk_rows: expected at least 1 or None, got {chunk_rows}.")
        if str(dtype) not in ("float32", "float64"):
            raise ArgumentError(f"dtype: expected 'float32' or 'float64', got {dtype!r}.")
        self.path = Path(path)
        self._h5py = needed("h5py", "h5")
        self._dtype = np.dtype(str(dtype))
        self._chunk_rows, self._described_as = chunk_rows, source
        self._waiting: list[tuple[NDArray[Any], NDArray[Any]]] = []
        self._num_waiting = self._num_written = 0
        self._to_annotate: dict[str, Any] = {}
        self._file: Any = None
        self._has_begun = False
        if self.path.exists():
            self._continue()

    @property
    def num_rows(self) -> int:
        """Rows in the file and those that wait to be written."""
        return self._num_written + self._num_waiting

    @property
    def num_written(self) -> int:
        """Rows that are complete in the file, and survive whatever happens to this process."""
        return self._num_written

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Attributes of the file; empty before it is made."""
        return {} if self._file is None else dict(self._file.attrs)

    def append(self, theta: Any, x: Any) -> None:
        """Append simulations.

        Args:
            theta: Parameters, a tensor or array of shape (num_rows, dim_theta).
            x: Data, shape (num_rows, ...).

        Raises:
            DataError: If theta and x differ in length, or from earlier rows in shape.
        """
        pair = tuple(self._array(f, v) for f, v in zip(FIELDS, (theta, x), strict=True))
        if len(pair[0]) != len(pair[1]):
            raise DataError(
                f"{self.path}: expected as many rows of theta as of x, got {len(pair[0])} and "
                f"{len(pair[1])}."
            )
        if not len(pair[0]):
            return
        file = self._create(*pair) if self._file is None else self._file
        for field, array in zip(FIELDS, pair, strict=True):
            expected = tuple(file[field].shape[1:])
            if array.shape[1:] != expected:
                raise DataError(
                    f"{self.path}: expected rows of {field} with shape {expected} as in the file, "
                    f"got {array.shape[1:]}."
                )
        self._waiting.append((pair[0], pair[1]))
        self._num_waiting += len(pair[0])
        if self._num_waiting >= self._rows_per_chunk:
            self._write(self._num_waiting // self._rows_per_chunk * self._rows_per_chunk)

    def flush(self) -> None:
        """Write all rows that wait, also those that do not fill a chunk."""
        if self._num_waiting:
            self._write(self._num_waiting)

    def close(self) -> None:
        """Write what waits and close the file."""
        if self._file is None:
            return
        try:
            self.flush()
            if self._has_begun:
                self._file.attrs.modify(_BEGUN, np.int64(0))
        finally:
            self._file.close()
            self._file, self._has_begun = None, False

    def __enter__(self) -> SimulationWriter:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def annotate(self, **attributes: Any) -> None:
        """Write attributes into the file; one that is not made yet is made with them."""
        if self._file is None:
            self._to_annotate |= attributes
            return
        for name, value in attributes.items():
            self._file.attrs[name] = value
        self._file.flush()

    def _array(self, field: str, values: Any) -> NDArray[Any]:
        if isinstance(values, Tensor):
            values = values.detach().cpu().numpy()
        array = np.asarray(values)
        if array.dtype.kind not in "fiub" or array.ndim < 1:
            raise DataError(
                f"{self.path}: expected {field} as a tensor or array of real numbers with one row "
                f"per simulation, got dtype {array.dtype} and shape {array.shape}."
            )
        if field == "theta" and array.ndim == 1:
            raise DataError(
                f"{self.path}: expected theta of shape (num_rows, dim_theta), got {array.shape}. "
                "One parameter each is theta[:, None], one simulation is theta[None]."
            )
        with np.errstate(over="ignore"):
            return np.array(array, dtype=self._dtype, order="C")  # a copy: callers reuse buffers

    def _create(self, theta: NDArray[Any], x: NDArray[Any]) -> Any:
        shapes: dict[str, tuple[int, ...]] = {"theta": theta.shape[1:], "x": x.shape[1:]}
        dtypes: dict[str, np.dtype[Any]] = dict.fromkeys(FIELDS, self._dtype)
        rows = self._chunk_rows or rows_of(CHUNK_BYTES, shapes, dtypes)
        attributes = {"format": FORMAT, "version": VERSION, ROWS: 0, _BEGUN: 0, "chunk_rows": rows}
        attributes |= {"written_by": f"sbi_ignite {__version__}", "torch": str(torch.__version__)}
        if self._described_as:
            attributes["source"] = self._described_as
        attributes |= self._to_annotate
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Made apart and put in place whole: a writer may be killed at any moment.
        made = self.path.with_name(f".{self.path.name}.{os.getpid()}.new")
        # The default libver: with "latest", a file whose writer was killed is refused.
        with self._h5py.File(made, "w") as file:
            for field in FIELDS:
                file.create_dataset(
                    field,
                    shape=(0, *shapes[field]),
                    maxshape=(None, *shapes[field]),
                    chunks=(rows, *shapes[field]),
                    dtype=self._dtype,
                )
            for name, value in attributes.items():
                file.attrs[name] = value
        _put_in_place(made, self.path)
        self._file = self._open("r+")
        self._rows_per_chunk = rows
        return self._file

    def _open(self, mode: str) -> Any:
        try:
            return self._h5py.File(self.path, mode)
        except OSError as error:
            raise unreadable(self.path, error) from error

    def _continue(self) -> None:
        self._file = self._open("r")
        try:
            self._check_ours()
            self._num_written = rows_written(self._file, str(self.path)) or 0
            if self._file.attrs.get(_BEGUN, 1):
                self._copy_complete_rows()
            self._file.close()
            self._file = self._open("r+")
            self._remove_leftovers()
            self._rows_per_chunk = int(self._file.attrs["chunk_rows"])
            self._dtype = self._file["theta"].dtype
        except BaseException:
            self._file.close()
            self._file = None
            raise

    def _copy_complete_rows(self) -> None:
        """Replace the file by one that holds its complete rows alone.

        Where a writer is killed inside a flush, the file may know of chunks that lie beyond what it
        takes for its end. They are no complete rows, but writing on would lay other data over them.
        """
        made = self.path.with_name(f".{self.path.name}.{os.getpid()}.copy")
        copied = 0
        try:
            with self._h5py.File(made, "w") as new:
                for name, value in self._file.attrs.items():
                    new.attrs[name] = value
                for field in FIELDS:
                    data = self._file[field]
                    new.create_dataset(
                        field,
                        shape=(self._num_written, *data.shape[1:]),
                        maxshape=data.maxshape,
                        chunks=data.chunks,
                        dtype=data.dtype,
                    )
                row_bytes = sum(self._file[field][:1].nbytes for field in FIELDS)
                step = max(1, _COPIED_BYTES // max(1, row_bytes))
                for copied in range(0, self._num_written, step):
                    end = min(copied + step, self._num_written)
                    for field in FIELDS:
                        new[field][copied:end] = self._file[field][copied:end]
                new.attrs.modify(_BEGUN, np.int64(0))
            os.replace(made, self.path)
        except (OSError, RuntimeError, KeyError) as error:
            raise DataError(
                f"{self.path}: the writer was killed, and its complete rows ({self._num_written}) "
                f"cannot be copied from row {copied} on: {error}. The file is left as it is. Make "
                "room for a copy if the disk is full; otherwise write to another file, and read "
                "what is here with open_simulations()."
            ) from error
        finally:
            made.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Remove copies whose writers were killed: nobody else has the file now."""
        for copy in self.path.parent.glob(f".{escape(self.path.name)}.*.copy"):
            copy.unlink(missing_ok=True)

    def _check_ours(self) -> None:
        if self._file.attrs.get("format") == FORMAT and all(f in self._file for f in FIELDS):
            return
        raise DataError(
            f"{self.path}: expected a file that SimulationWriter has begun, got another one. "
            "Write to a new path; convert_simulations() turns other files into ours."
        )

    def _write(self, count: int) -> None:
        """Write the first rows that wait: data, then the number of complete rows."""
        joined = [np.concatenate(arrays) for arrays in zip(*self._waiting, strict=True)]
        total = self._num_written + count
        if not self._has_begun:
            self._file.attrs.modify(_BEGUN, np.int64(1))
            self._file.flush()
            self._has_begun = True
        for field, array in zip(FIELDS, joined, strict=True):
            data = self._file[field]
            data.resize(total, axis=0)
            data[self._num_written : total] = array[:count]
        self._file.flush()
        self._file.attrs.modify(ROWS, np.int64(total))
        self._file.flush()
        self._num_written = total
        rest = [array[count:] for array in joined]
        self._waiting = [(rest[0], rest[1])] if len(rest[0]) else []
        self._num_waiting = len(rest[0])


def _put_in_place(made: Path, path: Path) -> None:
    """Give a new file its name, unless another writer has taken that meanwhile."""
    try:
        os.link(made, path)
    except FileExistsError:
        raise DataError(
            f"{path}: another process has made this file meanwhile. Let every writer write a file "
            "of its own, such as sims-0.h5, sims-1.h5."
        ) from None
    except OSError:  # a file system without hard links
        os.replace(made, path)
        return
    finally:
        made.unlink(missing_ok=True)
