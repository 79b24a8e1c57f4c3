"""The example of the recipe shows what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from sbi_ignite.settings.recipe import fast
from tests.small import ROOT


def test_both_trainings_and_the_values_of_the_recipe_are_shown(tmp_path: Path) -> None:
    """With a small budget; the numbers are those of two trainings of two epochs."""
    command = [sys.executable, str(ROOT / "examples" / "fast_recipe.py")]
    settings = {k: v for k, v in os.environ.items() if not k.startswith("SBI_IGNITE")}
    done = subprocess.run(
        [*command, "--simulations", "500", "--max-epochs", "2", "--picture", "a.png"],
        cwd=tmp_path,
        env=settings | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pattern = r"(sbi's defaults|recipe) +[\d.]+ s +(\d+) epochs +held-out loss (-?\d+\.\d+)"
    found = re.findall(pattern, done.stdout)
    assert [name for name, _, _ in found] == ["sbi's defaults", "recipe"]
    assert found[1][1] == "2"
    values = done.stdout.split("held-out loss")[2]
    assert re.search(r"^ +optimizer +adamw$", values, re.MULTILINE)
    assert len(re.findall(r"^ +\w+ +\S", values, re.MULTILINE)) == len(fast(450))
    assert (tmp_path / "a.png").stat().st_size > 1000
