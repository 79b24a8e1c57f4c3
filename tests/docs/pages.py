"""The pages of the documentation, and the Python in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.small import ROOT

DOCS = ROOT / "docs"
PAGES = (
    ROOT / "README.md",
    *sorted(
        path
        for path in DOCS.rglob("*.md")
        if not {"_build", "_extensions"} & {*path.relative_to(DOCS).parts}
        and (path.parent != DOCS / "reference" or path.name == "index.md")
    ),
)
"""README and every page that is written by hand."""

_FENCE = re.compile(r"^(```+)(\S*)[^\n]*\n(.*?)^\1 *$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code: its language, the line that it begins on, and its text."""

    language: str
    line: int
    code: str


def blocks(page: Path, language: str) -> list[Block]:
    """Return the code blocks of a page in one language, those in comments included."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found[2], text.count("\n", 0, found.start(3)) + 1, found[3])
        for found in _FENCE.finditer(text)
        if found[2] == language
    ]


def prose(page: Path) -> str:
    """Return a page without its code blocks and comments."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def title(page: Path) -> str:
    """Return the name by which a page goes in test reports."""
    return page.relative_to(ROOT).with_suffix("").as_posix()
