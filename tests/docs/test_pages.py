"""What the pages say can be run, and what they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import sbi_ignite
from sbi_ignite.settings.sources import valid_variables
from tests.docs.pages import DOCS, PAGES, blocks, prose, title
from tests.small import ROOT

GALLERY = (DOCS / "examples.md").read_text(encoding="utf-8")
MINUTES, WORDS_PER_MINUTE = 5, 240
RUN = [page for page in PAGES if blocks(page, "python")]


@pytest.fixture
def clean_trackers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep trackers offline and their files in the test's folder."""
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(tmp_path),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("clean_trackers")
@pytest.mark.parametrize("page", RUN, ids=title)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path) -> None:
    """In one namespace, as if it were pasted into one session."""
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        for block in blocks(page, "python"):
            code = "\n" * (block.line - 1) + block.code  # so that errors name the page's lines
            exec(compile(code, str(page), "exec"), names)
    finally:
        sbi_ignite.unpatch_sbi()
        plt.close("all")


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_a_page_is_read_in_five_minutes(page: Path) -> None:
    """At 240 words a minute; code counts as well, tables of measurements do not."""
    text = page.read_text(encoding="utf-8")
    if page == DOCS / "supported.md":  # a table for looking things up
        return
    words = [word for word in text.split() if re.search(r"\w", word)]
    assert len(words) <= MINUTES * WORDS_PER_MINUTE


PATH = re.compile(
    r"(?<![\w/.])((?:benchmarks|docs|examples|findings|sbi_ignite|tests)/[\w./-]*\w)(?:::(\w+))?"
)


def missing(text: str) -> list[str]:
    """Return the files, and the tests in them, that a text names and that are not there."""
    gone = []
    for path, test in PATH.findall(text):
        file = ROOT / path
        if path.startswith("docs/_build"):  # appears when the documentation is built
            continue
        if not file.exists() or (test and f"def {test}(" not in file.read_text(encoding="utf-8")):
            gone.append(f"{path}::{test}" if test else path)
    return gone


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_files_and_tests_that_a_page_names_are_there(page: Path) -> None:
    assert missing(page.read_text(encoding="utf-8")) == []
    assert missing("`tests/docs/test_pages.py::missing`, `tests/docs/test_none.py`") == [
        "tests/docs/test_none.py"
    ]


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    """Those to other files; pages that are made when the documentation is built count too."""
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    made = DOCS / "reference"
    gone = [link for link in links if not (page.parent / link).exists()]
    assert [link for link in gone if (page.parent / link).resolve().parent != made] == []


MISSPELT = {"SBI_IGNITE_TRAIN__BATCHSIZE"}
"""What a page names to show the error."""


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_variables_that_a_page_names_are_read(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"SBI_IGNITE_(?:[A-Z_]+__)[A-Z_]*[A-Z]", text)) - MISSPELT
    assert named <= {*valid_variables()}


NUMBER = re.compile(
    r"(?!\b(?:50|68|90|95) ?%)\b"  # these are credible regions
    r"\d(?:[\d.,]*\d)? ?(?:%|times\b|x\b(?! ?\d)|ms\b|nats\b|MB\b|GB\b)"
)
SHOWN_BY = re.compile(r"(?:benchmarks|examples|findings|tests)/[\w./-]*\w|benchmarks\.md")


def unshown(text: str) -> list[str]:
    """Return the sections of a text that claim a number and name nothing that shows it."""
    sections = re.split(r"^(?=#+ )", text, flags=re.MULTILINE)
    return [
        f"{section.strip().splitlines()[0]}: {NUMBER.findall(section)}"
        for section in sections
        if NUMBER.search(section) and not SHOWN_BY.search(section)
    ]


LISTS = {DOCS / "how-to" / "index.md", DOCS / "reference" / "index.md"}
"""Pages that only say where others are."""


@pytest.mark.parametrize("page", [page for page in PAGES if page not in LISTS], ids=title)
def test_a_page_names_what_shows_what_it_says(page: Path) -> None:
    assert SHOWN_BY.search(prose(page))


SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_example_is_in_the_gallery(script: Path) -> None:
    """In the form of which the built page makes a section with a picture."""
    items = re.findall(r"^\* \[`(\w+\.py)`\]\(\.\./examples/\1\): \S", GALLERY, re.MULTILINE)
    assert items.count(script.name) == 1


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_a_page_reads_well_without_being_built(page: Path) -> None:
    """No directives of Sphinx and no marks that only a built page replaces."""
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^(?:```\{|:::).*$|^[A-Z-]{4,}$", text, re.MULTILINE) == []


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_a_section_that_claims_numbers_names_what_shows_them(page: Path) -> None:
    if page == DOCS / "supported.md":  # its numbers are counts of the tests in its columns
        return
    assert unshown(prose(page)) == []
    assert unshown("# Fast\nIt is 3 times faster.") == ["# Fast: ['3 times']"]
    assert unshown("# Sizes\nThe 90 % region of 64 x 64 pictures.") == []
