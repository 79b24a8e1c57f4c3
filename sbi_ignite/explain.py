"""Say in our words which of a user's objects has failed inside a training."""

from __future__ import annotations

from typing import NoReturn

import torch

from sbi_ignite.exceptions import ArgumentError, SbiIgniteError

PLAIN_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What torch and python raise about wrong use; other errors are a user's own, and mean something
to those who catch them."""

_OF_THE_MACHINE = tuple(
    getattr(torch, name)
    for name in ("OutOfMemoryError", "AcceleratorError")
    if hasattr(torch, name)
)


def explain(error: Exception, what: str, advice: str) -> NoReturn:
    """Raise an error of our own that names its cause; those of ours or of a GPU stay.

    Args:
        error: One of `PLAIN_ERRORS`.
        what: What was expected, and what failed when, as the beginning of a sentence.
        advice: What to do, in sentences.

    Raises:
        ArgumentError: From the error.
    """
    if isinstance(error, (SbiIgniteError, *_OF_THE_MACHINE)):
        raise error
    line = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")
    raise ArgumentError(f"{what} ({line}). {advice}") from error
