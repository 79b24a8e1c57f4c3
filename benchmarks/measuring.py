"""Time several ways of doing one thing side by side, and write tables and records.

Shared by the scripts beside it. Ways are timed in alternation, A B A B, so that a slow minute of
the machine affects all of them; only ratios within one round are compared. Wall time is shown
beside the process's CPU time, which is less affected by other load on the same machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
"""Where `--write` records what the page RESULTS.md is made of."""

PACKAGES = ("sbi-ignite", "sbi", "torch", "pytorch-ignite", "nflows", "zuko", "numpy")


# --- measuring


@dataclass(frozen=True)
class Timing:
    """How long one piece of work took.

    Attributes:
        wall: Seconds on the clock.
        cpu: Seconds of CPU time of this process, all its threads together.
    """

    wall: float
    cpu: float

    def per(self, count: float) -> Timing:
        """Return the time of one out of `count` equal pieces."""
        return Timing(self.wall / count, self.cpu / count)


def timed(work: Callable[[], Any], device: str | torch.device = "cpu") -> Timing:
    """Return how long `work` takes, the device's outstanding work included."""
    watch = stopwatch(device)
    work()
    return watch()


def stopwatch(device: str | torch.device = "cpu") -> Callable[[], Timing]:
    """Return a function that says how long its caller took since it was last called."""
    last = [0.0, 0.0]

    def lap() -> Timing:
        _wait_for(device)
        now = [time.perf_counter(), time.process_time()]
        timing = Timing(now[0] - last[0], now[1] - last[1])
        last[:] = now
        return timing

    lap()
    return lap


def alternate(
    ways: Mapping[str, Callable[[], Timing]], rounds: int, *, warm_up: int = 0
) -> dict[str, list[Timing]]:
    """Time several ways in turn, A B C, C B A, A B C, ...

    Args:
        ways: Names and functions that do the work once and return how long it took.
        rounds: How often each way is timed.
        warm_up: Rounds before those, which are not counted.

    Returns:
        Per name `rounds` timings; those at the same place belong to the same round.

    Example:
        >>> times = alternate({"a": lambda: timed(lambda: sum(range(9)))}, rounds=3)
        >>> len(times["a"])
        3
    """
    times: dict[str, list[Timing]] = {name: [] for name in ways}
    for number in range(-warm_up, rounds):
        order = list(ways) if number % 2 == 0 else list(reversed(ways))
        for name in order:
            timing = ways[name]()
            if number >= 0:
                times[name].append(timing)
    return times


@dataclass(frozen=True)
class Spread:
    """Median and range of some numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> Spread:
        """Return median and range; NaN of nothing."""
        values = list(numbers)
        if not values:
            return cls(math.nan, math.nan, math.nan)
        return cls(statistics.median(values), min(values), max(values))

    def __format__(self, spec: str) -> str:
        spec = spec or ".3g"
        return f"{self.median:{spec}} ({self.low:{spec}}–{self.high:{spec}})"  # noqa: RUF001 # a range of numbers


def ratios(base: Sequence[Timing], other: Sequence[Timing], clock: str = "wall") -> Spread:
    """Return how many times faster `other` is than `base`, round by round.

    Args:
        base: Timings of the old way.
        other: Timings of the new way, of the same rounds.
        clock: "wall" or "cpu".
    """
    pairs = zip(base, other, strict=True)
    return Spread.of(getattr(a, clock) / getattr(b, clock) for a, b in pairs)


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent b of the power law value = a * size**b that fits best (least squares)."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope


def peak_memory() -> float:
    """Return the largest resident memory that this process has had so far, in MB (Linux, macOS)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3 / 1.024)


