"""How long does an epoch take, against sbi's own loop and against a bare loop?

    OMP_NUM_THREADS=1 python -m benchmarks.epoch_time [--cells maf nre ...] [--rows 10000] [--write]
    OMP_NUM_THREADS=1 python -m benchmarks.epoch_time --against BUILD [--compiled] [--cells ...]

Every way is one training in a thread of its own that waits at the end of each epoch until it is
its turn again, so all ways advance epoch by epoch in alternation. Timed is a whole epoch with its
validation. Set-up is left out: the first epochs, in which steps are traced; the table says by how
many seconds the longest of them, with all that `.train()` does before it, exceeds a later one.

The bare loops are the floor: the same batches, loss, gradients and optimizer without engine,
handlers, rules and loggers. "data" is the time of one pass over all batches with nothing done.
Where a goal is missed, a profile of the typed form's epoch shows what takes its time.

With `--against BUILD`, a checkout of another version, both builds train side by side instead.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import operator
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest import mock

import sbi.inference
import torch
from torch import Tensor

import sbi_ignite.inference
from benchmarks.against import compare
from benchmarks.cells import CELLS, Cell, make_trainer
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
from sbi_ignite.callback import TrainingState
from sbi_ignite.capture.compiler import STEPS_TO_SETTLE
from sbi_ignite.capture.rules import PROOFS
from sbi_ignite.handlers.gradient_clipping import GradientClipping
from sbi_ignite.optim.flat import FlatOptimizer
from sbi_ignite.training.run import run
from sbi_ignite.training.steps import read_if_at_hand
from sbi_ignite.training.validation import validation_randomness

WARM_UP = 2
"""Epochs of every way that are not counted, besides those in which steps are not traced yet."""

UNTRACED = STEPS_TO_SETTLE + PROOFS
"""Epochs until validation is traced too, of which an epoch may have a single batch."""


# --- taking turns


class _EnoughError(Exception):
    """Ends a training that nobody needs any more."""


@dataclass
class Training:
    """A training in a thread of its own, which goes on for one epoch at a time.

    Attributes:
        train: Trains for ever; gets a function to call at the end of every epoch.
        device: Whose outstanding work belongs to an epoch.
    """

    train: Callable[[Callable[[], None]], Any]
    device: str
    epochs: list[Timing] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._over, self._error = False, None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._began = (0.0, 0.0)

    def epoch(self) -> Timing:
        """Let the training go on to the end of its next epoch; return how long that took."""
        if not self._thread.is_alive():
            self._thread.start()
        self._begin()
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise RuntimeError("a training failed") from self._error
        return self.epochs[-1]

    def end(self) -> None:
        """End the training, if it has begun."""
        if not self._thread.is_alive():
            return
        self._over = True
        self._go.release()
        self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self.train(self._epoch_ends)
        except _EnoughError:
            return
        except BaseException as error:
            self._error = error
        self._done.release()

    def _epoch_ends(self) -> None:
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter(), time.process_time()
        self.epochs.append(Timing(now[0] - self._began[0], now[1] - self._began[1]))
        self._done.release()
        self._go.acquire()
        if self._over:
            raise _EnoughError

    def _begin(self) -> None:
        self._began = time.perf_counter(), time.process_time()


# --- the ways


def sbis_own(trainer: Any, batch_size: int, epoch_ends: Callable[[], None]) -> None:
    """Train by sbi's loop."""
    summarize = trainer._summarize_epoch

    def summarized(*args: Any, **kwargs: Any) -> None:
        summarize(*args, **kwargs)
        epoch_ends()

    trainer._summarize_epoch = summarized
    trainer.train(training_batch_size=batch_size, stop_after_epochs=2**31)


class _TurnTaker:
    """A callback that waits for its turn at the end of every epoch."""

    def __init__(self, epoch_ends: Callable[[], None]) -> None:
        self._epoch_ends = epoch_ends

    def on_epoch_end(self, state: TrainingState) -> None:
        """Wait."""
        self._epoch_ends()


def sbi_form(trainer: Any, batch_size: int, epoch_ends: Callable[[], None]) -> None:
    """Train by the engine, bit for bit as sbi."""
    taker = _TurnTaker(epoch_ends)
    trainer.train(training_batch_size=batch_size, stop_after_epochs=2**31, callbacks=[taker])


