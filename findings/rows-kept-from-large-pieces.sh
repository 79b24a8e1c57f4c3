#!/usr/bin/env bash
# A pass over a large file that keeps two rows of each piece can need the memory of the whole file.
#
# Tools that read simulations piece by piece keep a few rows of each on the way (for z-scoring, a
# prior, a preview). On a CPU, torch takes tensors from the system's allocator. glibc gives back to
# the system what is above 32 MB; smaller blocks come from its heap, as soon as one of their size has
# been freed. A row that is kept is put into the gap that the last piece has left; the next piece no
# longer fits there, so that the heap grows by about a piece each time, though 2 MB are held in all.
# The same rows copied into one tensor that was made before the pass, or pieces above 32 MB with
# nothing kept in between, need one piece. Neither gc.collect() nor a smaller share of kept rows helps.
#
# Seen with torch 2.13.0 (CPU), numpy 2.4.6, Python 3.11, glibc on Linux; 60 pieces of 31 MB:
#   grew by 560 MB, two rows of each piece kept in a list
#   grew by 90 to 180 MB, the same rows kept in one tensor
#
# Exits with 0 if the list still needs more than twice as much, with 1 if it does not, with 2 if
# torch cannot be installed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 || {
    echo "The packages could not be installed." >&2
    exit 2
}
cat > "$folder/keep.py" <<'PYTHON'
import sys

import torch

ROWS, WIDTH, PIECES = 1_900, 4_096, 60  # float32: 31 MB a piece


def resident():
    """Return the resident memory of this process in MB."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS"))


torch.set_num_threads(1)
in_a_list, in_one_tensor = [], torch.zeros(2 * PIECES, WIDTH)
before, most = resident(), 0.0
for number in range(PIECES):
    piece = torch.full((ROWS, WIDTH), 1.0)
    piece.isfinite().all(dim=1)
    rows = piece[torch.tensor([0, ROWS - 1])]
    if sys.argv[1] == "list":
        in_a_list.append(rows)
    else:
        in_one_tensor[2 * number : 2 * number + 2] = rows
    del piece, rows
    most = max(most, resident())
print(round(most - before))
PYTHON
list=$("$folder/venv/bin/python" "$folder/keep.py" list)
block=$("$folder/venv/bin/python" "$folder/keep.py" block)
echo "grew by $list MB, two rows of each piece kept in a list"
echo "grew by $block MB, the same rows kept in one tensor"
[ "$list" -gt $((2 * block)) ]
