"""Simulations are read right from every layout that the field has, and anything else is refused."""

from __future__ import annotations

import glob
import logging
import multiprocessing
import pickle
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sbi_ignite import SimulationWriter, convert_simulations, open_simulations
from sbi_ignite.data.files.table import FORMATS, open_source
from sbi_ignite.exceptions import (
    ArgumentError,
    DataError,
    MissingPackageError,
    SbiIgniteWarning,
)
from tests.data import write


@pytest.mark.parametrize("layout", write.WRITERS)
@pytest.mark.parametrize("x_shape", [(3,), (2, 4), ()], ids=str)
def test_every_layout_gives_back_the_rows_that_were_written(tmp_path, layout, x_shape):
    theta, x = write.simulations(100, x_shape)
    with open_simulations(write.WRITERS[layout](tmp_path, theta, x)) as found:
        assert (len(found), found.theta_shape, found.x_shape) == (100, (2,), x_shape)
        rows = np.random.default_rng(0).permutation(100)[:37]
        read = found.read(rows)
        assert all(t.dtype == torch.float32 for t in read)
        assert torch.equal(read[0], torch.from_numpy(theta[rows]))
        assert torch.equal(read[1], torch.from_numpy(x[rows]))
        assert torch.equal(found.x[90:], torch.from_numpy(x[90:]))
        assert torch.equal(found.theta[-1], torch.from_numpy(theta[-1]))
        assert torch.equal(found[5][1], torch.from_numpy(np.asarray(x[5])))
        pieces = list(found.pieces())
        assert torch.equal(torch.cat([x for _, (_, x) in pieces]), torch.from_numpy(x))
        for row in (100, -101):
            with pytest.raises(IndexError, match=rf"expected rows below 100, got \[{row}\]"):
                found.read([row])


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">f8", "i2", "u1", "f2", "?"])
@pytest.mark.parametrize("layout", ["lampe", "npy", "npz", "swyft"])
def test_numbers_of_every_kind_become_float32(tmp_path, layout, dtype, caplog):
    theta, x = write.simulations(50)
    x = (x % 2).astype(dtype)
    if layout == "lampe":
        import h5py

        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["theta"], file["x"] = theta, x
        path = tmp_path / "a.h5"
    else:
        path = write.WRITERS[layout](tmp_path, theta, x)
    with caplog.at_level(logging.INFO, "sbi_ignite.data"):
        found = open_simulations(path)
    assert torch.equal(found.x[:], torch.from_numpy(x.astype("float32")))
    assert "read as float32" in caplog.text


@pytest.mark.parametrize("dtype", [">i2", ">i4", ">f8", "float64"])
@pytest.mark.parametrize(
    ("layout", "order"),
    [("npy", "C"), ("npy", "F"), ("npz", "C"), ("npz", "F"), ("hdf5", "C"), ("arrow", "C")],
)
def test_theta_and_x_of_any_byte_order_and_layout_are_read_exactly(tmp_path, layout, order, dtype):
    numbers = np.arange(-300, 301)
    theta = np.stack([numbers, numbers[::-1]], axis=1)
    x = np.stack([numbers, -numbers, abs(numbers)], axis=1)
    stored = [np.asarray(values, dtype=dtype, order=order) for values in (theta, x)]
    if layout == "hdf5":
        import h5py

        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["theta"], file["x"] = stored
    else:
        if layout == "arrow":  # which has no big-endian numbers
            stored = [values.astype(values.dtype.newbyteorder("=")) for values in stored]
        path = write.WRITERS[layout](tmp_path, *stored)
    found = open_simulations(path)
    rows = np.random.default_rng(0).permutation(601)
    for values, read in ((theta, found.theta), (x, found.x)):
        expected = torch.from_numpy(values.astype(np.float32))
        assert read[:].dtype == torch.float32
        assert torch.equal(read[:], expected)
        assert torch.equal(read[rows], expected[rows])


def test_fortran_order_and_strided_arrays_are_read_right(tmp_path):
    theta, x = write.simulations(60, (4, 5))
    np.save(tmp_path / "theta.npy", np.asfortranarray(theta))
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    found = open_simulations(tmp_path)
    assert not found.random_access
    rows = [3, 1, 59, 22]
    assert torch.equal(found.x[rows], torch.from_numpy(x[rows]))
    with SimulationWriter(tmp_path / "s.h5") as writer:
        writer.append(np.asfortranarray(theta)[::2], x[::-1][::2])
    assert torch.equal(
        open_simulations(tmp_path / "s.h5").x[:], torch.from_numpy(x[::-1][::2].copy())
    )


