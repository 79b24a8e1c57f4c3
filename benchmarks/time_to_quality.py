"""How soon does `TrainConfig.fast()` reach the quality of sbi's default training, and what then?

    python -m benchmarks.time_to_quality [--tasks ...] [--methods ...] [--budgets ...] [--seeds ...]

A cell is a task, a method and a budget. In each, sbi's own `.train()` with its defaults and
`.train(TrainConfig.fast())` see the same simulations, one after the other on one core in a process
of their own (`training_curves.py`). Quality is the method's own loss on 10,000 fresh pairs. What is
done stands in a cache, one line per cell and seed: a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.measuring import FOLDER, Result, Table, conclude, options_of, parse
from benchmarks.peers import PEERS, options_of_peers, peer, save_pairs
from benchmarks.tasks import FIRST_TUNING_SEED, JUDGED, TUNING
from benchmarks.training_curves import HELD_OUT, HELD_OUT_SEED, METHODS, Cell
from sbi_ignite.settings.recipe import fast

SPEED_MEAN, SPEED_LEAST = 8.0, 1.5
"""sbi's time over the time to its quality: geometric mean and every cell are to be at least so."""

TOTAL_MEAN, TOTAL_MOST = 0.6, 1.25
"""The recipe's whole time over sbi's: geometric mean and every cell are to be at most so."""

NEVER = 0.1
"""What a training that never reached sbi's loss counts as in the geometric mean of speeds."""


# --- what is judged


@dataclass(frozen=True)
class Verdict:
    """One cell over its seeds.

    Attributes:
        task: Task.
        method: Method.
        budget: Simulations.
        seeds: Number of seeds.
        sbi_seconds: sbi's time, mean over seeds.
        speed: sbi's time / time to sbi's final held-out loss, geometric mean over seeds.
        reached: Seeds in which that loss was reached.
        total: The recipe's whole time / sbi's, geometric mean over seeds.
        sbi_loss: sbi's final held-out loss, mean over seeds.
        difference: The recipe's final held-out loss minus sbi's, mean over seeds.
        error: Standard error of that mean; 0 with a single seed.
    """

    task: str
    method: str
    budget: int
    seeds: int
    sbi_seconds: float
    speed: float
    reached: int
    total: float
    sbi_loss: float
    difference: float
    error: float

    @property
    def name(self) -> str:
        """What the cell is called."""
        return f"{self.task} {self.method} {self.budget:,}"

    @property
    def soon(self) -> bool:
        """Whether sbi's quality was reached soon enough, with every seed."""
        return self.reached == self.seeds and self.speed >= SPEED_LEAST

    @property
    def short(self) -> bool:
        """Whether the whole training was short enough."""
        return self.total <= TOTAL_MOST

    @property
    def good(self) -> bool:
        """Whether the final loss is lower than sbi's, or equal within two standard errors."""
        return self.difference <= 2 * self.error


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers; NaN of nothing.

    Example:
        >>> geometric_mean([1.0, 4.0])
        2.0
    """
    logarithms = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logarithms)) if logarithms else math.nan


def verdict(records: Sequence[dict[str, Any]], clock: str = "cpu") -> Verdict:
    """Judge one cell.

    Args:
        records: One per seed, see `training_curves.run_cell`.
        clock: "cpu" or "wall".
    """
    first = records[0]
    sbi, own = ([record[side] for record in records] for side in ("sbi", "fast"))
    pairs = list(zip(sbi, own, strict=True))
    differences = [b["loss"] - a["loss"] for a, b in pairs]
    several = len(records) > 1
    return Verdict(
        task=first["task"],
        method=first["method"],
        budget=first["budget"],
        seeds=len(records),
        sbi_seconds=statistics.fmean(a[clock] for a in sbi),
        speed=geometric_mean(
            a[clock] / b["reached"][clock] if b["reached"] else NEVER for a, b in pairs
        ),
        reached=sum(b["reached"] is not None for b in own),
        total=geometric_mean(b[clock] / a[clock] for a, b in pairs),
        sbi_loss=statistics.fmean(a["loss"] for a in sbi),
        difference=statistics.fmean(differences),
        error=statistics.stdev(differences) / math.sqrt(len(records)) if several else 0.0,
    )


def verdicts(records: Iterable[dict[str, Any]], clock: str = "cpu") -> list[Verdict]:
    """Judge all cells, in the order of budget, method and task."""
    cells = defaultdict(list)
    for record in records:
        cells[record["budget"], record["method"], record["task"]].append(record)
    order = {name: i for i, name in enumerate((*METHODS, *JUDGED, *TUNING))}
    keys = sorted(cells, key=lambda key: (key[0], order[key[1]], order[key[2]]))
    return [verdict(cells[key], clock) for key in keys]


def summary(cells: Sequence[Verdict]) -> list[str]:
    """Return sentences: geometric means, worst cells, and those that fall short of a bar."""
    if not cells:
        return ["Nothing has been run."]
    slowest = min(cells, key=lambda cell: cell.speed)
    longest = max(cells, key=lambda cell: cell.total)
    speed = geometric_mean(cell.speed for cell in cells)
    total = geometric_mean(cell.total for cell in cells)
    return [
        f"{len(cells)} cells. sbi's time / time to sbi's final held-out loss: geometric mean "
        f"{speed:.1f} (bar {SPEED_MEAN:g}), least {slowest.speed:.2f} in {slowest.name} "
        f"(bar {SPEED_LEAST:g}); below the bar or missed with a seed: "
        f"{_names(c for c in cells if not c.soon)}.",
        f"The recipe's whole time / sbi's: geometric mean {total:.2f} (bar {TOTAL_MEAN:g}), most "
        f"{longest.total:.2f} in {longest.name} (bar {TOTAL_MOST:g}); above the bar: "
        f"{_names(c for c in cells if not c.short)}.",
        "Final held-out loss lower than sbi's, or equal within twice the standard error over "
        f"seeds: {sum(c.good for c in cells)} of {len(cells)} cells; higher: "
        f"{_names(c for c in cells if not c.good)}.",
    ]


def _names(cells: Iterable[Verdict]) -> str:
    return ", ".join(cell.name for cell in cells) or "none"


# --- running


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells that are not in the cache yet, then report what is asked for."""
    options = parse(_options(), arguments)
    cells = [
        Cell(task, method, budget, seed, options.observations)
        for budget, seed, method, task in product(
            options.budgets, options.seeds, options.methods, options.tasks
        )
    ]
    check_seeds(cells)
    records = cached(options.cache)
    for number, cell in enumerate(cells, start=1):
        if key_of(asdict(cell)) not in records and not options.cached:
            record = run_apart(cell)
            with options.cache.open("a") as file:
                file.write(json.dumps(record) + "\n")
            records[key_of(record)] = record
            line = line_of(verdict([record]))
            print(f"{number}/{len(cells)} seed {cell.seed} {commit()} {line}", flush=True)
    chosen = [records[key_of(asdict(c))] for c in cells if key_of(asdict(c)) in records]
    missing = [cell for cell in cells if key_of(asdict(cell)) not in records]
    result = result_of(chosen, missing)
    if options.peers:
        compare_with_peers(result, options)
    conclude(result, options, figure)


