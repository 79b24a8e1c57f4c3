"""`sbi-ignite show`: one row per run, their loss curves in one picture, or runs as they train."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sbi_ignite.cli.output import (
    console,
    fail,
    in_terminal,
    note,
    plain_lines,
    print_json,
    rich_table,
)
from sbi_ignite.pictures import draw_comparison

if TYPE_CHECKING:
    from rich.table import Table

    from sbi_ignite.runs.overview import Overview, RunRow

_COLUMNS = (
    "directory",
    "method",
    "status",
    "stopped by",
    "epochs",
    "best loss",
    "best epoch",
    "duration",
)
_RIGHT = ("epochs", "best loss", "best epoch", "duration")
_SHORT = ("method", "status", "stopped by", *_RIGHT)
_NARROW = 92
"""Columns of a terminal below which less is shown, instead of words in pieces."""
_LEFT_OUT = ("method", "stopped by", "best epoch")


def show(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="DIRECTORY",
            help="Run directories, or folders that hold some; without any, the current folder.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Overlay the loss curves in a picture (png, pdf, svg)."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the runs until none is running any more.")
    ] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="How often --watch looks.")
    ] = 2.0,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON; with --watch, a line for every change."),
    ] = False,
) -> None:
    """Show one row per run: method, status, stop reason, epochs, best loss and duration.

    Rounds, further trainers and ensemble members get rows of their own, and so do damaged runs.
    "killed" is a run that says it is running while no process holds it. Exit code 1: there is no
    run, or a path does not exist.
    """
    # With it comes torch, for which completion and help do not wait.
    from sbi_ignite.runs.overview import Overview

    asked = paths or [Path()]
    missing = [path for path in asked if not path.exists()]
    for path in missing:
        note(f"no such path: {path}")
    overview = Overview(asked)
    rows = overview.rows()
    if not rows:
        fail(f"no runs in {', '.join(map(str, asked))}: there is no run.json in or below it", 1)
    if watch:
        rows = _watch(overview, rows, every, as_json)
    elif as_json:
        print_json({"runs": [row.to_dict() for row in rows]})
    elif in_terminal():
        _print_for_people(rows)
    else:
        for line in plain_lines(*_table(rows)):
            typer.echo(line)
    if plot is not None:
        _save(rows, plot)
    if missing:
        raise typer.Exit(1)


def _table(rows: Sequence[RunRow]) -> tuple[list[str], list[list[str]]]:
    """Return columns and cells; the note only where there is one."""
    notes = any(row.note for row in rows)
    cells = [[*_cells(row), *([row.note] if notes else [])] for row in rows]
    return [*_COLUMNS, *(["note"] if notes else [])], cells


def _print_for_people(rows: Sequence[RunRow]) -> None:
    console().print(_for_people(rows))
    for row in rows:
        if row.note:
            console().print(f"{row.path}: {row.note}", style="dim", markup=False)


def _for_people(rows: Sequence[RunRow], title: str = "") -> Table:
    """Return a table for a terminal; notes are long and stand below it."""
    narrow = console().width < _NARROW
    kept = [n for n, name in enumerate(_COLUMNS) if not (narrow and name in _LEFT_OUT)]
    cells = [[_cells(row)[n] for n in kept] for row in rows]
    return rich_table([_COLUMNS[n] for n in kept], cells, title, _RIGHT, _SHORT)


def _cells(row: RunRow) -> list[str]:
    known = row.best_epoch > 0
    return [
        str(row.path),
        row.method,
        row.status,
        row.stop_reason,
        "" if row.epochs is None else str(row.epochs),
        f"{row.best_loss:.4f}{'' if row.best_kind == 'validation' else ' (training)'}"
        if known
        else "",
        str(row.best_epoch) if known else "",
        _clock(row.seconds) if row.epochs else "",
    ]


def _clock(seconds: float) -> str:
    """Return a duration as people read it: 0.4s, 12s, 3:05 or 1:02:03."""
    if not seconds < 60:
        return str(timedelta(seconds=round(seconds))).removeprefix("0:")
    return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"


def _save(rows: Sequence[RunRow], file: Path) -> None:
    """Save the picture of all loss curves."""
    curves = [row.curves for row in rows if row.curves.epochs]
    if not curves:
        fail(f"nothing to draw in {file}: no run has finished an epoch", 1)
    try:
        draw_comparison(curves).savefig(file, dpi=150)
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror}", 1)
    except ValueError as error:
        fail(f"--plot: {' '.join(str(error).split())}, got {str(file)!r}", 2)
    note(f"{len(curves)} loss curve{'' if len(curves) == 1 else 's'} in {file}")


# --- following


def _watch(overview: Overview, rows: list[RunRow], every: float, as_json: bool) -> list[RunRow]:
    """Show the runs again and again, until none is running; Ctrl-C ends it, too."""
    try:
        if in_terminal() and not as_json:
            return _watch_live(overview, rows, every)
        return _watch_lines(overview, rows, every, as_json)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _watch_live(overview: Overview, rows: list[RunRow], every: float) -> list[RunRow]:
    from rich.live import Live

    def table(found: Sequence[RunRow]) -> Table:
        return _for_people(
            found, f"{_running(found)} of {len(found)} running, {time.strftime('%H:%M:%S')}"
        )

    screen = console()
    try:
        with Live(table(rows), console=screen, auto_refresh=False) as live:
            while _running(rows):
                time.sleep(every)
                rows = overview.rows()
                live.update(table(rows), refresh=True)
    finally:
        screen.show_cursor()  # also if Ctrl-C came while the first table was drawn
    return rows


def _watch_lines(
    overview: Overview, rows: list[RunRow], every: float, as_json: bool
) -> list[RunRow]:
    """Print a line for everything that is new."""
    told: dict[Path, dict[str, Any]] = {}
    if not as_json:
        typer.echo("  ".join(("time", *_COLUMNS)))
    while True:
        for row in rows:
            if told.get(row.path) != row.to_dict():
                told[row.path] = row.to_dict()
                typer.echo(_line(row, as_json))
        if not _running(rows):
            return rows
        time.sleep(every)
        rows = overview.rows()


def _line(row: RunRow, as_json: bool) -> str:
    if as_json:
        return json.dumps({"time": time.time(), **row.to_dict()}, allow_nan=False)
    _, cells = plain_lines(_COLUMNS, [_cells(row)])
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S')}  {'  '.join(cells.split())}"


def _running(rows: Sequence[RunRow]) -> int:
    return sum(row.status == "running" for row in rows)
