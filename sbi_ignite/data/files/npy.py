"""Numpy's files: a pair of `.npy`, or an `.npz` that is not compressed; mapped into memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sbi_ignite.data.files.base import FIELDS, ArraySource, existing, missing
from sbi_ignite.data.files.mapped import MappedFile
from sbi_ignite.exceptions import DataError


class NpySource(ArraySource):
    """Arrays in memory maps; rows at random are as good as rows in sequence.

    Args:
        name: The path or paths.
        arrays: theta and x.
        files: The mapped files of theta and x, which may be the same.
    """

    cost = "rows at random, from a memory map"

    def __init__(
        self, name: str, arrays: dict[str, NDArray[Any]], files: dict[str, MappedFile]
    ) -> None:
        super().__init__(name, arrays)
        self.files = files
        # A row of a Fortran array is spread over the whole file.
        self.random_access = all(a.flags.c_contiguous for a in arrays.values())

    def read(
        self, start: int, stop: int, fields: Sequence[str] = FIELDS
    ) -> tuple[NDArray[Any], ...]:
        """Return copies of rows of each field."""
        copies = []
        for field in fields:
            self.files[field].check_size()
            copies.append(np.array(self.arrays[field][start:stop]))
            self.files[field].touched(copies[-1].nbytes)
        return tuple(copies)

    def put(
        self,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        into: Mapping[str, NDArray[Any]],
    ) -> None:
        """Put copies of rows with these numbers into arrays."""
        if not self.random_access:
            super().put(rows, places, into)
            return
        for field, array in into.items():
            self.files[field].copy_rows(self.arrays[field], rows, places, array)


def open_npy_pair(path: Any, theta: Any = None, x: Any = None) -> NpySource:
    """Open two `.npy` files: `(theta.npy, x.npy)`, or a folder in which they have these names.

    Raises:
        DataError: If one is missing, is no `.npy` file or holds pickled objects.
    """
    if isinstance(path, tuple | list):
        paths = dict(zip(FIELDS, map(existing, path), strict=True))
    else:
        folder = existing(path)
        paths = {
            "theta": existing(folder / (theta or "theta.npy")),
            "x": existing(folder / (x or "x.npy")),
        }
    files = {field: MappedFile(p) for field, p in paths.items()}
    arrays = {}
    for field, file in files.items():
        with file.path.open("rb") as stream:
            shape, fortran, dtype = _header(stream, str(file.path))
            arrays[field] = file.array(stream.tell(), dtype, shape, fortran)
    return NpySource(" + ".join(map(str, paths.values())), arrays, files)


def open_npz(path: Any, theta: Any = None, x: Any = None) -> NpySource:
    """Open an `.npz` whose arrays are not compressed, as `np.savez` writes it.

    numpy itself ignores `mmap_mode` for these files and reads them whole; here the arrays are
    mapped where they lie in the archive.

    Raises:
        DataError: If it is no archive, an array is missing, compressed or pickled.
    """
    file = MappedFile(existing(path))
    arrays = {}
    with archive(path) as found:
        for field, asked in zip(FIELDS, (theta or "theta", x or "x"), strict=True):
            member = _member(found, str(path), field, asked)
            if member.compress_type != zipfile.ZIP_STORED:
                raise DataError(
                    f"{path}: {asked} is compressed, and rows of it cannot be read without "
                    "reading all. Convert the file once: convert_simulations("
                    f"{str(path)!r}, 'simulations.h5')."
                )
            offset = _start(file, member)
            with found.open(member) as stream:
                shape, fortran, dtype = _header(stream, f"{path}[{asked}]")
                arrays[field] = file.array(offset + stream.tell(), dtype, shape, fortran)
    return NpySource(str(path), arrays, dict.fromkeys(FIELDS, file))


def archive(path: Any) -> zipfile.ZipFile:
    """Open an archive.

    Raises:
        DataError: If it is none, or broke off.
    """
    try:
        return zipfile.ZipFile(existing(path))
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path}: expected an .npz archive, this is none or it broke off while it was "
            f"written ({error})."
        ) from error


def stream_npz(path: Any, field: str, asked: str, rows: int) -> Iterator[NDArray[Any]]:
    """Yield the rows of an array in an archive, compressed or not, without holding all of it.

    Args:
        path: The archive.
        field: "theta" or "x".
        asked: The array's name.
        rows: Rows to yield at a time.
    """
    with archive(path) as found:
        member = _member(found, str(path), field, asked)
        with found.open(member) as stream:
            shape, fortran, dtype = _header(stream, f"{path}[{asked}]")
            if fortran and shape[1:]:
                raise DataError(
                    f"{path}: {asked} is in Fortran order and compressed, so that no row can be "
                    "had before all are read. Load it with numpy and save it by np.savez."
                )
            size = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
            for begin in range(0, shape[0], rows):
                count = min(rows, shape[0] - begin)
                data = stream.read(count * size)
                if len(data) < count * size:
                    raise DataError(f"{path}: {asked} breaks off after {begin} rows.")
                yield np.frombuffer(data, dtype=dtype).reshape(count, *shape[1:])


def _member(found: zipfile.ZipFile, name: str, field: str, asked: str) -> zipfile.ZipInfo:
    try:
        return found.getinfo(f"{asked}.npy")
    except KeyError:
        names = [n.removesuffix(".npy") for n in found.namelist()]
        raise missing(name, field, asked, names) from None


def _start(file: MappedFile, member: zipfile.ZipInfo) -> int:
    """Return where the data of a member begin: after its local header, which has its own length."""
    at = member.header_offset
    name, extra = (int.from_bytes(file.map[at + i : at + i + 2], "little") for i in (26, 28))
    return at + 30 + name + extra


def _header(stream: BinaryIO | Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an `.npy` file and leave the stream at its data."""
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(stream)
    except (ValueError, KeyError, EOFError) as error:
        raise DataError(f"{name}: expected an .npy file, its header says otherwise: {error}") from (
            error
        )
    if dtype.hasobject:
        raise DataError(
            f"{name}: expected numbers, got pickled Python objects, which could run any code when "
            "they are read. Save an array of numbers."
        )
    return shape, fortran and len(shape) > 1, dtype
