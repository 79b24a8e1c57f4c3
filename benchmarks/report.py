"""Write RESULTS.md from the recorded results: `python -m benchmarks.report [FILE ...]`.

Files that scripts wrote with `--json`, for example on another machine, are recorded first. Several
files of one script, each with other parts, are recorded as one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.measuring import FOLDER, RESULTS, Result, Table, save_figure

INTRODUCTION = """\
# Results

Made by the scripts of this folder with `--write`; [README.md](README.md) says what each one asks.
Do not edit by hand.
"""


def page(results: list[Result]) -> str:
    """Return the page: per script its question, figure, tables, notes and the machine."""
    return "\n".join([INTRODUCTION, *map(_section, results)])


def _section(result: Result) -> str:
    """Return the section of one script."""
    machine = "; ".join(f"{name} {value}" for name, value in result.machine.items())
    return "\n\n".join(
        [
            f"## {result.question}",
            f"`{result.command}`",
            *([f"![{result.script}](results/{result.figure})"] if result.figure else []),
            *map(str, result.tables),
            *(f"* {note}" for note in result.notes),
            f"<small>{machine}</small>\n",
        ]
    )


def write_page() -> None:
    """Rewrite RESULTS.md from everything that is recorded in `results/`."""
    files = sorted(RESULTS.glob("*.json"))
    (FOLDER / "RESULTS.md").write_text(page([Result.load(file) for file in files]))


def record(files: Iterable[str | Path]) -> None:
    """Put results among those that are recorded, with the figures that their scripts draw."""
    RESULTS.mkdir(exist_ok=True)
    found: dict[str, list[Result]] = {}
    for file in files:
        result = Result.load(Path(file))
        found.setdefault(result.record, []).append(result)
    for parts in found.values():
        result = joined(parts)
        draw = getattr(import_module(f"benchmarks.{result.script}"), "figure", None)
        if draw is not None:
            result.figure = f"{result.record}.svg"
            save_figure(draw(result), RESULTS / result.figure)
        result.save(RESULTS / f"{result.record}.json")


def joined(parts: Sequence[Result]) -> Result:
    """Return parts of one script as one result.

    Raises:
        ValueError: If they were measured on different machines or by different versions, or the
            same was measured twice.
    """
    first, *others = parts
    machine = {**first.machine}
    for part in others:
        machine["date"] = max(machine["date"], part.machine["date"])
        differs = [n for n in machine if n != "date" and machine[n] != part.machine.get(n)]
        if differs:
            raise ValueError(
                f"{part.command} ran with another {' and '.join(differs)} than {first.command}: "
                "measure both on one machine"
            )
    numbers: dict[str, Any] = {}
    for part in parts:
        _add(part.numbers, numbers, part.command)
    tables: dict[tuple[str, ...], Table] = {}
    for table in (table for part in parts for table in part.tables):
        key = (*table.header, table.title, table.note)
        rows = [*tables[key].rows, *table.rows] if key in tables else table.rows
        tables[key] = replace(table, rows=rows)
    return replace(
        first,
        tables=list(tables.values()),
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
        numbers=numbers,
        command="`, `".join(dict.fromkeys(part.command for part in parts)),
        machine=machine,
    )


def _add(new: dict[str, Any], numbers: dict[str, Any], command: str) -> None:
    """Add numbers of one part to those of the others, at every depth."""
    for name, value in new.items():
        there = numbers.get(name)
        if name not in numbers:
            numbers[name] = deepcopy(value)
        elif isinstance(value, dict) and isinstance(there, dict):
            _add(value, there, command)
        else:
            raise ValueError(f"{command} measured {name} once more: name one file for each part")


if __name__ == "__main__":
    record(sys.argv[1:])
    write_page()
