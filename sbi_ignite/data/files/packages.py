"""Import the packages that some file layouts need, or say how to install them."""

from __future__ import annotations

import importlib
from typing import Any

from sbi_ignite.exceptions import MissingPackageError


def needed(package: str, extra: str) -> Any:
    """Import a package.

    Args:
        package: Its name.
        extra: Name of the extra that installs it.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"This file needs {package}, which is not installed: pip install 'sbi-ignite[{extra}]'"
        ) from error
