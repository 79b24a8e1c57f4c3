"""The example of simulations in files does what it says, and continues when it is run again."""

from __future__ import annotations

import re

from tests import forking
from tests.small import ROOT


def test_the_second_call_continues_the_first() -> None:
    command = (str(ROOT / "examples" / "larger_than_memory.py"), "--simulations", "300")
    epochs = []
    for max_epochs in ("1", "2"):
        done = forking.run(*command, "--max-epochs", max_epochs)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "300 rows, theta float32 (2,), x float32 (1000,)" in done.stdout
        epochs.append(re.findall(r"epochs (\d+), of which (\d+) from", done.stdout)[0])
    assert epochs == [("1", "0"), ("2", "1")]
