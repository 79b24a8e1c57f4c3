"""What does a GPU bring, and where?

    python -m benchmarks.gpu [--tables 1 2 3 4] [--inductor] [--write]

Four tables: the card against the CPU of the same machine, rows on the card against rows on the
host, the ways in which steps are computed, and bfloat16 against 32 bits. Trainings wait at the end
of each epoch until it is their turn again, as in `epoch_time`; timed is a whole epoch with its
validation.

Here steps are traced after 3 batches of a shape (see STEPS_BEFORE_TRACING for the default), so that
the warm-up is short: every shape, also one that comes once in an epoch, is traced before anything
is timed. Rows are as many as fill all batches of training.

With `--device cpu` everything runs without a card, to try the script out. OMP_NUM_THREADS stays
unset: torch is to choose its number of threads, which the first table shows beside one thread.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import sbi.inference
import torch
from sbi.neural_nets import posterior_flow_nn, posterior_nn
from sbi.utils import BoxUniform

import sbi_ignite.inference
from benchmarks.cells import CELLS, DIM, Cell, Nowhere, make_trainer
from benchmarks.epoch_time import WARM_UP, Training, _quiet, _TurnTaker, sbis_own, typed_form
from benchmarks.measuring import (
    Result,
    Spread,
    Table,
    Timing,
    alternate,
    conclude,
    options_of,
    parse,
    ratios,
)
from sbi_ignite import EarlyStopping, TrainConfig
from sbi_ignite.capture.compiler import Refusals
from sbi_ignite.capture.verification import TracingRules

EAGER_STEPS = 3
"""Stands in for STEPS_BEFORE_TRACING. With its second step, the optimizer may move the parameters,
which a CUDA graph knows by their addresses."""
UNTRACED = EAGER_STEPS + TracingRules(after=EAGER_STEPS).proofs
"""Epochs after which every shape is traced, if it comes once in an epoch."""
MOST_SECONDS = 5.0
"""What may take long is left out when an epoch exceeds this."""
MOST_STEPS = 90
"""Steps of an epoch in the first table, at most: with small batches a step needs fewer rows."""
FEATURES = 100
"""Length of x in the second table."""

Form = Callable[[Any, int, Callable[[], None]], None]
"""Trains a trainer with batches of a size; calls a function at the end of every epoch."""


# --- what is trained, and how


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        make: Makes the trainer with its simulations.
        batch_size: Rows per step.
        device: Where it trains.
        form: How it trains.
        warm_up: Epochs that are not counted.
        once: Whether it takes part in the first round only.
        threads: CPU threads; None is as many as the other ways take.
        staged: Whether data on the host are to stay there.
        patient: Whether it takes part however long an epoch takes.
    """

    make: Callable[[], Any]
    batch_size: int
    device: str
    form: Form = typed_form
    warm_up: int = UNTRACED
    once: bool = False
    threads: int | None = None
    staged: bool = False
    patient: bool = True


def typed(**settings: Any) -> Form:
    """Return the typed form with more settings than the batch size."""

    def form(trainer: Any, batch_size: int, epoch_ends: Callable[[], None]) -> None:
        trainer.train(
            TrainConfig(batch_size=batch_size, **settings),
            early_stopping=EarlyStopping.never(),
            callbacks=[_TurnTaker(epoch_ends)],
        )

    return form


def on_typed(cell: Cell, rows: int, device: str) -> Callable[[], Any]:
    """Return what makes the typed form's trainer of a cell."""
    return lambda: make_trainer(cell, sbi_ignite.inference, rows, device)


def wide_trainer(inference: Any, rows: int, device: str, data_device: str | None = None) -> Any:
    """Return an NPE trainer with many features in x, the same ones for every way.

    Args:
        inference: `sbi.inference` or ours.
        rows: Simulations.
        device: Where it trains.
        data_device: Where the simulations lie; None is where it trains.
    """
    torch.manual_seed(0)
    bound = 3 * torch.ones(DIM, device=device)
    prior = BoxUniform(-bound, bound)
    trainer = inference.NPE(
        prior, posterior_nn("maf"), device=device, show_progress_bars=False, tracker=Nowhere()
    )
    theta = prior.sample((rows,)).cpu()
    x = 0.3 * torch.randn(rows, FEATURES)
    x[:, :DIM] += theta
    return trainer.append_simulations(theta, x, data_device=data_device)


