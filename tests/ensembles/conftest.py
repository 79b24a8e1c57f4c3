"""Ends the workers that joblib keeps for later calls, which other tests would notice."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _no_workers_stay_behind():
    yield
    from joblib.externals.loky import reusable_executor

    if reusable_executor._executor is not None:
        reusable_executor._executor.shutdown(wait=True, kill_workers=True)