def test_a_store_of_swyft_gives_complete_rows_alone(tmp_path):
    theta, x = write.simulations(100)
    status = np.ones(100, int)
    status[[0, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 50, 99]] = 0
    x[status == 0] = 0
    found = open_simulations(write.swyft(tmp_path, theta, x, status))
    assert len(found) == 86
    assert torch.equal(found.theta[:], torch.from_numpy(theta[status == 1]))
    rows = [80, 3, 9, 10]
    assert torch.equal(found.theta[rows], torch.from_numpy(theta[status == 1][rows]))
    assert (found.x[:] != 0).all()


@pytest.mark.parametrize("mix", [[1, 0, 2, -1], [2, 1], [-1, 0, 1, 1, 1], [0] * 20 + [1, 2]])
def test_rows_of_swyft_with_any_status_but_1_are_not_read(tmp_path, mix):
    theta, x = write.simulations(100)
    status = np.resize(mix, 100)
    kept = torch.from_numpy(theta[status == 1]), torch.from_numpy(x[status == 1])
    found = open_simulations(write.swyft(tmp_path, theta, x, status))
    assert len(found) == len(kept[0])
    rows = np.random.default_rng(0).permutation(len(found))
    assert all(map(torch.equal, (found.theta[:], found.x[:]), kept))
    assert all(torch.equal(read, k[rows]) for read, k in zip(found.read(rows), kept, strict=True))


def test_rows_at_random_are_the_default_where_they_are_cheap(tmp_path):
    expected = dict.fromkeys(("ours", "lampe", "swyft"), False)
    expected |= dict.fromkeys(("npy", "npz", "arrow"), True)
    found = {}
    for layout, writer in write.WRITERS.items():
        found[layout] = open_simulations(writer(tmp_path, *write.simulations(20))).random_access
    assert found == expected


@pytest.mark.parametrize("layout", ["npy", "npz"])
def test_arrays_of_numpy_are_the_mapped_file_itself(tmp_path, layout):
    source = open_source(write.WRITERS[layout](tmp_path, *write.simulations(50)))
    for field, array in source.arrays.items():
        mapped = np.frombuffer(source.files[field].map, dtype=np.uint8)
        assert np.shares_memory(array, mapped)
        assert not array.flags.writeable


def test_rows_that_lampe_announced_and_never_wrote_are_left_out(tmp_path, caplog):
    theta, x = write.simulations(40)
    theta[30:], x[30:] = 0, 0
    found = open_simulations(write.lampe(tmp_path, theta, x))
    assert len(found) == 30
    assert "the last 10 of 40 rows are zeros" in caplog.text


def test_dingo_gives_the_named_parameters_and_what_a_function_makes_of_the_rest(tmp_path):
    theta, x = write.simulations(30)
    path = write.dingo(tmp_path, theta, x)
    found = open_simulations(path, format="dingo", theta=["mass_2"], x=write.h_plus)
    assert torch.equal(found.theta[[4, 2]], torch.from_numpy(theta[[4, 2], 1:]))
    assert torch.equal(found.x[[4, 2]], torch.from_numpy(x[[4, 2]]))
    again = pickle.loads(pickle.dumps(found))
    assert torch.equal(again.x[7:9], found.x[7:9])
    with pytest.raises(DataError, match=r"theta.*'spin'.*'mass_1', 'mass_2'"):
        open_simulations(path, format="dingo", theta=["spin"], x=write.h_plus)
    with pytest.raises(ArgumentError, match="expected a function"):
        open_simulations(path, format="dingo")


def test_names_can_be_given_and_a_wrong_one_shows_which_there_are(tmp_path):
    np.savez(tmp_path / "a.npz", parameters=np.ones((5, 2)), images=np.ones((5, 3)))
    found = open_simulations(tmp_path / "a.npz", theta="parameters", x="images")
    assert found.x_shape == (3,)
    with pytest.raises(DataError, match="found 'images', 'parameters'"):
        open_simulations(tmp_path / "a.npz", theta="parameters")


@pytest.mark.parametrize("layout", ["lampe", "swyft", "npz", "arrow", "npy"])
def test_every_layout_with_names_takes_others_by_argument(tmp_path, layout):
    theta, x = write.simulations(40)
    names = {"theta": "z", "x": "obs"}
    if layout == "npy":
        for name, values in (("z.npy", theta), ("obs.npy", x)):
            np.save(tmp_path / name, values)
        path = tmp_path
        names = {"theta": "z.npy", "x": "obs.npy", "format": "npy"}
    else:
        path = write.WRITERS[layout](tmp_path, theta, x, names=("z", "obs"))
    found = open_simulations(path, **names)
    assert torch.equal(found.theta[:], torch.from_numpy(theta))
    assert torch.equal(found.x[:], torch.from_numpy(x))
    with pytest.raises(DataError, match=r"theta"):
        open_simulations(path, format=names.get("format"))