def typed_form(trainer: Any, batch_size: int, epoch_ends: Callable[[], None]) -> None:
    """Train by the engine with a TrainConfig."""
    trainer.train(
        TrainConfig(batch_size=batch_size),
        early_stopping=EarlyStopping.never(),
        callbacks=[_TurnTaker(epoch_ends)],
    )


_thread = threading.local()


def _loop_of_thread(training: Any) -> Any:
    """Run a training by the loop that the thread has chosen, else by the engine."""
    return getattr(_thread, "loop", run)(training)


def bare(form: Callable[..., None]) -> Callable[..., None]:
    """Return a way that prepares as `form` does and then trains by a loop of a page."""

    def way(trainer: Any, batch_size: int, epoch_ends: Callable[[], None]) -> None:
        def loop(training: Any) -> None:
            bare_loop(training, epoch_ends)

        _thread.loop = loop
        form(trainer, batch_size, lambda: None)

    return way


def bare_loop(training: Any, epoch_ends: Callable[[], None]) -> None:
    """Train: the arithmetic of an assembled training and nothing else."""
    settings, net, optimizer = training.settings.train, training.model, training.optimizer
    gradients, validation_loss = training.compiler.gradients(optimizer), training.compiler.losses()
    stepping = FlatOptimizer(optimizer)
    flat = stepping if stepping.fused else None
    clipping = GradientClipping(net.parameters(), settings.clip_max_norm, flat)
    with stepping.lent_memory():
        while True:
            net.train()
            total = cast("float | Tensor", 0.0)
            for batch in training.train_batches:
                stepping.zero_grad()
                losses, backward = gradients(batch)
                total += read_if_at_hand(losses.sum())
                backward()
                clipping._clip()
                stepping.step()
            net.eval()
            with torch.no_grad(), validation_randomness(settings.sbi_compat, training.device):
                for batch in training.val_batches:
                    total += read_if_at_hand(validation_loss(net, batch).sum())
            float(total)
            epoch_ends()


def batches_only(form: Callable[..., None]) -> Callable[..., None]:
    """Return a way that prepares as `form` does and then only asks for batches."""

    def way(trainer: Any, batch_size: int, epoch_ends: Callable[[], None]) -> None:
        def loop(training: Any) -> None:
            while True:
                for batches in (training.train_batches, training.val_batches):
                    for _ in batches:
                        pass
                epoch_ends()

        _thread.loop = loop
        form(trainer, batch_size, lambda: None)

    return way


WAYS: dict[str, tuple[Any, Callable[..., None]]] = {
    "sbi": (sbi.inference, sbis_own),
    "sbi form": (sbi_ignite.inference, sbi_form),
    "bare, sbi form": (sbi_ignite.inference, bare(sbi_form)),
    "typed form": (sbi_ignite.inference, typed_form),
    "bare, typed form": (sbi_ignite.inference, bare(typed_form)),
    "data, sbi form": (sbi_ignite.inference, batches_only(sbi_form)),
    "data, typed form": (sbi_ignite.inference, batches_only(typed_form)),
}


# --- measuring


@dataclass(frozen=True)
class Measured:
    """Epochs of every way, and by how many seconds the longest one exceeds their median."""

    times: dict[str, list[Timing]]
    set_up: dict[str, float]


def measure(cell: Cell, options: Any) -> Measured:
    """Return the epochs of every way, in alternation."""
    with _quiet(), _in_turns(), running(cell, options) as trainings:
        ways = {name: training.epoch for name, training in trainings.items()}
        for name, training in trainings.items():
            untraced = 0 if name == "sbi" or "data" in name else UNTRACED
            for _ in range(WARM_UP + untraced):
                training.epoch()
        times = alternate(ways, options.rounds)
        set_up = {
            name: max(epoch.wall for epoch in training.epochs)
            - Spread.of(t.wall for t in times[name]).median
            for name, training in trainings.items()
        }
    return Measured(times, set_up)


@contextmanager
def _in_turns() -> Iterator[None]:
    """Let threads choose their loops, and record steps in each: only one runs at any moment."""
    with ExitStack() as stack:
        for name, value in (
            ("sbi_ignite.bridge.fit.run", _loop_of_thread),
            ("sbi_ignite.capture.verification.others_train", lambda: False),
            ("sbi_ignite.capture.verification.others_may_draw", lambda: False),
        ):
            stack.enter_context(mock.patch(name, value))
        yield


