r"""What does it cost to train on simulations that lie in files?

Images of 64 x 64 numbers and two parameters in an HDF5 file that is made first. Memory is the peak
of a process that trains an epoch of NPE and of FMPE, above the peak of another that trains on a few
of the same images in memory, without these. Speeds are side by side with the same rows in memory,
and with a sequential read of the file by h5py. Random rows and shuffled blocks are compared for
every layout, and the quality of the shuffle on SLCP, from a file sorted by its parameters.

    python -m benchmarks.out_of_core [--gigabytes 4] [--rows-in-memory 20000] [--folder DIR]
    python -m benchmarks.out_of_core --gigabytes 0.1 --rounds 1 --simulations 500 \
        --epochs 2 --rows-in-memory 2048
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from sbi.neural_nets import posterior_flow_nn, posterior_nn
from sbi.utils import BoxUniform
from torch import Tensor, nn

from benchmarks.measuring import (
    FOLDER,
    Result,
    Spread,
    Table,
    Timing,
    alternate,
    conclude,
    options_of,
    parse,
    ratios,
    timed,
)
from benchmarks.tasks import JUDGED
from sbi_ignite import (
    FMPE,
    NPE,
    EarlyStopping,
    SimulationWriter,
    TrainConfig,
    open_simulations,
)
from sbi_ignite.data import on_disk
from sbi_ignite.data.files import hdf5
from sbi_ignite.data.files.base import BLOCK_BYTES
from sbi_ignite.data.in_memory import ShuffledBatches
from sbi_ignite.data.on_disk import BUFFER_BYTES, OnDiskBatches
from sbi_ignite.data.table import StoredPart
from sbi_ignite.data.table import Table as RowTable

SIDE, BATCH = 64, 1_024
FEW = 40
"""Rows of a batch of SLCP: a buffer that holds less than a batch is made larger."""
ROW_BYTES = 4 * (SIDE * SIDE + 2)
PARTS = ("memory", "speed", "layouts", "shuffle")
BOUND_MB, BOUND_IN_MEMORY, BOUND_SEQUENTIAL = 800, 0.8, 0.6


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all parts and print them."""
    parser = options_of(__doc__, rounds=5)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the file")
    parser.add_argument("--rows-in-memory", type=int, default=20_000)
    parser.add_argument("--simulations", type=int, default=10_000, help="of SLCP")
    parser.add_argument("--epochs", type=int, default=20, help="on SLCP")
    parser.add_argument("--folder", type=Path, help="where files are made (default: temporary)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parse(parser, arguments)
    if options.peak_of:
        print(json.dumps(peak_of(options.peak_of, options.folder)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        result = Result("out_of_core", "What does training on simulations in files cost?")
        parts: dict[str, Callable[[], None]] = {
            "memory": lambda: memory_part(result, folder, options.gigabytes),
            "speed": lambda: speed_part(result, folder, options.rounds, options.rows_in_memory),
            "layouts": lambda: layout_part(result, folder, options.rounds, options.rows_in_memory),
            "shuffle": lambda: quality_part(result, folder, options.simulations, options.epochs),
        }
        for part in options.parts:
            parts[part]()
            print(f"\n{result.tables[-1]}", file=sys.stderr, flush=True)  # hours may be to come
        result.notes += plan(100_000_000)
        conclude(result, options)


# --- the file and the networks


def images(theta: Tensor) -> Tensor:
    """Return images (n, 64, 64) with a bright spot where theta (n, 2) says."""
    grid = torch.linspace(-1, 1, SIDE)
    spots = [(-(grid - theta[:, i : i + 1]).square() * 20).exp() for i in (0, 1)]
    picture = spots[0][:, :, None] * spots[1][:, None, :]
    return picture + 0.1 * torch.randn_like(picture)


def prior() -> BoxUniform:
    """Return the prior of theta."""
    return BoxUniform(-torch.ones(2), torch.ones(2))


def make(path: Path, num_rows: int) -> None:
    """Write a file of images."""
    torch.manual_seed(0)
    with SimulationWriter(path) as writer:
        for begin in range(0, num_rows, 2_000):
            theta = prior().sample((min(2_000, num_rows - begin),))
            writer.append(theta, images(theta))


def embedding() -> nn.Module:
    """Return a small convolutional network for these images."""
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE)),
        nn.Conv2d(1, 8, 8, stride=4),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 32),
    )