@pytest.mark.parametrize("layout", ["ours", "npz", "arrow", "npy"])
def test_shards_are_joined_in_sorted_order(tmp_path, layout):
    theta, x = write.simulations(100)
    bounds = [0, 31, 32, 90, 100]
    for i, (begin, end) in enumerate(pairwise(bounds)):
        folder = tmp_path / f"part-{i}"
        folder.mkdir()
        path = write.WRITERS[layout](folder, theta[begin:end], x[begin:end])
    if layout == "npy":
        pattern = (str(tmp_path / "part-*" / "theta.npy"), str(tmp_path / "part-*" / "x.npy"))
    else:
        pattern = str(tmp_path / "part-*" / path.name)
    found = open_simulations(pattern)
    rows = [99, 0, 31, 30, 32, 89, 90]
    assert torch.equal(found.theta[rows], torch.from_numpy(theta[rows]))
    assert torch.equal(found.x[20:95], torch.from_numpy(x[20:95]))
    assert (np.diff(found.starts()) > 0).all()


@pytest.mark.parametrize("how", ["list", "pattern"])
@pytest.mark.parametrize("layout", ["ours", "npz", "arrow", "npy"])
def test_shards_are_sorted_in_whatever_order_they_are_found(tmp_path, monkeypatch, layout, how):
    if layout == "npy" and how == "list":
        pytest.skip("a list has files, a pair of .npy is two")
    theta, x = write.simulations(60)
    for i, cut in enumerate(np.array_split(np.arange(60), 3)):
        (tmp_path / f"part-{i}").mkdir()
        path = write.WRITERS[layout](tmp_path / f"part-{i}", theta[cut], x[cut])
    names = [Path(one).name for one in path] if layout == "npy" else [path.name]
    patterns = [str(tmp_path / "part-*" / name) for name in names]
    asked, found_by = [], glob.glob

    def reversed_glob(pattern):
        asked.append(pattern)
        return sorted(found_by(pattern), reverse=True)

    if how == "list":
        where = reversed_glob(patterns[0])
        assert where[0] > where[-1]
    else:
        monkeypatch.setattr(glob, "glob", reversed_glob)
        where = tuple(patterns) if layout == "npy" else patterns[0]
    found = open_simulations(where)
    assert asked == patterns
    assert torch.equal(found.theta[:], torch.from_numpy(theta))
    assert torch.equal(found.x[:], torch.from_numpy(x))


@pytest.mark.parametrize("field", ["theta", "x"])
def test_shards_with_different_dtypes_are_refused(tmp_path, field):
    for name, dtype in (("a", "float32"), ("b", "float64")):
        arrays = {"theta": np.ones((5, 2), "float32"), "x": np.ones((5, 3), "float32")}
        np.savez(tmp_path / f"{name}.npz", **arrays | {field: arrays[field].astype(dtype)})
    expected = rf"same dtype of {field} in all files, got float32 .*a.npz and float64 .*b.npz"
    with pytest.raises(DataError, match=expected):
        open_simulations(str(tmp_path / "*.npz"))


def test_shards_that_do_not_fit_together_are_refused(tmp_path):
    for name, width in (("a", 3), ("b", 4)):
        np.savez(tmp_path / f"{name}.npz", theta=np.ones((5, 2)), x=np.ones((5, width)))
    with pytest.raises(DataError, match=r"same shape of x in all files, got \(3,\).*\(4,\).*b.npz"):
        open_simulations(str(tmp_path / "*.npz"))
    with pytest.raises(DataError, match="match this pattern"):
        open_simulations(str(tmp_path / "*.h5"))


