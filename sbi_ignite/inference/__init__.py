"""The names of `sbi.inference`, with trainers that train by sbi_ignite.

All other names (posteriors, potentials, `simulate_for_sbi`, ABC) refer to sbi's own objects.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from sbi_ignite.bridge.probe import check_sbi

check_sbi()

import sbi.inference as _sbi  # noqa: E402 # after the check: an unknown sbi may lack what is below

import sbi_ignite._import_ignite  # noqa: E402, F401 # before anything imports ignite
from sbi_ignite.inference.infer import infer  # noqa: E402 # likewise
from sbi_ignite.inference.trainers import *  # noqa: E402, F403 # likewise
from sbi_ignite.inference.trainers import __all__ as _trainers  # noqa: E402 # likewise

# pyright cannot see through the names of the table.
__all__ = ["infer", *_trainers]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Return ours for sbi's deprecated aliases, and sbi's own object for any other name."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "NPE_PFN":
        raise AttributeError(f"sbi {version('sbi')} has no NPE_PFN; sbi 0.27 and later do.")
    found = getattr(_sbi, name)
    return globals().get(found.__name__, found) if isinstance(found, type) else found


def __dir__() -> list[str]:
    """List our names and sbi's."""
    return sorted({*__all__, *_sbi.__all__})