def trainer_of(method: str) -> Any:
    """Return an NPE or FMPE trainer for these images."""
    if method == "NPE":
        estimator = posterior_nn("maf", embedding_net=embedding(), z_score_x="structured")
        return NPE(prior(), density_estimator=estimator, show_progress_bars=False)
    flow = posterior_flow_nn("mlp", embedding_net=embedding(), z_score_x="structured")
    return FMPE(prior(), vf_estimator=flow, show_progress_bars=False)


def an_epoch(trainer: Any, epochs: int = 1) -> Any:
    """Train for an epoch, or a few."""
    config = TrainConfig(max_epochs=epochs, batch_size=BATCH, seed=0)
    return trainer.train(config, early_stopping=EarlyStopping.never())


# --- memory


def memory_part(result: Result, folder: Path, gigabytes: float) -> None:
    """Measure the peak of an epoch of NPE and of FMPE."""
    path = folder / "images.h5"
    num_rows = max(4 * BATCH, int(gigabytes * 1e9 / ROW_BYTES))
    made = timed(lambda: make(path, num_rows))
    rows = []
    for method in ("NPE", "FMPE"):
        peaks = []
        for source in ([], ["--folder", str(path.resolve())]):
            command = [sys.executable, "-m", "benchmarks.out_of_core", "--peak-of", method]
            done = subprocess.run(
                [*command, *source], check=True, capture_output=True, text=True, cwd=FOLDER.parent
            )
            peaks.append(json.loads(done.stdout.splitlines()[-1]))
        held, peak = (found["peak"] for found in peaks)
        found = {"held": held, "added": peak - held, "seconds": peaks[1]["seconds"]}
        result.numbers[f"peak of {method}"] = found
        rows.append(
            [
                method,
                f"{found['held']:.0f}",
                f"{found['added']:.0f}",
                f"{found['seconds']:.0f}",
                "yes" if found["added"] < BOUND_MB else "no",
            ]
        )
    size = path.stat().st_size / 1e9
    result.tables.append(
        Table(
            [
                "epoch of",
                "in memory without rows, MB",
                "added at the peak, MB",
                "seconds",
                f"< {BOUND_MB} MB",
            ],
            rows,
            f"Peak resident memory, {num_rows:,} rows, {size:.2f} GB",
            "Seconds hold the pass over the file for invalid rows and that for z-scoring. The file "
            f"was written in {made.wall:.0f} s.",
        )
    )


def peak_of(method: str, path: Path | None) -> dict[str, float]:
    """Return the peak of this process in MB, in an epoch on a file or on a few rows in memory.

    Rows in memory are not counted: what remains are the libraries, the network and its activations.
    """
    torch.set_num_threads(1)
    began, trainer, rows, epochs = time.perf_counter(), trainer_of(method), 0.0, 1
    if path is None:
        epochs = 20  # for as many steps as are trained before steps are recorded
        theta = prior().sample((4 * BATCH,))
        x = images(theta)
        trainer.append_simulations(theta, x)
        rows = x.nbytes / 1e6
    else:
        trainer.append_simulations_from(open_simulations(path))
    an_epoch(trainer, epochs)
    return {"peak": status("VmHWM") - rows, "seconds": time.perf_counter() - began}


