"""Print tables, JSON and errors: rich in a terminal, plain text in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Sequence[str]

STYLES = {
    "complete": "green",
    "ok": "green",
    "running": "cyan",
    "note": "yellow",
    "interrupted": "yellow",
    "killed": "red",
    "failed": "red",
    "damaged": "red",
    "broken": "red",
    "environment": "cyan",
    "file": "cyan",
}
"""How words for a state are shown in a terminal."""


def in_terminal() -> bool:
    """Say whether a person is reading."""
    return sys.stdout.isatty()


def console() -> Console:
    """Return rich's console on standard output."""
    return Console(highlight=False)


def print_json(data: Any) -> None:
    """Print data as strict JSON."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(
    columns: Sequence[str], rows: Iterable[Row], title: str = "", right: Sequence[str] = ()
) -> None:
    """Print a table.

    In a pipe, every row is one line of columns that are two spaces apart, whatever its length; "-"
    stands for nothing, and there is no title.

    Args:
        columns: Their names.
        rows: Texts.
        title: What stands above the table in a terminal.
        right: Names of columns that are aligned to the right there.
    """
    if in_terminal():
        console().print(rich_table(columns, rows, title, right))
    else:
        for line in plain_lines(columns, rows):
            typer.echo(line)


def rich_table(
    columns: Sequence[str],
    rows: Iterable[Row],
    title: str = "",
    right: Sequence[str] = (),
    short: Sequence[str] = (),
) -> Table:
    """Return a table for a terminal; see `print_table`.

    Args:
        columns: Their names.
        rows: Texts.
        title: What stands above it.
        right: Names of columns that are aligned to the right.
        short: Names of columns that are never broken into lines.
    """
    from rich.box import SIMPLE_HEAD

    table = Table(
        box=SIMPLE_HEAD,
        title=Text(title, style="bold") if title else None,  # "[train]" is no markup
        title_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    for name in columns:
        justify = "right" if name in right else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in short)
    for row in rows:
        table.add_row(*map(_styled, row))
    return table


def _styled(cell: str) -> Text:
    word = "file" if cell.startswith("file ") else cell
    return Text(cell, style=STYLES.get(word, ""))


def plain_lines(columns: Sequence[str], rows: Iterable[Row]) -> list[str]:
    """Return a table as aligned lines.

    Example:
        >>> plain_lines(["a", "b"], [["long", ""]])
        ['a     b', 'long  -']
    """
    every = [list(columns), *([" ".join(cell.split()) or "-" for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in every]


def fail(message: object, code: int) -> NoReturn:
    """Print why the command ends, on standard error, and end it.

    Args:
        message: The reason.
        code: 1 if what was asked for is not there or broken, 2 for a mistake of whoever asked.
    """
    typer.echo(f"sbi-ignite: {message}", err=True)
    raise typer.Exit(code)


def note(message: str) -> None:
    """Print something besides the result, on standard error."""
    typer.echo(f"sbi-ignite: {message}", err=True)
