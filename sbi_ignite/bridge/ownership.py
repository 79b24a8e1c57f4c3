"""Tell sbi's methods, and those of this package, from methods that a user has overridden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sbi

_NOT_USERS = (f"{Path(str(sbi.__file__)).parent}/", f"{Path(__file__).parents[1]}/")


def is_sbis_own(trainer: Any, name: str) -> bool:
    """Return whether a method is sbi's or ours, overridden by neither a user's class nor instance.

    The file of the code decides: a wrapper made with functools.wraps has the wrapped names.

    Args:
        trainer: One of sbi's trainers.
        name: The method's name.
    """
    code = getattr(getattr(type(trainer), name, None), "__code__", None)
    return (
        name not in vars(trainer) and code is not None and code.co_filename.startswith(_NOT_USERS)
    )