def full_batches(most: int, batch_size: int, steps: int | None = None) -> tuple[int, int]:
    """Return rows, about `most`, of which nine tenths are full batches, and their size.

    Args:
        most: Rows wanted.
        batch_size: Rows per step wanted; less if there are not as many.
        steps: Batches in an epoch, at most.

    Example:
        >>> full_batches(10_000, 200)
        (10000, 200)
    """
    batch_size = min(batch_size, int(0.9 * most))
    wanted = max(1, round(0.9 * most / batch_size))
    train = batch_size * min(wanted, steps or wanted)
    rows = math.ceil(train / 0.9)
    while int(0.9 * rows) < train:
        rows += 1
    return rows, batch_size


# --- measuring


@dataclass
class Compared:
    """What was found about several ways to train on the same simulations.

    Attributes:
        times: Epochs by way; a way that was left out is missing.
        left_out: Seconds per epoch of the ways that took too long.
        steps: Optimizer steps in an epoch.
        losses: Training loss by epoch.
        reasons: Why a network was left to torch.
    """

    times: dict[str, list[Timing]] = field(default_factory=dict)
    left_out: dict[str, float] = field(default_factory=dict)
    steps: int = 1
    losses: dict[str, list[float]] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)

    def milliseconds(self, way: str, pieces: int = 1) -> str:
        """Return milliseconds per epoch, or per piece of it."""
        if way in self.left_out:
            return f"about {1e3 * self.left_out[way] / pieces:.0f}, left out"
        spread = Spread.of(1e3 * t.wall / pieces for t in self.times[way])
        return f"{spread:{'.0f' if spread.median >= 100 else '.3g'}}"

    def faster(self, way: str, base: str) -> str:
        """Return how many times faster a way is than another, within rounds."""
        if not {base, way} <= self.times.keys():
            return ""
        rounds = min(len(self.times[base]), len(self.times[way]))
        return f"{ratios(self.times[base][:rounds], self.times[way][:rounds]):.2f}"

    def plain(self) -> dict[str, Any]:
        """Return everything as plain data."""
        seconds = {way: [[t.wall, t.cpu] for t in times] for way, times in self.times.items()}
        return {
            "seconds (wall, cpu) per epoch": seconds,
            "left out, s": self.left_out,
            "steps": self.steps,
            "training loss": self.losses,
            "left to torch": self.reasons,
        }


_now = threading.local()


class _NotedRefusals(Refusals):
    """Refusals that also note their reasons for the training of this thread."""

    def __call__(self, reason: str) -> None:
        """Take a reason."""
        _now.reasons.append(reason)
        super().__call__(reason)


@contextmanager
def _soon_traced() -> Iterator[None]:
    """Trace after few steps, and note why where nothing is traced."""
    compiler = "sbi_ignite.capture.compiler"
    with (
        mock.patch(f"{compiler}.STEPS_BEFORE_TRACING", EAGER_STEPS),
        mock.patch(f"{compiler}.Refusals", _NotedRefusals),
    ):
        yield


