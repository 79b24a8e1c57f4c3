#!/usr/bin/env bash
# HDF5: reading many blocks of a data set in one call takes many times as long as block by block.
#
# Whoever trains from a file reads blocks of neighbouring rows from all over it. HDF5 can select them
# all (H5Sselect_hyperslab with H5S_SELECT_OR) and read them in one call, which should save a call per
# block. It is the other way round, in the file's order, without compression and from the system's
# cache: both selecting and reading go through all blocks again and again, so that time per row grows
# with the number of blocks. h5py's own lists and masks of rows take this way.
#
# Seen with h5py 3.16.0 (HDF5 2.0.0), numpy 2.4.6, Python 3.11; rows of 16 kB, blocks of 15 rows:
#   64 blocks: one call each 8 ms, one call for all 178 ms
#   256 blocks: one call each 22 ms, one call for all 655 ms
#
# Exits with 0 if one call for 256 blocks still takes more than three times as long, with 1 if it does
# not, with 2 if the packages cannot be installed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet h5py==3.16.0 numpy==2.4.6 || {
    echo "The packages could not be installed." >&2
    exit 2
}
cat > "$folder/blocks.py" <<'PYTHON'
import statistics
import sys
import time

import h5py
import numpy as np

ROW, BLOCK, TOTAL = (64, 64), 15, 1_000
path = sys.argv[1]
rng = np.random.default_rng(0)
with h5py.File(path, "w") as file:
    values = rng.standard_normal((TOTAL * BLOCK, *ROW)).astype("float32")
    file.create_dataset("x", data=values, chunks=(BLOCK, *ROW))


def one_call_each(data, blocks, into):
    for number, block in enumerate(blocks):
        into[number * BLOCK : (number + 1) * BLOCK] = data[block * BLOCK : (block + 1) * BLOCK]


def one_call_for_all(data, blocks, into):
    selected = data.id.get_space()
    selected.select_none()
    for block in blocks:
        start = (int(block) * BLOCK, 0, 0)
        selected.select_hyperslab(start, (BLOCK, *ROW), op=h5py.h5s.SELECT_OR)
    data.id.read(h5py.h5s.create_simple(into.shape), selected, into)


with h5py.File(path) as file:
    for count in (64, 256):
        blocks = np.sort(rng.choice(TOTAL, count, replace=False))
        seconds, read = {}, {}
        for way in (one_call_each, one_call_for_all):
            into = read[way] = np.empty((count * BLOCK, *ROW), dtype="float32")
            times = []
            for _ in range(4):
                begin = time.perf_counter()
                way(file["x"], blocks, into)
                times.append(time.perf_counter() - begin)
            seconds[way] = statistics.median(times)
        same = np.array_equal(*read.values())
        each, together = (1e3 * s for s in seconds.values())
        print(f"{count} blocks: one call each {each:.0f} ms, one call for all {together:.0f} ms")
print(f"HDF5 {h5py.version.hdf5_version}, the same rows: {same}", file=sys.stderr)
sys.exit(0 if same and together > 3 * each else 1)
PYTHON
"$folder/venv/bin/python" "$folder/blocks.py" "$folder/x.h5"
