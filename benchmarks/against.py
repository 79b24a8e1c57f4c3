"""How long does an epoch take, against another build of sbi_ignite?

    OMP_NUM_THREADS=1 python -m benchmarks.epoch_time --against BUILD [--cells "NPE maf" ...]

BUILD is a checkout of another version, for example made by `git worktree add ../older v1.0`.
Every way is a process of its own that imports sbi_ignite from its checkout, trains through public
names only, and waits at the end of each epoch until it is its turn again, so all ways advance epoch
by epoch in alternation.
"""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measuring import Result, Spread, Table, Timing, alternate, ratios

HERE = Path(__file__).resolve().parents[1]
FORMS = ("sbi form", "typed form")
COMPILED = "typed form, compiled"
"""The typed form of this build with `compile="inductor"`."""
WARM_UP = 6
"""Epochs of every way before those that count, for small rounds of a few steps an epoch."""

START = """
import sys
build, here, form, cell, rows, batch_size, threads = sys.argv[1:]
sys.path.insert(0, build)
import sbi_ignite
assert sbi_ignite.__file__.startswith(build), sbi_ignite.__file__
sys.path[0] = here
from benchmarks.against import train
train(form, cell, int(rows), int(batch_size), int(threads))
"""
"""Program of a process: sbi_ignite comes from the build, everything else from this checkout."""


class Training:
    """A training in a process of its own, which goes on for one epoch at a time.

    Args:
        build: Checkout that sbi_ignite is imported from.
        form: "sbi form", "typed form" or `COMPILED`.
        cell: Name of a cell, see `benchmarks.cells`.
        options: Rows, batch size and threads.
    """

    def __init__(self, build: Path, form: str, cell: str, options: Any) -> None:
        numbers = map(str, (options.rows, options.batch_size, options.threads))
        command = [sys.executable, "-c", START, str(build), str(HERE), form, cell, *numbers]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def epoch(self) -> Timing:
        """Let the training go on to the end of its next epoch; return how long that took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        while not (line := self._process.stdout.readline()).startswith("epoch "):
            if not line:
                raise RuntimeError(f"a training ended with exit status {self._process.wait()}")
        return Timing(*map(float, line.split()[1:]))

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


class _TurnTaker:
    """A callback that reports the time of an epoch and waits for its turn."""

    def __init__(self) -> None:
        self._began = self._wait()

    def on_epoch_end(self, state: Any) -> None:
        """Report and wait."""
        wall, cpu = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        print("epoch", wall, cpu, flush=True)
        self._began = self._wait()

    def _wait(self) -> tuple[float, float]:
        sys.stdin.readline()
        return time.perf_counter(), time.process_time()


def train(form: str, cell: str, rows: int, batch_size: int, threads: int) -> None:
    """Train for ever in this process, an epoch for each line of standard input."""
    import torch

    import sbi_ignite.inference
    from benchmarks.cells import CELLS, make_trainer
    from sbi_ignite import EarlyStopping, TrainConfig

    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    trainer = make_trainer(CELLS[cell], sbi_ignite.inference, rows, "cpu")
    if form != "sbi form":
        trainer.train(
            TrainConfig(batch_size=batch_size, compile="inductor" if form == COMPILED else "auto"),
            early_stopping=EarlyStopping.never(),
            callbacks=[_TurnTaker()],
        )
    trainer.train(training_batch_size=batch_size, stop_after_epochs=2**31, callbacks=[_TurnTaker()])


@contextmanager
def running(cell: str, builds: dict[str, Path], options: Any) -> Iterator[dict[str, Training]]:
    """Give the trainings of both builds in both forms, and end them."""
    ways = [(form, name) for form in FORMS for name in builds]
    ways += [(COMPILED, "this")] if options.compiled else []
    trainings = {
        f"{form}, {name}": Training(builds[name], form, cell, options) for form, name in ways
    }
    try:
        yield trainings
    finally:
        for training in trainings.values():
            training.end()


def measure(cell: str, builds: dict[str, Path], options: Any) -> dict[str, list[Timing]]:
    """Return the epochs of every way, in alternation."""
    with running(cell, builds, options) as trainings:
        for training in trainings.values():
            for _ in range(WARM_UP):
                training.epoch()
        ways = {name: training.epoch for name, training in trainings.items()}
        return alternate(ways, options.rounds)


def compared(found: dict[str, dict[str, list[Timing]]]) -> Table:
    """Return the table of ratios between the builds."""
    rows = []
    for cell, times in found.items():
        for form in (*FORMS, COMPILED):
            if f"{form}, this" not in times:
                continue
            older = times[f"{form.removesuffix(', compiled')}, older"]
            this = times[f"{form}, this"]
            medians = [
                f"{1e3 * Spread.of(t.wall for t in way).median:.0f}" for way in (older, this)
            ]
            faster = [f"{ratios(older, this, clock):.3f}" for clock in ("wall", "cpu")]
            rows.append([cell, form, *medians, *faster])
    header = ["", "form", "older build, ms", "this build, ms", "faster", "by CPU time"]
    note = "Ratios within a round: median (lowest to highest)."
    return Table(header, rows, "An epoch with validation", note)


def forms_compared(found: dict[str, dict[str, list[Timing]]]) -> Table:
    """Return the table of ratios between the forms of this build, which train on the same rows."""
    rows = []
    for cell, times in found.items():
        sbis, typed = times["sbi form, this"], times["typed form, this"]
        rows.append([cell, *(f"{ratios(sbis, typed, clock):.2f}" for clock in ("wall", "cpu"))])
    return Table(["", "faster", "by CPU time"], rows, "The typed form against the sbi form")


def compare(build: Path, options: Any) -> Result:
    """Measure the cells of the options with this build and another one.

    Args:
        build: Checkout of the other build.
        options: Cells, rows, batch size, rounds, threads, and whether to compile steps too.
    """
    builds = {"older": build.resolve(), "this": HERE}
    found = {}
    for cell in options.cells:
        found[cell] = measure(cell, builds, options)
        medians = {
            way: Spread.of(t.wall for t in times).median for way, times in found[cell].items()
        }
        shown = ", ".join(f"{way} {1e3 * median:.0f} ms" for way, median in medians.items())
        print(f"{cell}: {shown}", flush=True)
    seconds = {
        cell: {way: [[t.wall, t.cpu] for t in timings] for way, timings in times.items()}
        for cell, times in found.items()
    }
    result = Result(
        "against",
        (__doc__ or "").splitlines()[0],
        [compared(found), forms_compared(found)],
        [
            f"{options.rows} rows (second round: 2,000 + 2,000; with images: 500 + 500), batches of {options.batch_size}."
        ],
        {"seconds (wall, cpu) per epoch": seconds},
    )
    command = result.command.replace("benchmarks.against", "benchmarks.epoch_time")
    result.command = command.replace(f"{build}", "BUILD")
    return result
