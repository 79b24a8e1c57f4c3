"""Write RESULTS.md from the recorded results: `python -m benchmarks.report [FILE ...]`.

Files that scripts wrote with `--json`, for example on another machine, are recorded first.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from benchmarks.measuring import FOLDER, RESULTS, Result, save_figure

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
    for file in files:
        result = Result.load(Path(file))
        draw = getattr(import_module(f"benchmarks.{result.script}"), "figure", None)
        if draw is not None:
            result.figure = f"{result.record}.svg"
            save_figure(draw(result), RESULTS / result.figure)
        result.save(RESULTS / f"{result.record}.json")


if __name__ == "__main__":
    record(sys.argv[1:])
    write_page()
