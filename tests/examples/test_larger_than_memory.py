"""The example of simulations in files does what it says, and continues when it is run again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.small import ROOT


def test_the_second_call_continues_the_first(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "larger_than_memory.py")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SBI_IGNITE")}
    epochs = []
    for max_epochs in ("1", "2"):
        done = subprocess.run(
            [*command, "--simulations", "300", "--max-epochs", max_epochs],
            cwd=tmp_path,
            env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "300 rows, theta float32 (2,), x float32 (1000,)" in done.stdout
        epochs.append(re.findall(r"epochs (\d+), of which (\d+) from", done.stdout)[0])
    assert epochs == [("1", "0"), ("2", "1")]
