"""The example of the recipe shows what it says."""

from __future__ import annotations

import re
from pathlib import Path

from sbi_ignite.settings.recipe import fast
from tests import forking
from tests.small import ROOT


def test_both_trainings_and_the_values_of_the_recipe_are_shown(tmp_path: Path) -> None:
    """With a small budget; the numbers are those of two trainings of two epochs."""
    budget = ("--simulations", "500", "--max-epochs", "2")
    done = forking.run(str(ROOT / "examples" / "fast_recipe.py"), *budget, "--picture", "a.png")
    assert done.returncode == 0, done.stderr[-2000:]
    pattern = r"(sbi's defaults|recipe) +[\d.]+ s +(\d+) epochs +held-out loss (-?\d+\.\d+)"
    found = re.findall(pattern, done.stdout)
    assert [name for name, _, _ in found] == ["sbi's defaults", "recipe"]
    assert found[1][1] == "2"
    values = done.stdout.split("held-out loss")[2]
    assert re.search(r"^ +optimizer +adamw$", values, re.MULTILINE)
    assert len(re.findall(r"^ +\w+ +\S", values, re.MULTILINE)) == len(fast(450))
    assert (tmp_path / "a.png").stat().st_size > 1000