def _wait_for(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


# --- the command line


def options_of(question: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser with the options that all scripts share.

    Args:
        question: The script's docstring, whose first line is its question.
        **defaults: Other defaults of the shared options.
    """
    parser = argparse.ArgumentParser(description=(question or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="alternations (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument(
        "--write", action="store_true", help="record the result for RESULTS.md and rewrite the page"
    )
    parser.add_argument("--notes", type=Path, help="a file with lines to stand below the tables")
    parser.set_defaults(**defaults)
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, and prepare threads and device; a device that is not there ends the script."""
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"--device {options.device}: this machine has no CUDA device. Nothing ran."
        )
    return options


# --- what was found


@dataclass(frozen=True)
class Table:
    """Rows of text under a header, with a line about how to read them."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""

    def __str__(self) -> str:
        """Return the table in markdown, its columns aligned."""
        lines = [list(self.header), *map(list, self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [_line(line, widths) for line in lines]
        text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        heading = [f"**{self.title}**", ""] if self.title else []
        return "\n".join([*heading, *text, *(["", self.note] if self.note else [])])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"


@dataclass
class Result:
    """What a script found, as it stands in RESULTS.md.

    Attributes:
        script: Name of the module, for example "epoch_time".
        question: The question that it answers, one sentence.
        tables: Tables for people.
        notes: Sentences below them: what was left out, what explains a number.
        numbers: Everything measured, as plain data.
        figure: File name of a figure in `results/`, if there is one.
        command: The command line.
        machine: What it ran on.
    """

    script: str
    question: str
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    figure: str | None = None
    command: str = ""
    machine: dict[str, str] = field(default_factory=lambda: machine())

    def __post_init__(self) -> None:
        arguments = _without_files(sys.argv[1:])
        self.command = self.command or " ".join(
            ["python -m", f"benchmarks.{self.script}", *arguments]
        )

    @property
    def record(self) -> str:
        """Name of the files of this result in `results/`, another one for a GPU."""
        on_gpu = "--device cuda" in self.command.replace("=", " ")
        return f"{self.script}_on_gpu" if on_gpu else self.script

    def show(self) -> None:
        """Print tables and notes."""
        print(*(f"\n{part}" for part in (*self.tables, *self.notes)), sep="\n", flush=True)

    def save(self, file: Path) -> None:
        """Write everything as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=1, default=str) + "\n")

    @classmethod
    def load(cls, file: Path) -> Result:
        """Read what `save` wrote."""
        content = json.loads(file.read_text())
        return cls(**{**content, "tables": [Table(**table) for table in content["tables"]]})


def _without_files(arguments: Sequence[str]) -> list[str]:
    """Return a command line without what says where results go."""
    pairs = zip([None, *arguments], arguments, strict=False)
    return [word for before, word in pairs if before not in _FILES and word not in _WHERE_TO]


_FILES = ("--json", "--notes", "--cache", "--python")
_WHERE_TO = (*_FILES, "--write")


def save_figure(drawing: Any, file: Path) -> None:
    """Write a matplotlib figure; the same figure makes the same file, whenever it is written."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": file.stem}):
        drawing.savefig(file, metadata={"Date": None})


def conclude(
    result: Result, options: argparse.Namespace, figure: Callable[[Result], Any] | None = None
) -> None:
    """Show a result and write what the options ask for.

    Args:
        result: What was found.
        options: The parsed options, see `options_of`.
        figure: Makes a matplotlib Figure of the result, for the page.
    """
    result.notes += options.notes.read_text().splitlines() if options.notes else []
    result.show()
    if options.write:
        from benchmarks.report import write_page

        if figure is not None:
            result.figure = f"{result.record}.svg"
            RESULTS.mkdir(exist_ok=True)
            save_figure(figure(result), RESULTS / result.figure)
        result.save(RESULTS / f"{result.record}.json")
        write_page()
    if options.json is not None:
        result.save(options.json)


# --- the machine


def machine() -> dict[str, str]:
    """Return processor, memory, graphics card, system, versions and date."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{_memory():.0f} GiB",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def version(package: str) -> str:
    """Return the installed version of a package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        if package == "sbi-ignite":
            from sbi_ignite import __version__

            return __version__
        return "not installed"


def _processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _memory() -> float:
    """Return the machine's memory in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