def compare(ways: Mapping[str, Way], options: Any) -> Compared:
    """Return the epochs of every way, in alternation."""
    torch.set_num_threads(options.threads)
    found = Compared()
    with _quiet(), _soon_traced(), running(ways, options, found) as (trainers, trainings):
        for name, way in ways.items():
            warm_up(name, way, trainings[name], found)
        every = {n: t.epoch for n, t in trainings.items() if n not in found.left_out}
        more = {name: epoch for name, epoch in every.items() if not ways[name].once}
        found.times = alternate(every, 1)
        for name, times in alternate(more, options.rounds - 1).items():
            found.times[name] += times
        found.losses = {name: list(trainers[name].summary["training_loss"]) for name in every}
        name, way = next(iter(ways.items()))
        found.steps = -(-len(trainers[name].train_indices) // way.batch_size)
    return found


@contextmanager
def running(
    ways: Mapping[str, Way], options: Any, found: Compared
) -> Iterator[tuple[dict[str, Any], dict[str, Training]]]:
    """Give trainers and trainings of all ways, and end them."""
    trainers = {name: way.make() for name, way in ways.items()}
    trainings = {}
    for name, way in ways.items():
        reasons = found.reasons[name] = []
        train = partial(_train, way, trainers[name], way.threads or options.threads, reasons)
        trainings[name] = Training(train, way.device)
    try:
        yield trainers, trainings
    finally:
        for training in trainings.values():
            if training.epochs:  # else it has not begun, or has failed
                training.end()


def _train(
    way: Way, trainer: Any, threads: int, reasons: list[str], epoch_ends: Callable[[], None]
) -> None:
    """Train in the thread of a training, in which torch has to be told its number of threads."""

    def turn_ends() -> None:
        epoch_ends()
        torch.set_num_threads(threads)  # again, since others have trained meanwhile

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    _now.reasons = reasons
    way.form(trainer, way.batch_size, turn_ends)


def warm_up(name: str, way: Way, training: Training, found: Compared) -> None:
    """Train the epochs that are not counted; leave a way out that takes too long."""
    for epoch in range(way.warm_up):
        # Where data lie is decided when a training begins.
        staged = way.staged and epoch == 0
        share = mock.patch("sbi_ignite.data.transfer.SHARE_OF_MEMORY", 0.0)
        with share if staged else contextlib.nullcontext():
            seconds = training.epoch().wall
        if seconds > MOST_SECONDS and not way.patient:
            found.left_out[name] = seconds
            return


# --- the tables


@dataclass(frozen=True)
class Part:
    """One table.

    Attributes:
        title: Its title.
        note: How to read it.
        header: Returns its header, of the options.
        ways: Returns by row the ways to compare, of the options.
        row: Returns the cells of a row beside its name, of what was found and the options.
    """

    title: str
    note: str
    header: Callable[[Any], list[str]]
    ways: Callable[[Any], dict[str, dict[str, Way]]]
    row: Callable[[Compared, Any], list[str]]


def cpu(threads: int) -> str:
    """Return the name of training on the CPU."""
    return f"CPU, {threads} thread{'s' * (threads > 1)}"


def card_and_cpus(options: Any) -> dict[str, dict[str, Way]]:
    """Return by batch size: the card, and the CPU with few and many threads."""
    rows = {}
    for asked in options.batch_sizes:
        number, size = full_batches(min(options.rows, 50_000), asked, MOST_STEPS)
        make = partial(on_typed, CELLS["NPE maf"], number)
        ways = {options.device: Way(make(options.device), size, options.device)}
        for threads in options.cpu_threads:
            ways[cpu(threads)] = Way(make("cpu"), size, "cpu", threads=threads, patient=False)
        rows[f"{size:,}"] = ways
    return rows


def _card_header(options: Any) -> list[str]:
    per_cpu = [(f"{cpu(n)}: ms", f"{options.device} is faster by") for n in options.cpu_threads]
    return ["batch", f"{options.device}: ms per step", *itertools.chain(*per_cpu)]


def _card_row(found: Compared, options: Any) -> list[str]:
    card, cells = options.device, []
    for name in map(cpu, options.cpu_threads):
        cells += [found.milliseconds(name, found.steps), found.faster(card, name)]
    return [found.milliseconds(card, found.steps), *cells]


def places(options: Any) -> dict[str, dict[str, Way]]:
    """Return the ways to keep data: on the card, on the host, and as sbi does."""
    number, size = full_batches(min(options.rows, 100_000), 4_096)
    device, ours = options.device, partial(wide_trainer, sbi_ignite.inference, number)
    theirs = partial(wide_trainer, sbi.inference, number, device)
    ways = {
        "card": Way(partial(ours, device), size, device),
        "host": Way(partial(ours, device, "cpu"), size, device, staged=True),
        "sbi": Way(theirs, size, device, sbis_own, warm_up=1, once=True, patient=False),
    }
    return {f"{number:,} rows, batches of {size:,}": ways}


def _places_row(found: Compared, options: Any) -> list[str]:
    return [
        found.milliseconds("card"),
        found.milliseconds("host"),
        found.faster("card", "host"),
        found.milliseconds("sbi"),
        found.faster("card", "sbi"),
        found.faster("host", "sbi"),
    ]


def computations(options: Any) -> dict[str, dict[str, Way]]:
    """Return by cell the ways to compute steps."""
    number, size = full_batches(min(options.rows, 10_000), 200)
    rows = {}
    for name in ("NPE maf", "NPE zuko_nsf", "FMPE"):
        make = on_typed(CELLS[name], number, options.device)
        rows[name] = {
            mode: Way(make, size, options.device, typed(compile=mode), _epochs_before(mode))
            for mode in _modes(options)
        }
    return rows


def _modes(options: Any) -> list[str]:
    return ["off", "trace", "auto", *(["inductor"] if options.inductor else [])]


def _epochs_before(mode: str) -> int:
    return WARM_UP if mode == "off" else UNTRACED


def _computations_header(options: Any) -> list[str]:
    others = [(f"{mode}: ms", "faster than off") for mode in _modes(options)[1:]]
    return ["", "off: ms per epoch", *itertools.chain(*others)]


def _computations_row(found: Compared, options: Any) -> list[str]:
    cells = [found.milliseconds("off")]
    for mode in _modes(options)[1:]:
        cells += [found.milliseconds(mode), found.faster(mode, "off")]
    return cells


def _wide_maf() -> dict[str, Any]:
    return {"density_estimator": posterior_nn("maf", hidden_features=512)}


def _wide_flow_matching() -> dict[str, Any]:
    return {"vf_estimator": posterior_flow_nn("mlp", hidden_features=1024)}


PRECISIONS = ("32", "bf16-mixed")


def precisions(options: Any) -> dict[str, dict[str, Way]]:
    """Return by network both precisions."""
    networks = {
        "NPE maf": (CELLS["NPE maf"], 10_000, 200),
        "NPE maf, 512 hidden features": (Cell("NPE", _wide_maf), 50_000, 4_096),
        "FMPE, 1,024 hidden features": (Cell("FMPE", _wide_flow_matching), 50_000, 4_096),
        "NPE, CNN on 64 x 64": (CELLS["NPE, CNN on 64 x 64"], 10_000, 200),
    }
    rows = {}
    for name, (cell, most, wanted) in networks.items():
        number, size = full_batches(min(options.rows, most), wanted)
        make = on_typed(cell, number, options.device)
        rows[f"{name}, batches of {size:,}"] = {
            precision: Way(make, size, options.device, typed(precision=precision))
            for precision in PRECISIONS
        }
    return rows


def _precisions_row(found: Compared, options: Any) -> list[str]:
    full, half = PRECISIONS
    losses = [f"{found.losses[precision][-1]:.4f}" for precision in PRECISIONS]
    return [found.milliseconds(full), found.milliseconds(half), found.faster(half, full), *losses]


PARTS = {
    1: Part(
        "The card against the same machine's CPU",
        "NPE maf in the typed form; an epoch's time, with validation, divided by its steps. About "
        f"50,000 rows, fewer where {MOST_STEPS} steps need fewer.",
        _card_header,
        card_and_cpus,
        _card_row,
    ),
    2: Part(
        "Rows on the card, or on the host",
        f"NPE maf in the typed form, x of {FEATURES} numbers, ms per epoch. From the host, batches "
        "are copied through pinned memory while the card works; sbi's own loop, with its data on "
        "the card, ran for one round.",
        lambda options: [
            *("", "on the card: ms", "on the host: ms", "faster on the card"),
            *("sbi: ms", "card faster than sbi", "host faster than sbi"),
        ],
        places,
        _places_row,
    ),
    3: Part(
        "How steps are computed",
        "The typed form with `compile`. On a card, 'auto' launches a recorded step at once, as a "
        "CUDA graph, where CUDA can.",
        _computations_header,
        computations,
        _computations_row,
    ),
    4: Part(
        "bf16-mixed against 32",
        "The typed form with `precision`, ms per epoch. Losses are training losses after the same "
        "number of epochs.",
        lambda options: [
            *("", "32: ms", "bf16-mixed: ms", "faster"),
            *("32: training loss", "bf16-mixed: training loss"),
        ],
        precisions,
        _precisions_row,
    ),
}


# --- showing


def measured(part: Part, options: Any, result: Result) -> None:
    """Measure a table row by row and add it to the result; a row that fails becomes a note."""
    rows, numbers = [], {}
    for name, ways in part.ways(options).items():
        if torch.cuda.is_initialized():
            gc.collect()  # a CUDA graph must not be freed while the next one is captured
        try:
            found = compare(ways, options)
            row = [name, *part.row(found, options)]
        except Exception as error:
            traceback.print_exc()
            result.notes.append(f"{part.title}: {name} failed. {_causes(error)}")
            continue
        rows.append(row)
        numbers[name] = found.plain()
        result.notes += _left_to_torch(name, found)
        print(f"{name}: {' | '.join(row[1:])}", flush=True)
    table = Table(part.header(options), rows, part.title, part.note)
    print(f"\n{table}\n", flush=True)
    result.tables.append(table)
    result.numbers[part.title] = numbers


def _causes(error: BaseException | None) -> str:
    """Return the first lines of an error and of what caused it."""
    told = []
    while error is not None:
        told.append(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        error = error.__cause__
    return "; ".join(told)


def _left_to_torch(name: str, found: Compared) -> list[str]:
    """Return sentences about training or validation that was not computed as `compile` asks."""
    return [
        f"{name}, {way}: {reason}."
        for way, reasons in found.reasons.items()
        for reason in dict.fromkeys(reasons)
    ]


def figure(result: Result) -> Any:
    """Return milliseconds per step against the batch size, on logarithmic axes."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(5, 3.5), layout="constrained")
    axes, lines = drawing.subplots(), {}
    for size, found in result.numbers.get(PARTS[1].title, {}).items():
        for way, epochs in found["seconds (wall, cpu) per epoch"].items():
            median = Spread.of(wall for wall, _ in epochs).median
            point = int(size.replace(",", "")), 1e3 * median / found["steps"]
            lines.setdefault(way, []).append(point)
    for way, points in lines.items():
        axes.loglog(*zip(*points, strict=True), "o-", label=way)
    axes.set_xlabel("batch size")
    axes.set_ylabel("ms per step")
    axes.legend()
    return drawing


def main(arguments: Sequence[str] | None = None) -> Result:
    """Measure and show."""
    parser = options_of(__doc__, rounds=3, device="cuda")
    parser.add_argument("--tables", nargs="+", type=int, choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rows", type=int, default=100_000, help="at most, in every table")
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[200, 1_000, 4_096, 16_384], help="table 1"
    )
    parser.add_argument(
        "--cpu-threads",
        nargs="+",
        type=int,
        default=sorted({1, torch.get_num_threads()}),
        help="table 1 (default: 1, and as many as torch takes)",
    )
    parser.add_argument("--inductor", action="store_true", help='table 3: compile="inductor" too')
    options = parse(parser, arguments)
    result = Result("gpu", (__doc__ or "").splitlines()[0])
    if torch.device(options.device).type != "cuda":
        result.notes.append("No card took part: this is a trial of the script.")
    result.notes.append(
        f"Steps are traced after {EAGER_STEPS} batches of a shape. Medians (lowest to highest); "
        f"ratios within a round. Left out: CPU and sbi where an epoch exceeds {MOST_SECONDS:g} s."
    )
    for number in options.tables:
        measured(PARTS[number], options, result)
    conclude(result, options, figure if 1 in options.tables else None)
    return result


if __name__ == "__main__":
    main()
