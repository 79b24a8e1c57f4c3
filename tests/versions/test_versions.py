"""The command that tests other versions lists what pyproject.toml declares and reports honestly."""

from __future__ import annotations

import json
import sys
from xml.etree import ElementTree

import pytest

from tests.small import ROOT, python
from tests.versions import run
from tests.versions.outcomes import PROBE, Outcome, outcome, report_of
from tests.versions.rows import PARTS, ROWS, SBI_MAIN, SHOWN, TORCH, Row, lower_bounds

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_declared_lower_bound_is_a_row():
    """Of the libraries that are used directly, those of the extras included."""
    extras = PROJECT["optional-dependencies"]
    backends = [line for name in ("wandb", "mlflow", "tensorboard") for line in extras[name]]
    bounded = [line.split(">=") for line in (*PROJECT["dependencies"], *backends) if ">=" in line]
    declared = {f"{name}=={bound.split(',')[0]}" for name, bound in bounded if name != "sbi"}
    assert declared
    assert declared <= {pin for row in ROWS.values() for pin in row.pins}


def test_every_declared_python_is_a_row():
    start = "Programming Language :: Python :: 3."
    declared = [c.removeprefix(start) for c in PROJECT["classifiers"] if c.startswith(start)]
    assert declared
    assert {f"python-3.{minor}" for minor in declared} <= ROWS.keys()


def test_the_lowest_version_is_read_from_where_it_is_declared():
    (requirement,) = lower_bounds("torch")
    assert f'"{requirement.replace("==", ">=")}' in (ROOT / "pyproject.toml").read_text()
    with pytest.raises(KeyError):
        lower_bounds("no-such-library")


def test_every_test_that_is_named_exists():
    for part in PARTS.values():
        assert all((ROOT / path).exists() for path in part.paths), part


def test_a_row_takes_the_common_torch_unless_it_names_one():
    assert Row("any").requirements("") == [TORCH]
    assert Row("any", pins=("numpy==1.26.*",)).requirements("") == [TORCH, "numpy==1.26.*"]
    assert Row("any", pins=("torch==2.8.0",)).requirements("") == ["torch==2.8.0"]
    assert Row("any", newest_torch=True).requirements("") == []
    assert Row("any", constrained=True).requirements("") == []
    assert Row("any", pins=(SBI_MAIN,)).requirements("/a/b") == [TORCH, "sbi @ /a/b"]


def write_report(path, **numbers):
    suites = ElementTree.Element("testsuites")
    ElementTree.SubElement(suites, "testsuite", {n: str(v) for n, v in numbers.items()})
    ElementTree.ElementTree(suites).write(path)


@pytest.mark.parametrize(
    ("numbers", "good", "words"),
    [
        ({"tests": 9, "failures": 0, "errors": 0, "skipped": 0}, True, "9"),
        ({"tests": 9, "failures": 0, "errors": 0, "skipped": 2}, True, "7 (2 skipped)"),
        ({"tests": 9, "failures": 1, "errors": 1, "skipped": 2}, False, "**2 of 7 failed** (2 sk"),
        ({"tests": 9, "time": 241.5}, True, "9, time was up after 240 s"),
        ({"tests": 2, "failures": 0, "errors": 0, "skipped": 2}, False, "0 (2 skipped)"),
    ],
)
def test_a_part_is_good_if_tests_ran_and_none_failed(numbers, good, words, tmp_path):
    write_report(tmp_path / "part.xml", **numbers)
    found = outcome(tmp_path / "part.xml")
    assert found.good == good
    assert str(found).startswith(words)


def test_a_part_without_a_report_is_not_good(tmp_path):
    (tmp_path / "cut.xml").write_text("<testsuites>")
    for name in ("none.xml", "cut.xml"):
        assert outcome(tmp_path / name) == Outcome(missing=True)
        assert not outcome(tmp_path / name).good


def test_a_line_holds_versions_and_outcomes(tmp_path):
    found = {"python": "3.12.1", "executor": "eager", "reason": "torch 2.6 has no torch.x"}
    found["versions"] = {name: f"of {name}" for name in SHOWN}
    (tmp_path / PROBE).write_text(json.dumps(found))
    write_report(report_of(tmp_path, "ways in"), tests=3)
    write_report(report_of(tmp_path, "optimizers"), tests=4)
    write_report(report_of(tmp_path, "settings"), tests=5, failures=1)
    cells = run.row_of_table(ROWS["numpy-1.26"], tmp_path, {"result": "success"}).split(" | ")
    assert len(cells) == len(run.COLUMNS)
    line = dict(zip(run.COLUMNS, cells, strict=True))
    assert line["environment"] == "| numpy-1.26 (numpy==1.26)"
    assert (line["Python"], line["torch"]) == ("3.12.1", "of torch")
    assert line["steps computed by"] == "eager: torch 2.6 has no torch.x"
    assert line["tests passed"].startswith("11; numbers: did not run")
    assert line["tests passed"].endswith("settings: **1 of 5 failed**; trackers: did not run")
    assert line["what they test"] == "all"


@pytest.mark.parametrize(
    ("session", "said"),
    [
        ({"result": "skipped", "reason": "Python interpreter 3.14 not found"}, "3.14 not found"),
        ({"result": "failed", "reason": None}, "**does not install or train**"),
    ],
)
def test_a_row_that_could_not_run_says_so(session, said, tmp_path):
    line = run.row_of_table(ROWS["python-3.14"], tmp_path, session)
    assert said in line
    assert line.count("|") == len(run.COLUMNS) + 1


def test_writing_keeps_the_rows_that_were_not_run(tmp_path):
    page = tmp_path / "supported.md"
    run.write({"numpy-1.26": "| numpy-1.26 | old |", "newest": "| newest (x) | old |"}, page)
    run.write({"numpy-1.26": "| numpy-1.26 | new |", "constraints": "| constraints | new |"}, page)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")][2:]
    assert rows == ["| newest (x) | old |", "| constraints | new |", "| numpy-1.26 | new |"]


def test_the_page_says_what_every_part_shows(tmp_path):
    run.write({"newest": "| newest |"}, tmp_path / "supported.md")
    text = (tmp_path / "supported.md").read_text()
    assert all(f"* **{name}**" in text and part.about in text for name, part in PARTS.items())


def test_the_page_in_the_documentation_has_the_columns_and_words_of_today(tmp_path):
    text = run.PAGE.read_text(encoding="utf-8")
    run.write({}, tmp_path / "supported.md")
    assert text.startswith((tmp_path / "supported.md").read_text(encoding="utf-8").rstrip("\n"))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {row.count("|") for row in rows} == {len(run.COLUMNS) + 1}


def test_an_unknown_row_is_refused_with_the_names_of_all():
    done = python("-m", "tests.versions", "nowhere")
    assert done.returncode == 2
    assert "there is no row nowhere" in done.stderr
    assert all(name in done.stderr for name in ROWS)


def test_a_missing_python_is_a_row_that_says_so_and_no_failure(tmp_path):
    pytest.importorskip("nox")
    row = ("python-3.14", "--envs", str(tmp_path))
    done = python("-m", "tests.versions", *row, PATH=str(tmp_path), CI="true")
    assert done.returncode == 0, done.stderr
    assert "not run: Python interpreter 3.14 not found" in done.stdout
