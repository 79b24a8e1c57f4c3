"""Say in our words which of a user's objects has failed inside a training."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

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


def check_call(function: Callable[..., Any], arguments: int, expected: str) -> None:
    """Refuse a callable that does not take so many arguments by position.

    Args:
        function: The callable.
        arguments: How many it will be called with.
        expected: What was expected, as the beginning of a sentence.

    Raises:
        ArgumentError: If its signature is known and takes another number.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # built-in functions may have no signature
    try:
        signature.bind(*[None] * arguments)
    except TypeError as error:
        raise ArgumentError(
            f"{expected}, got one that takes {signature} ({error}). Bind other arguments with "
            "functools.partial or a lambda."
        ) from None
