"""The example of checks shows coverage over epochs and a verdict."""

from __future__ import annotations

import re

from matplotlib.image import imread

from tests import forking
from tests.small import ROOT

EXAMPLE = ROOT / "examples" / "check_while_training.py"


def test_it_prints_coverage_by_epoch_and_a_verdict_and_leaves_a_picture():
    done = forking.run(str(EXAMPLE), "--max-epochs", "4", "--num-simulations", "500")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = re.findall(r"^coverage/\w+ +([\d. ]+)$", done.stdout, re.MULTILINE)
    assert [len(row.split()) for row in rows] == [2, 2, 2]
    assert re.search(
        r"^(Fine|Biased|\w+confident|Miscalibrated).*500 simulations", done.stdout, re.M
    )
    assert re.search(r"^distance +[+-]\d", done.stdout, re.MULTILINE)
    assert min(imread("check_while_training.png").shape[:2]) > 300
