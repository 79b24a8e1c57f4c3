"""How do seconds per epoch and peak memory grow with the rows and with the network?

    OMP_NUM_THREADS=1 python -m benchmarks.scaling [--max-rows 1000000] [--features 10] [--write]
    OMP_NUM_THREADS=1 python -m benchmarks.scaling --only-large

Every point is measured in a process of its own: NPE with a maf, batches of `--batch-size`, by
sbi's loop and by the engine in both forms. Memory is the highest resident memory inside `.train()`
above the resident memory before it, when the simulations lie in the trainer: what training needs
beyond the data. Timed is the first epoch in which nothing is traced any more, with its validation.
Large data have a table of their own: there the sbi form shall need at most as much memory as they
take, and the typed form a quarter. It is left out where `--max-rows` forbids so many rows.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform

from benchmarks.cells import Nowhere
from benchmarks.epoch_time import UNTRACED, WARM_UP, WAYS
from benchmarks.measuring import (
    FOLDER,
    Result,
    Spread,
    Table,
    conclude,
    options_of,
    parse,
    slope,
    stopwatch,
)

DIM = 5
BARS = {"sbi form": 1.0, "typed form": 0.25}
"""What a form should need beyond large data at most, as a share of them."""

NAMES = ("sbi", "sbi form", "typed form")
MB = 1e6


# --- one point, in its own process


class _EnoughError(Exception):
    """Ends a training after its last epoch."""


def point(
    way: str, rows: int, features: int, width: int, batch_size: int, device: str
) -> dict[str, float]:
    """Train some epochs; return seconds of the last, and MB of data and beyond them."""
    torch.manual_seed(0)
    inference, train = WAYS[way]
    prior = BoxUniform(-3 * torch.ones(DIM, device=device), 3 * torch.ones(DIM, device=device))
    network = posterior_nn("maf", hidden_features=width)
    trainer = inference.NPE(
        prior, network, device=device, show_progress_bars=False, tracker=Nowhere()
    )
    theta = prior.sample((rows,)).cpu()
    x = 0.3 * torch.randn(rows, features)
    x[:, :DIM] += theta[:, :features]
    trainer.append_simulations(theta, x)
    data = (theta.nbytes + x.nbytes) / MB
    gc.collect()
    enough = WARM_UP + (UNTRACED if rows <= 100_000 else 0)
    before, watch, epochs = _resident("VmRSS"), stopwatch(device), []
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    def epoch_ends() -> None:
        epochs.append(watch())
        if len(epochs) == enough:
            raise _EnoughError

    with contextlib.suppress(_EnoughError):
        train(trainer, min(batch_size, rows * 9 // 10), epoch_ends)
    beyond = _resident("VmHWM") - before
    return {"wall": epochs[-1].wall, "cpu": epochs[-1].cpu, "data": data, "beyond": beyond}


def _resident(name: str) -> float:
    """Return a figure of this process's memory in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(rf"^{name}:\s+(\d+) kB", status, flags=re.MULTILINE)
    return int(kilobytes) * 1024 / MB


# --- all points


