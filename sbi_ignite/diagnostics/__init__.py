"""Checks of posteriors, during and after training.

`calibration.py` judges ranks and knows nothing of sbi; `draws.py` draws from what is trained;
`check.py` and `callbacks.py` are what users call.
"""

from __future__ import annotations

from sbi_ignite.diagnostics.calibration import ParameterCheck, PosteriorCheck
from sbi_ignite.diagnostics.callbacks import SBC, Coverage, PosteriorPairplot
from sbi_ignite.diagnostics.check import check_posterior

__all__ = [
    "SBC",
    "Coverage",
    "ParameterCheck",
    "PosteriorCheck",
    "PosteriorPairplot",
    "check_posterior",
]