@contextmanager
def running(cell: Cell, options: Any) -> Iterator[dict[str, Training]]:
    """Give the trainings of all ways, and end them."""
    trainings = {}
    for name in options.ways:
        inference, way = WAYS[name]
        trainer = make_trainer(cell, inference, options.rows, options.device)

        def train(ends: Callable[[], None], way: Any = way, trainer: Any = trainer) -> None:
            way(trainer, options.batch_size, ends)

        trainings[name] = Training(train, options.device)
    try:
        yield trainings
    finally:
        for training in trainings.values():
            training.end()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what trainings print and warn away from the table."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def profile(cell: Cell, options: Any) -> list[tuple[str, float, int]]:
    """Return the operations of a typed form's epoch: name, share of its time, calls."""
    from torch.profiler import profile as profiled

    inference, way = WAYS["typed form"]
    trainer = make_trainer(cell, inference, options.rows, options.device)
    epochs, found = itertools.count(1), profiled()

    def epoch_ends() -> None:
        epoch = next(epochs)
        if epoch == WARM_UP + UNTRACED:
            found.start()
        elif epoch == WARM_UP + UNTRACED + 1:
            found.stop()
            raise _EnoughError

    with _quiet(), contextlib.suppress(_EnoughError):
        way(trainer, options.batch_size, epoch_ends)
    events = [e for e in found.key_averages() if e.self_cpu_time_total > 0]
    total = sum(event.self_cpu_time_total for event in events)
    events.sort(key=lambda event: -event.self_cpu_time_total)
    return [(e.key, e.self_cpu_time_total / total, e.count) for e in events]


# --- showing


def missed(measured: Measured, cell: Cell) -> bool:
    """Return whether a goal was not reached."""
    forms = [form for form in ("sbi form", "typed form") if {"sbi", form} <= measured.times.keys()]
    faster = [ratios(measured.times["sbi"], measured.times[form]).median for form in forms]
    return cell.goal is not None and any(map(operator.lt, faster, cell.goal))


def profiles_table(profiles: dict[str, list[tuple[str, float, int]]]) -> Table:
    """Return what takes the time where a goal was missed."""
    rows = [
        [name, event, f"{100 * share:.0f} %", str(calls)]
        for name, events in profiles.items()
        for event, share, calls in events[:8]
    ]
    header = ["", "operation", "of the epoch", "calls"]
    return Table(header, rows, "Where goals were missed: a typed form's epoch, by operation")


def compared(found: dict[str, Measured], cells: dict[str, Cell]) -> Table:
    """Return the table of ratios to sbi."""
    rows = []
    for name, measured in found.items():
        times, goal = measured.times, cells[name].goal
        rows.append(
            [
                name,
                _milliseconds(times, "sbi"),
                _milliseconds(times, "sbi form"),
                _faster(times, "sbi form", "wall"),
                _faster(times, "sbi form", "cpu"),
                "" if goal is None else f"{goal[0]:g}",
                _milliseconds(times, "typed form"),
                _faster(times, "typed form", "wall"),
                _faster(times, "typed form", "cpu"),
                "" if goal is None else f"{goal[1]:g}",
            ]
        )
    header = ["", "sbi, ms", "sbi form, ms", "faster", "by CPU time", "goal"]
    header += ["typed form, ms", "faster", "by CPU time", "goal"]
    note = "Ratios within a round: median (lowest to highest)."
    return Table(header, rows, "An epoch with validation", note)


def above_the_floor(found: dict[str, Measured]) -> Table:
    """Return the table of what the engine and the data path add."""
    rows = []
    for name, measured in found.items():
        row = [name]
        for form in ("sbi form", "typed form"):
            times = measured.times
            row.append(_milliseconds(times, f"bare, {form}"))
            row.append(_above(times, form, "wall"))
            row.append(_above(times, form, "cpu"))
            row.append(_share(times, f"data, {form}", form))
            row.append(f"{measured.set_up.get(form, float('nan')):.1f}")
        rows.append(row)
    of_form = ["bare loop, ms", "above it", "by CPU time", "data path", "set-up, s"]
    header = ["", *(f"{form}: {what}" for form in ("sbi", "typed") for what in of_form)]
    return Table(header, rows, "Above the bare loop with the same arithmetic")


