"""Files that are mapped are read only as far as they still are."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest

from sbi_ignite import open_simulations
from sbi_ignite.data.files.mapped import MappedFile
from sbi_ignite.exceptions import DataError
from tests.data import write


@pytest.mark.parametrize("layout", ["npy", "npz", "arrow"])
@pytest.mark.parametrize("rows", [slice(0, 1_000), [999, 3, 3]])
def test_a_file_that_was_cut_short_after_it_was_opened_is_refused(tmp_path, layout, rows):
    theta, x = write.simulations(1_000)
    simulations = open_simulations(write.WRITERS[layout](tmp_path, theta, x))
    assert len(simulations.x[rows])
    for file in tmp_path.rglob("*.*"):
        os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(DataError, match="has changed since it was opened"):
        simulations.x[rows]


def test_files_are_closed_with_what_reads_them(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(10))
    file = MappedFile(tmp_path / "a.npy")
    descriptor = file._file
    assert os.fstat(descriptor).st_size == file.num_bytes
    del file
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
