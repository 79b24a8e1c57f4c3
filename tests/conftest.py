"""What every test may rely on: its own folder, one thread, and random states that it can spoil."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")

with warnings.catch_warnings():
    # ignite imports parts of torch that use what torch itself has deprecated.
    for _kind in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", "`torch\\.jit\\.", _kind)
    import ignite.engine  # noqa: F401 # imported here, so that no test is the first to do it
    import sbi.inference  # noqa: F401 # likewise


@pytest.fixture(autouse=True, scope="session")
def _own_ctrl_c() -> None:
    """Hear Ctrl-C, which shells let processes ignore that they start in the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a temporary folder, so that sbi's log files never land in the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run without the settings of whoever starts the tests."""
    for name in [name for name in os.environ if name.upper().startswith("SBI_IGNITE_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    """Begin at one random state and hand back the one that was there."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])


@pytest.fixture(autouse=True)
def _no_workers_stay_behind() -> Iterator[None]:
    """End the workers that joblib and loaders keep for later calls, which other tests would see."""
    yield
    end_workers()


def end_workers() -> None:
    """End the workers that stand ready."""
    if not multiprocessing.active_children():
        return
    loky = sys.modules.get("joblib.externals.loky.reusable_executor")
    if loky is not None and loky._executor is not None:
        loky._executor.shutdown(wait=True, kill_workers=True)
    gc.collect()
    for child in multiprocessing.active_children():
        child.kill()  # those of loaders leave SIGTERM to the main process
        child.join()
