"""Make the records of every side for the selected parity tests, once per session."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

from tests import forking
from tests.small import environment

from .scenarios import CONTROLS, SCENARIOS

SECONDS = 800
"""Longest time for all scenarios of one side: a minute on an idle machine, more on a busy one."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Records = dict[str, dict[str, Any]]


class Side:
    """One process that runs scenarios: plain sbi, or sbi_ignite through one of its doors."""

    def __init__(self, door: str, folder: Path, names: list[str]) -> None:
        folder.mkdir()
        self.out, self.log = folder / "records.pt", folder / "log.txt"
        command = ("-m", "tests.parity.record", door, str(self.out), str(folder / "runs"), *names)
        if door != "sbi":
            self.process: Any = forking.start(*command, cwd=folder, log=self.log, **ONE_THREAD)
            return
        with self.log.open("w") as log:  # plain sbi is recorded where nothing of ours is loaded
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=folder,
                env=environment(**ONE_THREAD),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        """Wait for the end of the process; an error carries what it printed."""
        try:
            code = self.process.wait(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code != 0:
            raise RuntimeError(f"the process ended with {code}:\n{self.log.read_text()}")


def _wanted(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """Return, for each side, the scenarios that the selected tests need."""
    sides = ("renamed", "patched", "traced", "generated", "disturbed", "sbi again")
    names: dict[str, set[str]] = {side: set() for side in sides}
    for item in request.session.items:
        side = getattr(getattr(item, "function", None), "side", None)
        if side is not None:
            names[side].add(item.callspec.params["name"])
    of_sbi = {(SCENARIOS.get(n) or CONTROLS[n]).seeded_as for side in names.values() for n in side}
    # The order of SCENARIOS, so that every side runs them in the same one.
    order = [*SCENARIOS, *CONTROLS]
    return {
        side: sorted(wanted, key=order.index)
        for side, wanted in {"sbi": of_sbi, **names}.items()
        if wanted
    }


def _make(wanted: dict[str, list[str]], folder: Path) -> None:
    """Run all sides at the same time."""
    folders = {door: folder / door.replace(" ", "-") for door in wanted}
    sides = [Side(door.split()[0], folders[door], names) for door, names in wanted.items()]
    for side in sides:
        side.wait()


@pytest.fixture(scope="session")
def records(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Records]:
    """Return the records by side and by scenario; the workers of xdist share them."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    wanted = _wanted(request)
    done = root / "parity" / "done"
    with filelock.FileLock(root / "parity.lock"):
        if not done.exists():
            done.parent.mkdir()
            _make(wanted, done.parent)
            done.touch()
    files = {door: done.parent / door.replace(" ", "-") / "records.pt" for door in wanted}
    return {door: torch.load(file, weights_only=True) for door, file in files.items()}
