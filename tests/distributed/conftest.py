"""End the server of processes with the tests that it serves."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import forkserver

import pytest


@pytest.fixture(autouse=True, scope="package")
def _no_server_for_other_tests() -> Iterator[None]:
    """`patch_sbi()` warns of a running server, whose processes it does not reach."""
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined] # there is no public way
