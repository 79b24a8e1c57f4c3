"""Read what the tests of one combination of versions have given."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

SECONDS = 240
"""After this time no further test of a part is started."""

PROBE = "probe.json"
"""The file that holds what `probe.py` printed."""


@dataclass(frozen=True)
class Outcome:
    """How many tests of a part have passed.

    Attributes:
        passed: How many passed.
        failed: How many failed or ended with an error.
        skipped: How many were skipped.
        missing: Whether there is no report, because pytest itself failed.
        cut: Whether time was up before all tests had run.
    """

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    missing: bool = False
    cut: bool = False

    @property
    def good(self) -> bool:
        """Whether tests ran and none failed."""
        return self.passed > 0 and not self.failed

    @property
    def whole(self) -> bool:
        """Whether all tests ran and passed."""
        return self.good and not (self.skipped or self.cut)

    def __str__(self) -> str:
        """Return the words of one cell of the table."""
        if self.missing:
            return "did not run"
        ran = self.passed + self.failed
        words = f"**{self.failed} of {ran} failed**" if self.failed else str(self.passed)
        words += f" ({self.skipped} skipped)" if self.skipped else ""
        return words + (f", time was up after {SECONDS} s" if self.cut else "")


def report_of(results: Path, part: str) -> Path:
    """Return where pytest reports on a part of the suite."""
    return results / f"{part.replace(' ', '-')}.xml"


def outcome(report: Path) -> Outcome:
    """Read a report in JUnit's format.

    Args:
        report: Path of the file; where there is none, the outcome is `missing`.
    """
    try:
        root = ElementTree.parse(report).getroot()
    except (FileNotFoundError, ElementTree.ParseError):
        return Outcome(missing=True)
    suites = list(root.iter("testsuite"))

    def total(*names: str) -> int:
        return sum(int(suite.get(name, 0)) for suite in suites for name in names)

    failed, skipped = total("failures", "errors"), total("skipped")
    cut = sum(float(suite.get("time", 0)) for suite in suites) >= SECONDS
    return Outcome(total("tests") - failed - skipped, failed, skipped, cut=cut)


def probe(results: Path) -> dict[str, Any] | None:
    """Return the versions that were installed; None if nothing could be installed or trained."""
    path = results / PROBE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