def status(name: str) -> float:
    """Return a size from the system's account of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(name))


# --- speed


def speed_part(result: Result, folder: Path, rounds: int, num_rows: int) -> None:
    """Compare with the same rows in memory, and with a sequential read."""
    path = folder / "some.h5"
    make(path, num_rows)
    dataset = open_simulations(path)
    theta, x = dataset.theta[:], dataset.x[:]

    def trained(append: Callable[[Any], Any]) -> Timing:
        """Time an epoch, without what comes before the first."""
        torch.manual_seed(0)
        trainer = trainer_of("NPE")
        append(trainer)
        an_epoch(trainer, 3)
        seconds = trainer.training_summary.epoch_durations_sec[-1]
        return Timing(seconds, seconds)

    epochs = alternate(
        {
            "memory": lambda: trained(lambda t: t.append_simulations(theta, x)),
            "file": lambda: trained(lambda t: t.append_simulations_from(dataset)),
        },
        rounds,
    )
    source = batches_of(dataset)

    def sequential() -> None:
        import h5py

        with h5py.File(path) as file:
            for begin in range(0, num_rows, 4_096):
                file["theta"][begin : begin + 4_096]
                file["x"][begin : begin + 4_096]

    bare = alternate(
        {
            "sequential": lambda: timed(sequential),
            "batches": lambda: timed(lambda: gone_through(source)),
        },
        rounds,
        warm_up=1,
    )
    to_memory, to_sequential = ratios(*epochs.values()), ratios(*bare.values())
    result.numbers["to memory"] = to_memory.median
    result.numbers["to sequential"] = to_sequential.median

    def speed(times: Sequence[Timing]) -> str:
        return f"{Spread.of(num_rows / t.wall for t in times):,.0f}"

    result.tables.append(
        Table(
            ["work", "beside it, rows/s", "from the file, rows/s", "ratio", "bound"],
            [
                [
                    f"epoch of NPE with a CNN, batches of {BATCH}, beside rows in memory",
                    speed(epochs["memory"]),
                    speed(epochs["file"]),
                    f"{to_memory:.2f}",
                    f"{BOUND_IN_MEMORY}",
                ],
                [
                    "bare iteration, beside a sequential read by h5py",
                    speed(bare["sequential"]),
                    speed(bare["batches"]),
                    f"{to_sequential:.2f}",
                    f"{BOUND_SEQUENTIAL}",
                ],
            ],
            f"Rows per second, {num_rows:,} rows",
            "The file is in the system's cache.",
        )
    )


def batches_of(dataset: Any, **kwargs: Any) -> OnDiskBatches:
    """Return shuffled batches over all rows."""
    rows = torch.arange(len(dataset))
    return OnDiskBatches(RowTable([StoredPart(dataset)]), rows, BATCH, 0, **kwargs)


def gone_through(batches: Any) -> int:
    """Go through a pass."""
    return sum(len(batch[0]) for batch in batches)


# --- layouts


def layout_part(result: Result, folder: Path, rounds: int, num_rows: int) -> None:
    """Compare rows at random with shuffled blocks in every layout."""
    num_rows = min(num_rows, 8_192)
    torch.manual_seed(0)
    theta = prior().sample((num_rows,))
    x = images(theta)
    memory = ShuffledBatches((theta, x), torch.arange(num_rows), BATCH, 0)
    rows = []
    for name, path in layouts(folder, theta.numpy(), x.numpy()).items():
        dataset = open_simulations(path)
        random = batches_of(dataset, random_access=True)
        blocks = batches_of(dataset, random_access=False)
        times = alternate(
            {
                "memory": lambda: timed(lambda: gone_through(memory)),
                "random": lambda random=random: timed(lambda: gone_through(random)),
                "blocks": lambda blocks=blocks: timed(lambda: gone_through(blocks)),
            },
            max(1, rounds - 2),
        )
        speeds = {n: Spread.of(num_rows / t.wall for t in ts).median for n, ts in times.items()}
        result.numbers[f"rows/s of {name}"] = speeds
        chosen = "random" if dataset.random_access else "blocks"
        rows.append([name, *(f"{speeds[n]:,.0f}" for n in ("random", "blocks")), chosen])
    speeds = result.numbers["rows/s of .npy pair"]
    rows.append(["in memory", f"{speeds['memory']:,.0f}", "", ""])
    result.tables.append(
        Table(
            ["layout", "rows at random", "shuffled blocks", "default"],
            rows,
            f"Rows per second by layout and order, {num_rows:,} rows of {ROW_BYTES:,} bytes",
            "Rows at random are the default where even so more than a gigabyte is read in a "
            "second: a pass then has the order of rows in memory, and no training waits for it.",
        )
    )


def layouts(folder: Path, theta: Any, x: Any) -> dict[str, Any]:
    """Write the same rows in every layout."""
    import h5py
    import pyarrow as pa
    import zarr

    with SimulationWriter(folder / "ours.h5") as writer:
        writer.append(theta, x)
    with h5py.File(folder / "lampe.h5", "w") as file:
        file["theta"], file["x"] = theta, x
    group = zarr.open_group(str(folder / "swyft.zarr"), mode="w", zarr_format=2)
    for name, values in (("data/theta", theta), ("data/x", x)):
        chunks = (16, *values.shape[1:])
        group.create_array(name, shape=values.shape, chunks=chunks, dtype="float32")[:] = values
    np.save(folder / "theta.npy", theta)
    np.save(folder / "x.npy", x)

    def lists(values: Any) -> Any:
        size = int(np.prod(values.shape[1:]))
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), size)

    table = pa.table({"theta": lists(theta), "x": lists(x)})
    with pa.ipc.new_file(str(folder / "s.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=1_024)
    return {
        "HDF5, ours": folder / "ours.h5",
        "HDF5, contiguous (LAMPE)": folder / "lampe.h5",
        "Zarr, 16 rows a chunk (swyft)": folder / "swyft.zarr",
        ".npy pair": (str(folder / "theta.npy"), str(folder / "x.npy")),
        "Arrow IPC": folder / "s.arrow",
    }


# --- the shuffle


def quality_part(result: Result, folder: Path, num_rows: int, epochs: int) -> None:
    """Compare held-out losses on SLCP: in memory, at random, and in blocks of a sorted file."""
    task = JUDGED["slcp"]
    theta, x = task.pairs(num_rows, seed=0)
    order = theta[:, 0].argsort()
    held_out = task.pairs(5_000, seed=1)
    write(folder / "mixed.h5", theta, x)
    chunk_rows = max(4, num_rows // 2_000)
    write(folder / "sorted.h5", theta[order], x[order], chunk_rows=chunk_rows)

    row_bytes = 4 * (theta.shape[1] + x.shape[1])

    def loss(append: Callable[[Any], Any], seed: int, buffer_share: float | None = None) -> float:
        torch.manual_seed(seed)
        trainer = NPE(task.prior, show_progress_bars=False)
        scaled = nullcontext() if buffer_share is None else small_pieces(buffer_share)
        with scaled:
            append(trainer)
            config = TrainConfig(max_epochs=epochs, batch_size=FEW, seed=seed)
            estimator = trainer.train(config, early_stopping=EarlyStopping.never())
        with torch.no_grad():
            return float(-estimator.log_prob(held_out[0][None], held_out[1]).mean())

    @contextmanager
    def small_pieces(buffer_share: float) -> Iterator[None]:
        """Read blocks and buffers that are as small for this file as the usual ones for a large."""
        defaults = on_disk.OnDiskBatches.__init__.__kwdefaults__
        buffer_bytes = int(buffer_share * num_rows * row_bytes)
        with (
            patch.object(hdf5, "BLOCK_BYTES", chunk_rows * row_bytes),
            patch.dict(defaults, buffer_bytes=buffer_bytes),
        ):
            yield

    def from_file(name: str) -> Callable[[Any], Any]:
        return lambda trainer: trainer.append_simulations_from(open_simulations(folder / name))

    ways: dict[str, tuple[Callable[[Any], Any], float | None]] = {
        "in memory": (lambda trainer: trainer.append_simulations(theta, x), None),
        "from a file": (from_file("mixed.h5"), None),
        "sorted file, buffer of 1/20 of it": (from_file("sorted.h5"), 1 / 20),
        "sorted file, buffer of 1/60 of it": (from_file("sorted.h5"), 1 / 60),
    }
    rows = []
    for name, (append, share) in ways.items():
        losses = Spread.of(loss(append, seed, share) for seed in range(3))
        result.numbers[f"loss {name}"] = losses.median
        rows.append([name, f"{losses:.3f}"])
    result.tables.append(
        Table(
            ["rows", "held-out loss, three seeds"],
            rows,
            f"SLCP, {num_rows:,} simulations, {epochs} epochs, batches of {FEW}",
            "The sorted file is sorted by its first parameter. A buffer of 64 MB is 1/60 of 4 GB, "
            "and holds four batches of 1,024 images, as one of 1/60 does here.",
        )
    )


def write(path: Path, theta: Tensor, x: Tensor, chunk_rows: int | None = None) -> None:
    """Write a file of simulations."""
    with SimulationWriter(path, chunk_rows=chunk_rows) as writer:
        writer.append(theta, x)


# --- on paper


def plan(num_rows: int) -> list[str]:
    """Return what a file of so many rows would cost, computed from how it is read."""
    size = num_rows * ROW_BYTES
    blocks = size // BLOCK_BYTES
    buffers = -(-size // BUFFER_BYTES)
    return [
        f"Planned, not run: {num_rows:,} rows of {ROW_BYTES:,} bytes are {size / 1e12:.2f} TB in "
        f"{blocks:,} blocks of 512 kB. A pass reads each block once, one seek each where the disk "
        f"has a head (about {blocks * 0.008 / 3600:.0f} h of seeks at 8 ms, none worth counting "
        f"on flash), in {buffers:,} buffers of {blocks // buffers} blocks; blocks that are drawn "
        "together are read in the order of the file.",
        f"Memory: three buffers of {BUFFER_BYTES / 2**20:.0f} MiB, and 8 bytes a row each for the "
        f"numbers of the rows as they were split and in ascending order, that is "
        f"{2 * 8 * num_rows / 1e9:.1f} GB at {num_rows:,} rows, whatever the size of a row. With "
        "several processes, each reads all blocks and keeps its share of every batch.",
    ]


if __name__ == "__main__":
    main()