def _options() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    names = [*JUDGED, *TUNING]
    parser.add_argument("--tasks", nargs="+", choices=names, default=list(JUDGED), metavar="TASK")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=int, default=[1_000, 10_000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--observations", type=int, default=0, help="compare samples (C2ST) for so many x"
    )
    parser.add_argument("--cache", type=Path, default=Path("time_to_quality.jsonl"))
    parser.add_argument(
        "--peers", nargs="*", default=[], help=f"packages beside NPE's cells: {', '.join(PEERS)}"
    )
    options_of_peers(parser)
    parser.add_argument("--cached", action="store_true", help="report what the cache has, no more")
    return parser


def check_seeds(cells: Iterable[Cell]) -> None:
    """Refuse to judge with a seed for tuning, and to tune with one for judging.

    Raises:
        SystemExit: Naming the first cell with a wrong seed.
    """
    for cell in cells:
        if (cell.task in TUNING) != (cell.seed >= FIRST_TUNING_SEED):
            raise SystemExit(
                f"--seeds {cell.seed} with --tasks {cell.task}: expected seeds below "
                f"{FIRST_TUNING_SEED} for judged tasks ({', '.join(JUDGED)}) and from there on for "
                f"tuning tasks ({', '.join(TUNING)}). Nothing ran."
            )