def in_own_process(
    options: Any, way: str, rows: int, width: int, features: int
) -> dict[str, float]:
    """Return what `point` finds in a fresh process."""
    arguments = [way, rows, features, width, options.batch_size, options.device]
    script = (
        "import json, sys, warnings; warnings.simplefilter('ignore'); import torch; "
        f"torch.set_num_threads({options.threads}); from benchmarks.scaling import point; "
        "found = point(*json.loads(sys.argv[1])); print('\\n' + json.dumps(found))"
    )
    command = [sys.executable, "-c", script, json.dumps(arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(
        command, cwd=FOLDER.parent, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{way}, {rows} rows, width {width}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    options: Any, points: Sequence[tuple[int, int]], features: int
) -> dict[str, list[dict[str, Any]]]:
    """Return for every way its points (rows, width), the ways in turn at every point."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.ways}
    for rows, width in points:
        for name in options.ways:
            runs = [
                in_own_process(options, name, rows, width, features) for _ in range(options.rounds)
            ]
            summary = {key: Spread.of(run[key] for run in runs).median for key in runs[0]}
            found[name].append({"rows": rows, "width": width, **summary})
            print(f"{name}, {rows} rows, width {width}: {summary['wall']:.3f} s", flush=True)
    return found


def table(found: dict[str, list[dict[str, Any]]], axis: str, title: str) -> Table:
    """Return seconds and memory along an axis, with slopes in the last line."""
    names = list(found)
    header = [axis, *(f"{n}: s" for n in names), "data, MB", *(f"{n}: MB beyond" for n in names)]
    rows = []
    for i, first in enumerate(found[names[0]]):
        at = [found[name][i] for name in names]
        rows.append(
            [
                f"{first[axis]:,}",
                *(f"{p['wall']:.3g}" for p in at),
                f"{first['data']:.3g}",
                *(f"{p['beyond']:.0f}" for p in at),
            ]
        )
    sizes = [p[axis] for p in found[names[0]]]
    if len(sizes) > 1:
        slopes = [f"{slope(sizes, [p['wall'] for p in found[n]]):.2f}" for n in names]
        rows.append(["slope", *slopes, "", *([""] * len(names))])
    note = "Slope: the exponent b of the best fit seconds = a * size**b."
    return Table(header, rows, title, note)


def memory_table(found: dict[str, list[dict[str, Any]]], features: int) -> Table:
    """Return what every way needs beyond large data, and as a share of them."""
    bars = {way: f"at most {bar:g}" for way, bar in BARS.items()}
    lines = []
    for name, (at,) in found.items():
        beyond = [f"{at['beyond']:.0f}", f"{at['beyond'] / at['data']:.2f}"]
        lines.append([name, f"{at['data']:.0f}", *beyond, bars.get(name, "")])
    (first,) = next(iter(found.values()))
    title = f"Memory for large data; {first['rows']:,} rows, theta ({DIM},), x ({features},)"
    return Table(["way", "data, MB", "MB beyond", "beyond / data", "bar"], lines, title, "")


def figure(result: Result) -> Any:
    """Return seconds and memory against rows, on logarithmic axes."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8, 3.5), layout="constrained")
    for axes, key, label in zip(
        drawing.subplots(1, 2),
        ("wall", "beyond"),
        ("s per epoch", "MB beyond the data"),
        strict=True,
    ):
        for name, points in result.numbers["rows"].items():
            axes.loglog([p["rows"] for p in points], [p[key] for p in points], "o-", label=name)
        axes.set_xlabel("rows")
        axes.set_ylabel(label)
        axes.legend()
    return drawing


def main(arguments: Sequence[str] | None = None) -> Result:
    """Measure and show."""
    parser = options_of(__doc__, rounds=1)
    parser.add_argument("--max-rows", type=int, default=1_000_000, help="up to 10000000")
    parser.add_argument("--features", type=int, default=10, help="length of x, at least 5")
    parser.add_argument("--batch-size", type=int, default=4_096)
    parser.add_argument("--widths", type=int, nargs="*", default=[25, 50, 100, 200, 400])
    parser.add_argument("--width-rows", type=int, default=10_000, help="rows while widths grow")
    parser.add_argument("--ways", nargs="+", default=list(NAMES), help=", ".join(NAMES))
    parser.add_argument("--large", type=int, nargs=2, default=[1_000_000, 100], help="rows, length")
    parser.add_argument("--only-large", action="store_true", help="no table but that of large data")
    options = parse(parser, arguments)
    if options.only_large and options.write:
        parser.error("--only-large with --write would record one table in place of three")
    sizes = [10**k for k in range(3, 8) if 10**k <= options.max_rows and not options.only_large]
    tables, numbers = [], {}
    if sizes:
        numbers["rows"] = measure(options, [(size, 50) for size in sizes], options.features)
        title = f"Rows grow; theta ({DIM},), x ({options.features},)"
        tables.append(table(numbers["rows"], "rows", title))
    if options.widths and not options.only_large:
        points = [(options.width_rows, width) for width in options.widths]
        numbers["widths"] = measure(options, points, options.features)
        title = f"Hidden features grow; {options.width_rows:,} rows"
        tables.append(table(numbers["widths"], "width", title))
    large, features = options.large
    if large <= options.max_rows or options.only_large:
        numbers["large"] = measure(options, [(large, 50)], features)
        tables.append(memory_table(numbers["large"], features))
    result = Result(
        "scaling",
        (__doc__ or "").splitlines()[0],
        tables,
        [f"NPE maf, batches of {options.batch_size}; fewer rows are one batch."],
        numbers,
    )
    conclude(result, options, figure if sizes else None)
    return result


if __name__ == "__main__":
    main()
