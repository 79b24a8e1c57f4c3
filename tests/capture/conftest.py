"""Recordings run in every way that a CPU has."""

from __future__ import annotations

from functools import partial

import pytest

from tests.capture.recorded import EXECUTORS, recorded


@pytest.fixture(params=EXECUTORS, ids=lambda executor: executor.name)
def record(request):
    """Return what records a function for each executor."""
    return partial(recorded, executor=request.param)