def recipe_id(budget: int, method: str) -> str:
    """Return a name for the recipe's numbers at a budget, so that old records are told apart."""
    numbers = fast(budget - budget // 10, contrastive=METHODS[method].contrastive)
    return hashlib.sha256(repr(numbers).encode()).hexdigest()[:12]


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells one record of the cache from another."""
    cell = tuple(record[name] for name in ("task", "method", "budget", "seed"))
    return (*cell, record.get("recipe", recipe_id(record["budget"], record["method"])))


def cached(file: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the records of a cache file by their keys; none where there is no file."""
    lines = file.read_text().splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines]
    return {key_of(record): record for record in records}


def run_apart(cell: Cell) -> dict[str, Any]:
    """Run a cell in a process of its own, on one thread, and return its record."""
    command = [sys.executable, "-m", "benchmarks.training_curves", json.dumps(asdict(cell))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    # The package of benchmarks is not installed: a process finds it where this checkout lies.
    done = subprocess.run(
        command, cwd=FOLDER.parent, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{cell}\n{done.stderr}")
    record = json.loads(done.stdout.splitlines()[-1])
    return {**record, "recipe": recipe_id(cell.budget, cell.method), "commit": commit()}


def commit() -> str:
    """Return the commit of this checkout, or "unknown"."""
    command = ["git", "-C", str(FOLDER), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def compare_with_peers(result: Result, options: argparse.Namespace) -> None:
    """Add a table of what peers, with their documented defaults, make of the same simulations."""
    rows, found = [], []
    for record in result.numbers["records"]:
        if record["method"] != "npe_maf":
            continue
        name = f"{record['task']} {record['budget']:,}, seed {record['seed']}"
        for side in ("sbi", "fast"):
            own = record[side]
            rows.append([name, f"{side}, NPE maf", f"{own['wall']:.1f}", f"{own['loss']:.3f}"])
        task = JUDGED[record["task"]]
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "pairs.npz"
            pairs = task.pairs(record["budget"], record["seed"])
            save_pairs(data, pairs, task.pairs(HELD_OUT, HELD_OUT_SEED))
            for package in options.peers:
                theirs = peer(options, package, "train", data)
                found.append({"cell": name, "package": package, **theirs})
                if "missing" not in theirs:
                    nats = f"{theirs['nats']:.3f}"
                    rows.append([name, package, f"{theirs['seconds']:.1f}", nats])
    header = ("cell", "trained by", "training, s", "held-out nats")
    result.tables.append(Table(header, rows, "Beside peers with their documented defaults"))
    result.numbers["peers"] = found
    missing = {f["package"]: f["missing"] for f in found if "missing" in f}
    result.notes += [f"{name} did not run here: {reason}" for name, reason in missing.items()]


# --- reporting


def result_of(records: Sequence[dict[str, Any]], missing: Sequence[Cell]) -> Result:
    """Return tables, sentences and numbers."""
    cells = verdicts(records)
    return Result(
        "time_to_quality",
        (__doc__ or "").splitlines()[0],
        [cells_table(cells), *samples_table(records)],
        [*summary(cells), *_left_out(missing)],
        {"cells": [asdict(cell) for cell in cells], "records": list(records)},
    )


def _left_out(missing: Sequence[Cell]) -> list[str]:
    """Say what was not run: seeds, then methods, of which the same is missing, stand together."""
    tasks, seeds, methods = defaultdict(list), defaultdict(list), defaultdict(list)
    for cell in missing:
        tasks[cell.budget, cell.method, cell.seed].append(cell.task)
    for (budget, method, seed), names in tasks.items():
        seeds[budget, method, tuple(names)].append(seed)
    for (budget, method, names), numbers in seeds.items():
        methods[budget, names, tuple(numbers)].append(method)
    gaps = [
        f"{', '.join(whose)} with {budget:,} simulations, seed{'s' * (len(numbers) > 1)} "
        f"{', '.join(map(str, numbers))}: "
        + ("all tasks" if set(names) == set(JUDGED) else ", ".join(names))
        for (budget, names, numbers), whose in methods.items()
    ]
    return [f"Asked for and not run: {'; '.join(gaps)}."] if gaps else []


def cells_table(cells: Sequence[Verdict]) -> Table:
    """Return one line per cell."""
    header = ("cell", "seeds", "sbi: s", "sbi: loss", "to that loss", "total", "final loss")
    note = (
        "CPU seconds of one thread. 'To that loss': sbi's time / time until the recipe's best "
        "weights had sbi's final held-out loss. 'Total': the recipe's whole time / sbi's. 'Final "
        "loss': the recipe's minus sbi's with its standard error over seeds; lower is better."
    )
    return Table(header, [_cells(cell) for cell in cells], "Time to quality", note)


def _cells(cell: Verdict) -> list[str]:
    speed = f"{cell.speed:.1f} x" + ("" if cell.soon else " (short)")
    if cell.reached < cell.seeds:
        speed += f", reached with {cell.reached} of {cell.seeds}"
    error = f" ± {cell.error:.3f}" if cell.seeds > 1 else ""
    return [
        cell.name,
        str(cell.seeds),
        f"{cell.sbi_seconds:.1f}",
        f"{cell.sbi_loss:.3f}",
        speed,
        f"{cell.total:.2f}" + ("" if cell.short else " (long)"),
        f"{cell.difference:+.3f}{error}" + ("" if cell.good else " (higher)"),
    ]


def line_of(cell: Verdict) -> str:
    """Return a cell in one line, for the terminal."""
    return " | ".join(_cells(cell))


def samples_table(records: Sequence[dict[str, Any]]) -> list[Table]:
    """Return the comparison of samples with the true posterior, where it was made."""
    found = defaultdict(lambda: ([], []))
    for record in records:
        if record["sbi"]["c2st"]:
            cell = f"{record['task']} {record['method']} {record['budget']:,}"
            for side, values in zip(("sbi", "fast"), found[cell], strict=True):
                values += record[side]["c2st"]
    rows = [
        [cell, str(len(sbi)), f"{statistics.fmean(sbi):.3f}", f"{statistics.fmean(own):.3f}"]
        for cell, (sbi, own) in found.items()
    ]
    note = "0.5: a classifier cannot tell samples from the true posterior's; lower is better."
    header = ("cell", "observations", "sbi", "fast")
    return [Table(header, rows, "C2ST", note)] if rows else []


def figure(result: Result) -> Any:
    """Return held-out loss against seconds, a panel per task and method."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    records = result.numbers["records"]
    tasks = [t for t in (*JUDGED, *TUNING) if any(r["task"] == t for r in records)]
    methods = [m for m in METHODS if any(r["method"] == m for r in records)]
    budgets = sorted({record["budget"] for record in records})
    size = (2.6 * max(1, len(methods)), 2.0 * max(1, len(tasks)))
    drawing = Figure(figsize=size, layout="constrained")
    axes = drawing.subplots(max(1, len(tasks)), max(1, len(methods)), squeeze=False)
    styles = dict(zip(budgets, ("-", "--", ":", "-."), strict=False))
    colors = {"sbi": "tab:gray", "fast": "tab:blue"}
    for record in records:
        panel = axes[tasks.index(record["task"])][methods.index(record["method"])]
        for side, color in colors.items():
            _, seconds, _, losses = zip(*record[side]["curve"], strict=True)
            style = styles.get(record["budget"], "-")
            panel.plot(seconds, losses, style, color=color, linewidth=0.9, alpha=0.8)
            panel.plot(seconds[-1:], losses[-1:], ".", color=color, markersize=4)
    for i, j in product(range(len(tasks)), range(len(methods))):
        panel = axes[i][j]
        panel.set_xscale("log")
        panel.set_title(f"{tasks[i]}, {methods[j]}", fontsize=7)
        panel.tick_params(labelsize=6)
        _zoom(panel, records, tasks[i], methods[j])
    drawing.supxlabel("CPU seconds", fontsize=8)
    drawing.supylabel("loss on 10,000 fresh pairs", fontsize=8)
    lines = [Line2D([], [], color=color, label=side) for side, color in colors.items()]
    lines += [
        Line2D([], [], color="black", linestyle=style, label=f"{budget:,} simulations")
        for budget, style in styles.items()
    ]
    drawing.legend(handles=lines, loc="outside upper center", ncols=4, fontsize=7, frameon=False)
    return drawing


def _zoom(panel: Any, records: Sequence[dict[str, Any]], task: str, method: str) -> None:
    """Leave out the first, high losses of a panel: they would hide the rest."""
    ends = [
        record[side]["loss"]
        for record in records
        if (record["task"], record["method"]) == (task, method)
        for side in ("sbi", "fast")
    ]
    if ends:
        span = max(max(ends) - min(ends), 0.02 * abs(max(ends)), 1e-3)
        panel.set_ylim(min(ends) - 0.2 * span, max(ends) + 2.0 * span)


if __name__ == "__main__":
    main()
