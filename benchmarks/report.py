"""Recorded results come in; the page RESULTS.md goes out: `python -m benchmarks.report`."""

from __future__ import annotations

from benchmarks.measuring import FOLDER, RESULTS, Result

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


if __name__ == "__main__":
    write_page()
