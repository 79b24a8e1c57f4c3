"""Run chosen tests with other versions of Python and of the libraries, and make a table.

Each row is an environment of its own, made by nox (uv makes it where uv is installed, else pip) and
removed afterwards. A row with another torch than the one most rows have takes several gigabytes.
Pythons are found on PATH; a row whose Python is missing is skipped.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .outcomes import Outcome, outcome, probe, report_of
from .rows import ALL, PARTS, ROOT, ROWS, SHOWN, Row

PAGE = ROOT / "docs" / "supported.md"
COLUMNS = (
    "environment",
    "Python",
    *SHOWN[:3],
    "steps computed by",
    "tests passed",
    "what they test",
    "date",
)
TITLE = """# What is supported

Each row is an environment of its own in which tests were run: the newest version of every
dependency, except for what its name says. An environment runs the tests that it can matter to:

{parts}

`tests/versions/rows.py` names the tests, `python -m tests.versions --write` runs them and makes
this page. Steps are computed by "torchscript" where this torch can record and repeat them, else by
torch as it is ("eager").

"""
FAILED = 1
"""Exit code if a row failed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run rows, print their table and, if asked, write it; return 0 if no row failed.

    Args:
        arguments: Of the command line; None takes the process's own.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        parser.error(f"there is no row {', '.join(unknown)}; the rows are {', '.join(ROWS)}")
    if options.list:
        print("\n".join(ROWS))
        return 0
    if importlib.util.find_spec("nox") is None:
        print('nox is not installed: pip install --editable ".[dev]"', file=sys.stderr)
        return 2
    lines = {}
    failed = False
    with tempfile.TemporaryDirectory(prefix="versions-") as temporary:
        place = Path(options.envs or temporary).resolve()
        place.mkdir(parents=True, exist_ok=True)
        for name in options.rows or ROWS:
            session = run_row(ROWS[name], place, options)
            failed |= session["result"] not in ("success", "skipped")
            lines[name] = row_of_table(ROWS[name], place / "results" / name, session)
            print(f"\n{table(lines)}\n", flush=True)
            if options.write:
                write(lines)
    return FAILED if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="names of rows; all of them if none")
    parser.add_argument("--list", action="store_true", help="list the rows and do nothing else")
    parser.add_argument("--write", action="store_true", help=f"update {PAGE.relative_to(ROOT)}")
    parser.add_argument("--envs", metavar="DIR", help="where environments and results are kept")
    parser.add_argument("--keep", action="store_true", help="keep environments in --envs")
    parser.add_argument("--sbi-main", metavar="PATH", help="a folder with sbi's main branch")
    parser.add_argument("--torch-index", metavar="URL", help="a package index with other torches")
    parser.add_argument("-n", "--workers", default="0", help="of pytest-xdist")
    return parser


def run_row(row: Row, place: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the nox session of one row.

    Args:
        row: The row.
        place: Folder for environments and results.
        options: Of the command line.

    Returns:
        What nox reports: "result" ("success", "failed", "skipped") and "reason", among others.
    """
    environments, report = place / "environments", place / "report.json"
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "nox",
        "--noxfile",
        str(Path(__file__).with_name("noxfile.py")),
    ]
    command += ["--session", row.name, "--envdir", str(environments), "--report", str(report)]
    # A missing Python is a row that says so, also where CI is set; none is fetched from elsewhere.
    command += ["--no-error-on-missing-interpreters", "--download-python", "never"]
    command += ["--", "--results", str(place / "results"), "--workers", options.workers]
    if options.sbi_main:
        command += ["--sbi-main", Path(options.sbi_main).resolve().as_uri()]
    command += ["--torch-index", options.torch_index] if options.torch_index else []
    subprocess.run(command, cwd=ROOT, env=_environment(), check=False)
    if not options.keep:
        shutil.rmtree(environments, ignore_errors=True)
    sessions = json.loads(report.read_text())["sessions"] if report.exists() else []
    return sessions[0] if sessions else {"result": "failed", "reason": "nox made no report"}


def _environment() -> dict[str, str]:
    """Return the environment without what would lead into the one that this process runs in."""
    names = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    ours = ("SBI_IGNITE", "PYTEST_", "NOX")
    return {k: v for k, v in os.environ.items() if k not in names and not k.startswith(ours)}


def row_of_table(row: Row, results: Path, session: dict[str, Any]) -> str:
    """Return the line of a row in the table.

    Args:
        row: The row.
        results: Where its results are.
        session: What nox reports about it.
    """
    note = row.note or ", ".join(row.pins)
    name = f"{row.name} ({note})" if note else row.name
    today = datetime.date.today().isoformat()
    if session["result"] == "skipped":
        return _line([name, f"not run: {session['reason']}", *[""] * (len(COLUMNS) - 3), today])
    found = probe(results)
    if found is None:
        return _line([name, "**does not install or train**", *[""] * (len(COLUMNS) - 3), today])
    versions = [found["versions"][shown] for shown in SHOWN[:3]]
    outcomes = {part: outcome(report_of(results, part)) for part in PARTS if part in row.parts}
    tested = (_passed(outcomes), _tested(row.parts))
    return _line([name, found["python"], *versions, _computed_by(found), *tested, today])


def _passed(outcomes: Mapping[str, Outcome]) -> str:
    """Return how many tests passed, and for each part where some did not, how it went."""
    others = [f"{part}: {found}" for part, found in outcomes.items() if not found.whole]
    return "; ".join([str(sum(found.passed for found in outcomes.values())), *others])


def _tested(parts: Sequence[str]) -> str:
    """Return the names of parts; "all" stands for those that most rows have."""
    return "all" if set(parts) == set(ALL) else ", ".join(part for part in PARTS if part in parts)


def _computed_by(found: dict[str, Any]) -> str:
    """Return how steps were computed, and why not in a faster way."""
    return f"{found['executor']}: {found['reason']}" if found["reason"] else found["executor"]


def table(lines: dict[str, str]) -> str:
    """Return rows under their heading, as Markdown."""
    return "\n".join([_line(COLUMNS), _line(["---"] * len(COLUMNS)), *lines.values()])


def _title() -> str:
    """Return what stands above the table: what each part of the tests shows."""
    extra = [name for name in PARTS if name not in ALL]
    parts = [
        f"* **{name}**{' (not in “all”)' if name in extra else ''}: {part.about};"
        for name, part in PARTS.items()
    ]
    return TITLE.format(parts="\n".join(parts).removesuffix(";") + ".")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write(lines: dict[str, str], page: Path = PAGE) -> None:
    """Put rows into the page; rows that were not run this time stay as they are.

    Args:
        lines: Lines of the table by the names of their rows.
        page: The page.
    """
    kept = {}
    for line in page.read_text(encoding="utf-8").splitlines() if page.exists() else ():
        name = line.removeprefix("| ").split(" ", 1)[0]
        if line.startswith("| ") and name in ROWS:
            kept[name] = line
    kept.update(lines)
    ordered = {name: kept[name] for name in ROWS if name in kept}
    page.write_text(_title() + table(ordered) + "\n", encoding="utf-8")
