"""Turn settings into plain data or short texts, without their secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import timedelta
from os import PathLike
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import BaseModel

__all__ = ["FrozenDict", "clock", "content_hash", "plain", "qualified_name", "redact", "shorten"]

_LONGEST = 80
_SECRET_WORD = r"(api)?(key|token|password|passwd|secret|credential)s?"
_SECRET_NAME = re.compile(rf"(^|[_-]){_SECRET_WORD}([_-]|$)", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s'\"]+@")
_SECRET_IN_URL = re.compile(
    rf"(?P<name>[?&;]([\w-]*[_-])?{_SECRET_WORD}=)[^&;\s'\"]+", re.IGNORECASE
)
_HIDDEN = "***"


class FrozenDict(dict[str, Any]):
    """A dict that cannot change after construction and hashes by content."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("this mapping belongs to frozen settings; change a copy: dict(mapping)")

    if not TYPE_CHECKING:  # a checker would compare each with the base's signature
        __setitem__ = __delitem__ = __ior__ = _refuse
        clear = pop = popitem = update = setdefault = _refuse

    # every value that holds this mapping promises to be hashable by content
    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return content_hash(dict(self))

    def __copy__(self) -> FrozenDict:
        return self

    # dict subclasses are otherwise pickled and deep-copied item by item through __setitem__
    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        return FrozenDict, (dict(self),)


def content_hash(value: object) -> int:
    """Hash a value by its content, dicts and lists included.

    Args:
        value: Any value; what cannot be hashed counts by its type alone.

    Returns:
        The same number for equal values.
    """
    if isinstance(value, Mapping):
        return hash(frozenset((key, content_hash(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return hash(tuple(content_hash(item) for item in value))
    try:
        return hash(value)
    except TypeError:
        return hash(type(value))


def plain(value: object, name: str = "") -> Any:
    """Turn a setting's value into data that JSON can hold.

    Args:
        value: The value.
        name: The name it goes by; a name that suggests a secret hides the value.

    Returns:
        None, bool, int, float, str, or a list or dict of these: settings become their fields, a
        callable its qualified name, a path its text, a timedelta "HH:MM:SS", any other object the
        name of its type.
    """
    if _SECRET_NAME.search(name) and value is not None:
        return _HIDDEN
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, timedelta):
        return clock(value)
    return _plain_container(value)


def _plain_container(value: object) -> Any:
    if isinstance(value, BaseModel):
        return {name: plain(item, name) for name, item in value}
    if isinstance(value, PathLike):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, str(key)) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return qualified_name(value)


def qualified_name(value: object) -> str:
    """Name a callable, or the type of any other object, by module and qualified name."""
    named = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def clock(duration: timedelta) -> str:
    """Write a duration as "HH:MM:SS", with as many hours and decimals as it needs."""
    seconds = duration.days * 86400 + duration.seconds
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{text}.{duration.microseconds:06d}" if duration.microseconds else text


def redact(text: str) -> str:
    """Remove user names, passwords and tokens from the addresses in a text."""
    return _SECRET_IN_URL.sub(rf"\g<name>{_HIDDEN}", _USER_IN_URL.sub(f"{_HIDDEN}@", text))


def shorten(value: object, name: str = "") -> str:
    """Show a value in an error message or a repr: its repr, of bounded length, without secrets.

    Args:
        value: The value.
        name: The name it goes by; a name that suggests a secret hides the value.

    Returns:
        One line of at most about eighty characters.
    """
    text = _HIDDEN if _SECRET_NAME.search(name) else _one_line(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


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
