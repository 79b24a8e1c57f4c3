"""Let joblib's workers serve all tests of a module: each would import everything again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import end_workers


@pytest.fixture(autouse=True)
def _no_workers_stay_behind() -> None:
    """Take the place of the fixture that ends them after every test."""


@pytest.fixture(autouse=True, scope="module")
def _workers_end_with_the_module() -> Iterator[None]:
    """End them before tests elsewhere."""
    yield
    end_workers()
