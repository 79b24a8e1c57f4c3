"""Show values in messages, of bounded length and without secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from sbi_ignite.settings.field_types import NO_LIMIT

_LONGEST = 80
_SECRET_WORD = r"(api)?(key|token|password|passwd|secret|credential)s?"
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s'\"]+@")
_SECRET_IN_URL = re.compile(
    rf"(?P<name>[?&;]([\w-]*[_-])?{_SECRET_WORD}=)[^&;\s'\"]+", re.IGNORECASE
)

SECRET_NAME = re.compile(rf"(^|[_-]){_SECRET_WORD}([_-]|$)", re.IGNORECASE)
"""Matches the name of a setting whose value is not to be shown."""

HIDDEN = "***"
"""What stands in the place of a secret."""


def redact(text: str) -> str:
    """Remove user names, passwords and tokens from the addresses in a text."""
    return _SECRET_IN_URL.sub(rf"\g<name>{HIDDEN}", _USER_IN_URL.sub(f"{HIDDEN}@", text))


def shorten(value: object, name: str = "") -> str:
    """Show a value in an error message or a repr: its repr, of bounded length, without secrets.

    Args:
        value: The value.
        name: The name it goes by; a name that suggests a secret hides the value.

    Returns:
        One line of at most about eighty characters.
    """
    text = HIDDEN if SECRET_NAME.search(name) else _one_line(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def in_words(value: object, name: str = "") -> str:
    """Show a value in a table that people read: as `shorten` does, and a missing limit as such.

    Example:
        >>> in_words(100), in_words(2**31 - 1)
        ('100', 'no limit')
    """
    return "no limit" if value == NO_LIMIT else shorten(value, name)


def _one_line(value: object) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key!r}: {shorten(item, str(key))}" for key, item in value.items())
        return f"{{{inside}}}"
    if isinstance(value, Callable) and hasattr(value, "__qualname__"):
        return qualified_name(value)
    try:
        text = repr(value)
    except Exception:  # a value that cannot even be shown must not hide what is wrong with it
        text = f"<{type(value).__name__}>"
    return redact(" ".join(text.split()))


def qualified_name(value: object) -> str:
    """Name a callable, or the type of any other object, by module and qualified name."""
    named = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