def _break(path, how):
    data = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(data[: len(data) * 2 // 3])
    else:
        path.write_bytes(b"these are no simulations" * 100)


@pytest.mark.parametrize("how", ["empty", "truncated", "foreign"])
@pytest.mark.parametrize("layout", ["ours", "lampe", "npy", "npz", "arrow"])
def test_a_damaged_file_is_refused_by_name(tmp_path, layout, how):
    theta, x = write.simulations(3000)
    path = write.WRITERS[layout](tmp_path, theta, x)
    broken = tmp_path / "x.npy" if layout == "npy" else path
    _break(broken, how)
    with pytest.raises(DataError, match=broken.name):
        open_simulations(path)


def test_what_is_no_file_of_simulations_is_refused_with_advice(tmp_path):
    for path, advice in (
        (tmp_path / "none.h5", "there is none"),
        (str(tmp_path), "does not tell its format"),
    ):
        with pytest.raises((DataError, ArgumentError), match=advice):
            open_simulations(path)
    np.save(tmp_path / "theta.npy", np.ones((3, 2)))
    with pytest.raises(ArgumentError, match="holds one array"):
        open_simulations(tmp_path / "theta.npy")
    np.save(tmp_path / "x.npy", np.ones((4, 2)))
    with pytest.raises(DataError, match="as many rows of theta as of x, got 3 and 4"):
        open_simulations(tmp_path)
    np.save(tmp_path / "x.npy", np.array([{}, {}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="could run any code"):
        open_simulations(tmp_path)
    np.save(tmp_path / "x.npy", np.ones(3, dtype=complex))
    with pytest.raises(DataError, match="two real channels"):
        open_simulations(tmp_path)
    with pytest.raises(ArgumentError, match="expected one of hdf5"):
        open_simulations(tmp_path, format="csv")
    assert set(FORMATS) == {"hdf5", "lampe", "swyft", "npy", "npz", "arrow", "dingo"}


def test_a_compressed_archive_is_refused_and_converted(tmp_path):
    theta, x = write.simulations(3000, (2, 2))
    np.savez_compressed(tmp_path / "a.npz", theta=theta, x=x)
    with pytest.raises(DataError, match="convert_simulations"):
        open_simulations(tmp_path / "a.npz")
    found = convert_simulations(tmp_path / "a.npz", tmp_path / "a.h5")
    assert torch.equal(found.x[:], torch.from_numpy(x))
    with pytest.raises(DataError, match="it exists"):
        convert_simulations(tmp_path / "a.npz", tmp_path / "a.h5")


def test_pickles_are_converted_on_request_with_a_warning(tmp_path):
    theta, x = write.simulations(20)
    folder = write.bayesflow(tmp_path, theta, x)
    with pytest.raises(DataError, match="format='bayesflow'"):
        open_simulations(folder)
    names = {"theta": "parameters", "x": ["observables"], "format": "bayesflow"}
    with pytest.raises(ArgumentError, match="allow_pickle=True"):
        convert_simulations(folder, tmp_path / "a.h5", **names)
    with pytest.warns(SbiIgniteWarning, match="run any code"):
        found = convert_simulations(folder, tmp_path / "a.h5", **names, allow_pickle=True)
    assert torch.equal(found.theta[:], torch.from_numpy(theta))
    assert torch.equal(found.x[:], torch.from_numpy(x))


@pytest.mark.parametrize(
    ("layout", "package", "extra"),
    [("ours", "h5py", "h5"), ("swyft", "zarr", "zarr"), ("arrow", "pyarrow", "arrow")],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    tmp_path, monkeypatch, layout, package, extra
):
    path = write.WRITERS[layout](tmp_path, *write.simulations(5))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"pip install 'sbi-ignite\[{extra}\]'"):
        open_simulations(path)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("layout", ["ours", "npz", "swyft"])
def test_a_dataloader_yields_every_row_once_with_any_number_of_workers(
    tmp_path, layout, start, num_workers
):
    if start == "spawn" and (num_workers != 1 or layout == "swyft"):
        pytest.skip("a process that is spawned takes seconds; one case shows the promise")
    found = open_simulations(write.WRITERS[layout](tmp_path, *write.simulations(60)))
    found.x[0]  # opened here, and used by forked processes
    context = multiprocessing.get_context(start) if num_workers else None
    loader = DataLoader(
        found, batch_size=7, shuffle=True, num_workers=num_workers, multiprocessing_context=context
    )
    batches = list(loader)
    rows = torch.cat([theta[:, 0] for theta, _ in batches])
    assert sorted(rows.tolist()) == list(range(60))
    assert all(torch.equal(theta[:, 0] + 0.5, x[:, 0]) for theta, x in batches)


def test_the_fingerprint_tells_files_apart_and_knows_a_copy_and_a_growing_file(tmp_path):
    theta, x = write.simulations(200)
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first = open_simulations(write.ours(tmp_path / "a", theta, x))
    same = open_simulations(write.ours(tmp_path / "b", theta, x))
    assert first.fingerprint() == same.fingerprint()
    same.close()
    with SimulationWriter(tmp_path / "b" / "ours.h5") as writer:
        writer.append(theta[:9], x[:9])
    grown = open_simulations(tmp_path / "b" / "ours.h5")
    assert len(grown) == 209
    assert grown.fingerprint() != first.fingerprint()
    known = open_simulations(tmp_path / "b" / "ours.h5", num_rows=200)
    assert known.fingerprint() == first.fingerprint()
    x[150] += 1
    (tmp_path / "c").mkdir()
    changed = open_simulations(write.ours(tmp_path / "c", theta, x))
    assert changed.fingerprint() != first.fingerprint()