def _milliseconds(times: dict[str, list[Timing]], way: str) -> str:
    return f"{1e3 * Spread.of(t.wall for t in times[way]).median:.0f}" if way in times else ""


def _faster(times: dict[str, list[Timing]], way: str, clock: str) -> str:
    if not {"sbi", way} <= times.keys():
        return ""
    return f"{ratios(times['sbi'], times[way], clock):.2f}"


def _above(times: dict[str, list[Timing]], form: str, clock: str) -> str:
    if not {form, f"bare, {form}"} <= times.keys():
        return ""
    spread = ratios(times[form], times[f"bare, {form}"], clock)
    return f"{100 * (spread.median - 1):+.1f} %"


def _share(times: dict[str, list[Timing]], part: str, whole: str) -> str:
    if not {part, whole} <= times.keys():
        return ""
    return f"{100 * ratios(times[part], times[whole], 'cpu').median:.1f} %"


def figure(result: Result) -> Any:
    """Return bars: how many times faster than sbi, both forms, with the range of all rounds."""
    from matplotlib.figure import Figure

    names, colours = list(result.numbers["faster"]), {"sbi form": "C0", "typed form": "C1"}
    drawing = Figure(figsize=(8, 0.5 * len(names) + 1.5), layout="constrained")
    axes = drawing.subplots()
    for offset, (form, colour) in zip((-0.2, 0.2), colours.items(), strict=True):
        spreads = [result.numbers["faster"][name].get(form) for name in names]
        for i, spread in enumerate(spreads):
            if spread is not None:
                middle, low, high = spread
                error = [[middle - low], [high - middle]]
                label = form if i == 0 else None
                axes.barh(i + offset, middle, 0.38, xerr=error, color=colour, label=label)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than sbi per epoch")
    axes.legend()
    return drawing


def main(arguments: Sequence[str] | None = None) -> Result:
    """Measure and show."""
    parser = options_of(__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), help=", ".join(CELLS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), help=", ".join(WAYS))
    parser.add_argument("--against", type=Path, metavar="BUILD", help="checkout of another build")
    parser.add_argument(
        "--compiled", action="store_true", help='with --against: compile="inductor" too'
    )
    options = parse(parser, arguments)
    if options.against is not None:
        result = compare(options.against, options)
        conclude(result, options)
        return result
    cells = {name: CELLS[name] for name in options.cells}
    found, profiles = {}, {}
    for name, cell in cells.items():
        found[name] = measure(cell, options)
        print(f"{name}: {_summary(found[name])}", flush=True)
        if missed(found[name], cell):
            profiles[name] = profile(cell, options)
    tables = [profiles_table(profiles)] if profiles else []
    result = Result(
        "epoch_time",
        (__doc__ or "").splitlines()[0],
        [compared(found, cells), above_the_floor(found), *tables],
        [
            f"{options.rows} rows (second round: 2,000 + 2,000; with images: 500 + 500), batches of {options.batch_size}."
        ],
        _numbers(found),
    )
    conclude(result, options, figure)
    return result


def _summary(measured: Measured) -> str:
    medians = {n: Spread.of(t.wall for t in times).median for n, times in measured.times.items()}
    return ", ".join(f"{name} {1e3 * median:.0f} ms" for name, median in medians.items())


def _numbers(found: dict[str, Measured]) -> dict[str, Any]:
    """Return everything as plain data."""
    faster = {
        name: {
            form: [spread.median, spread.low, spread.high]
            for form in ("sbi form", "typed form")
            if {"sbi", form} <= measured.times.keys()
            for spread in [ratios(measured.times["sbi"], measured.times[form])]
        }
        for name, measured in found.items()
    }
    seconds = {
        name: {way: [[t.wall, t.cpu] for t in times] for way, times in measured.times.items()}
        for name, measured in found.items()
    }
    return {
        "faster": faster,
        "seconds (wall, cpu) per epoch": seconds,
        "set-up, s": {name: measured.set_up for name, measured in found.items()},
    }


if __name__ == "__main__":
    main()
