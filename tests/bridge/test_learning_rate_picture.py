"""A notebook shows the curve of a range test."""

from __future__ import annotations

import pytest

from sbi_ignite import LearningRateRange

formatters = pytest.importorskip("IPython.core.formatters")


def test_the_picture_of_a_range_test_is_shown_as_a_cells_last_value():
    """Also where pyplot has not been imported, so that IPython knows no figures."""
    found = LearningRateRange((1e-3, 1e-2), (2.0, 1.0), (2.0, 1.5), 1e-2, False)
    data, _ = formatters.DisplayFormatter().format(found.plot())
    assert data["image/png"][:4] == b"\x89PNG"
