"""One page per method, and the table that says which trainers have which.

The public loss arguments can be imported from here; their pages are loaded when they are used.
`__init__.pyi` says the same to type checkers; `python -m tests.typing.stubs` writes it.
"""

from __future__ import annotations

import importlib
from typing import Any

from sbi_ignite.methods.table import LOSS_ARGS

__all__ = [*LOSS_ARGS]  # pyright: ignore[reportUnsupportedDunderAll] # follows from the table


def __getattr__(name: str) -> Any:
    """Import loss arguments when they are first used."""
    if name not in LOSS_ARGS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{LOSS_ARGS[name]}"), name)
    globals()[name] = value
    return value
