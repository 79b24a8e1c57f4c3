"""All members share one copy of the simulations."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.small import python_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3100)]

SCRIPT = """
import os, sys, threading, time
from pathlib import Path
import torch
from sbi_ignite import NPE, TrainConfig, train_ensemble
from tests.ensembles.test_memory import Meter
from tests.small import Silent, box, flow

COLUMNS = 1000

def make():
    rows = int(float(sys.argv[1]) * 2**30 / 4 / COLUMNS)
    torch.manual_seed(0)
    theta = torch.rand(rows, 2) * 2 - 1
    x = torch.empty(rows, COLUMNS)
    for chunk in x.split(2_000):
        chunk.normal_()
    trainer = NPE(box(), flow(), tracker=Silent(), show_progress_bars=False)
    trainer.append_simulations(theta, x)  # sbi copies them, which no ensemble can help
    del theta, x
    meter.begin()
    return trainer

meter = Meter()
found = train_ensemble(
    make, 5, TrainConfig(max_epochs=1, batch_size=4_000), n_jobs=2, seed=1
)
print(len(found), meter.peak())
"""


class Meter:
    """The most memory that this process and its children had together since `begin`.

    Memory that several of them share, such as mapped files, counts once.
    """

    def __init__(self) -> None:
        self._most, self._begun = 0.0, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def begin(self) -> None:
        """Measure from now on."""
        self._begun.set()

    def peak(self) -> float:
        """Return the maximum in GiB."""
        return self._most / 2**20

    def _look(self) -> None:
        self._begun.wait()
        while True:
            self._most = max(self._most, sum(map(_kilobytes, _family(os.getpid()))))
            time.sleep(0.02)


def _family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [pid]
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = thread.read_text().split()
        except OSError:
            continue
        found += [member for child in children for member in _family(int(child))]
    return found


def _kilobytes(pid: int) -> int:
    """Return the proportional share of a process in all memory that it maps."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_five_members_on_two_workers_need_the_simulations_once():
    """1 GiB of simulations costs less than 1.5 GiB beyond what the libraries take."""

    def peak(gigabytes: float) -> float:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SBI_IGNITE", "PYTEST_"))}
        kept |= {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(gigabytes)]
        done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stderr
        members, found = done.stdout.split()[-2:]
        assert members == "5"
        return float(found)

    small, large = peak(0.03), peak(1.0)
    print(f"{small:.2f} GiB with next to none, {large:.2f} GiB with 1 GiB of simulations")
    assert large - small < 1.5, (small, large)
