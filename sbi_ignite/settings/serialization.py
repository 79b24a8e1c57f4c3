"""Turn settings into data that JSON can hold, without secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from datetime import timedelta
from os import PathLike
from typing import Any

from pydantic import BaseModel

from sbi_ignite.settings.redaction import HIDDEN, SECRET_NAME, qualified_name, redact


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
    if SECRET_NAME.search(name) and value is not None:
        return HIDDEN
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


def clock(duration: timedelta) -> str:
    """Write a duration as "HH:MM:SS", with as many hours and decimals as it needs."""
    seconds = duration.days * 86400 + duration.seconds
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{text}.{duration.microseconds:06d}" if duration.microseconds else text
