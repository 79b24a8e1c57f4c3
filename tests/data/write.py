"""Files of simulations in every layout, as the field's own libraries write them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from sbi_ignite import SimulationWriter

NAMES = ("theta", "x")
"""Of theta and x in files, unless others are given."""


def simulations(num_rows: int = 100, x_shape: tuple[int, ...] = (3,)) -> tuple[Any, Any]:
    """Return theta (num_rows, 2) and x whose first numbers are those of the row."""
    rows = np.arange(num_rows, dtype=np.float32)
    theta = np.stack([rows, rows / 7], axis=1)
    x = np.broadcast_to(rows.reshape(-1, *([1] * len(x_shape))), (num_rows, *x_shape)) + 0.5
    return theta, np.ascontiguousarray(x, dtype=np.float32)


def ours(folder: Path, theta: Any, x: Any, chunk_rows: int = 7) -> Any:
    with SimulationWriter(folder / "ours.h5", chunk_rows=chunk_rows) as writer:
        for begin in range(0, len(theta), 13):
            writer.append(theta[begin : begin + 13], x[begin : begin + 13])
    return folder / "ours.h5"


def lampe(folder: Path, theta: Any, x: Any, names: tuple[str, str] = NAMES) -> Any:
    """What `lampe.data.H5Dataset.store` writes: contiguous float32."""
    import h5py

    with h5py.File(folder / "lampe.h5", "w") as file:
        for name, values in zip(names, (theta, x), strict=True):
            file.create_dataset(name, data=np.asarray(values, np.float32))
    return folder / "lampe.h5"


def swyft(
    folder: Path,
    theta: Any,
    x: Any,
    status: Any = None,
    chunk_rows: int = 7,
    names: tuple[str, str] = NAMES,
) -> Any:
    """The version 2 layout of swyft's ZarrStore."""
    import zarr

    group = zarr.open_group(str(folder / "swyft.zarr"), mode="w", zarr_format=2)
    for name, values in zip(names, (theta, x), strict=True):
        chunks = (chunk_rows, *values.shape[1:])
        array = group.create_array(
            f"data/{name}", shape=values.shape, chunks=chunks, dtype=values.dtype
        )
        array[:] = values
    status = np.ones(len(theta), np.int32) if status is None else np.asarray(status, np.int32)
    meta = group.create_array(
        "meta/sim_status", shape=status.shape, chunks=status.shape, dtype="int32"
    )
    meta[:] = status
    return folder / "swyft.zarr"


def npy(folder: Path, theta: Any, x: Any) -> Any:
    np.save(folder / "theta.npy", theta)
    np.save(folder / "x.npy", x)
    return str(folder / "theta.npy"), str(folder / "x.npy")


def npz(folder: Path, theta: Any, x: Any, names: tuple[str, str] = NAMES) -> Any:
    np.savez(folder / "pair.npz", **dict(zip(names, (theta, x), strict=True)))
    return folder / "pair.npz"


def arrow(
    folder: Path, theta: Any, x: Any, batch_rows: int = 17, names: tuple[str, str] = NAMES
) -> Any:
    import pyarrow as pa

    def lists(values: Any) -> Any:
        array = pa.array(np.ascontiguousarray(values).reshape(-1))
        for size in reversed(values.shape[1:]):
            array = pa.FixedSizeListArray.from_arrays(array, size)
        return array

    table = pa.table(dict(zip(names, (lists(theta), lists(x)), strict=True)))
    with pa.ipc.new_file(str(folder / "s.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return folder / "s.arrow"


def bayesflow(folder: Path, theta: Any, x: Any) -> Any:
    inside = folder / "pickles"
    inside.mkdir()
    for i, pair in enumerate(zip(theta, x, strict=True)):
        simulation = dict(zip(("parameters", "observables"), pair, strict=True))
        (inside / f"sim_{i:05}.pkl").write_bytes(pickle.dumps(simulation))
    return inside


def dingo(folder: Path, theta: Any, x: Any) -> Any:
    """Records of parameters, and data in groups of their own."""
    import h5py

    records = np.zeros(len(theta), dtype=[("mass_1", "f8"), ("mass_2", "f8")])
    records["mass_1"], records["mass_2"] = theta[:, 0], theta[:, 1]
    with h5py.File(folder / "dingo.hdf5", "w") as file:
        file.create_dataset("parameters", data=records)
        file.create_dataset("polarizations/h_plus", data=x)
    return folder / "dingo.hdf5"


def h_plus(file: Any, rows: slice) -> Any:
    """Return x of one of these files."""
    return file["polarizations/h_plus"][rows]


WRITERS = {
    "ours": ours,
    "lampe": lampe,
    "swyft": swyft,
    "npy": npy,
    "npz": npz,
    "arrow": arrow,
}
"""Layouts that need nothing but a path to be opened."""
