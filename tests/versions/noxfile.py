"""One nox session for each combination of versions in `rows.py`.

`python -m tests.versions` runs them and makes a table of the results. By themselves:
`nox -f tests/versions/noxfile.py -s numpy-1.26`.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path

import nox

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.versions.outcomes import PROBE, SECONDS, outcome, report_of  # noqa: E402
from tests.versions.rows import PARTS, ROOT, ROWS, SHOWN, Row  # noqa: E402

nox.options.sessions = []  # several gigabytes each: they run only if named


def test(session: nox.Session, row: Row) -> None:
    """Install one combination and run its parts of the test suite."""
    options = _options(session.posargs)
    results = options.results / row.name
    results.mkdir(parents=True, exist_ok=True)
    for old in results.iterdir():
        old.unlink()
    session.chdir(ROOT)
    constraints = ["--constraint", "constraints.txt"] if row.constrained else []
    index = ["--extra-index-url", options.torch_index] if options.torch_index else []
    requirements = row.requirements(options.sbi_main)
    install = [*index, *constraints, "--editable", ".[test]", *requirements]
    session.install(*install, env=_told_to_uv())
    environment = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    # uv leaves compiling to the first import, and every process would do it anew if this were set.
    environment["PYTHONDONTWRITEBYTECODE"] = ""
    with session.chdir(session.create_tmp()):
        command = ("python", str(HERE / "probe.py"), *SHOWN)
        found = session.run(*command, silent=True, log=False, env=environment, stderr=None)
    (results / PROBE).write_text(str(found).splitlines()[-1], encoding="utf-8")
    pytest = ("python", "-m", "pytest", "-q", "-n", options.workers, "-p", "no:cacheprovider")
    limit = ("--session-timeout", str(SECONDS))
    for name in row.parts:
        report = ("--junit-xml", str(report_of(results, name)))
        # Whatever comes of one part, the others are worth running.
        session.run(
            *(*pytest, *limit, *report, *PARTS[name].arguments),
            env=environment,
            success_codes=range(256),
        )
    bad = [name for name in row.parts if not outcome(report_of(results, name)).good]
    if bad:
        session.error(f"not all tests passed: {', '.join(bad)}")


def _told_to_uv() -> dict[str, str]:
    """Return what pip is told by its variables as the variables of uv, which knows none of them."""
    names = {"PIP_INDEX_URL": "UV_INDEX_URL", "PIP_FIND_LINKS": "UV_FIND_LINKS"}
    told = {uv: os.environ[pip] for pip, uv in names.items() if os.environ.get(pip)}
    as_pip = {uv: ",".join(value.split()) for uv, value in told.items()}
    return {**as_pip, **{name: os.environ[name] for name in as_pip if name in os.environ}}


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox ... --")
    parser.add_argument("--results", type=Path, default=ROOT / ".nox" / "results")
    parser.add_argument("--sbi-main", default="git+https://github.com/sbi-dev/sbi@main")
    parser.add_argument("--torch-index")
    parser.add_argument("--workers", default="0")
    return parser.parse_args(arguments)


for _row in ROWS.values():
    nox.session(
        functools.partial(test, row=_row),
        name=_row.name,
        python=_row.python,
        venv_backend="uv|venv",
    )
