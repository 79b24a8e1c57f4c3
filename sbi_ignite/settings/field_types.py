"""Validators for the kinds of field that the settings are made of.

A value from a Python call must already have its type. A value from the environment or a file
arrives as text and is read leniently; the validation context says which of the two it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import time, timedelta
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator, PlainValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from sbi_ignite.settings.frozen_dict import FrozenDict
from sbi_ignite.settings.origin import Origin

__all__ = [
    "NO_LIMIT",
    "Bool",
    "Count",
    "Device",
    "Directory",
    "Duration",
    "Fraction",
    "FrozenMapping",
    "NonNegativeFloat",
    "OrNone",
    "PositiveFloat",
    "PositiveInt",
    "Seed",
    "Tags",
    "Text",
    "choice",
    "from_text",
    "is_outside",
    "is_text",
    "number_or",
    "read_json",
    "settings_or",
    "several",
]

_HOURS = re.compile(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)")
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|hpu)(:\d+)?")
_NONE = ("none", "null")

NO_LIMIT = 2**31 - 1
"""A number of epochs that is none: only a stopping rule ends the training. sbi has the same one."""


def from_text(origin: Origin) -> dict[str, object]:
    """Make the validation context of a value that comes from the environment or a file.

    Args:
        origin: Where it comes from.

    Returns:
        The context for the validators.
    """
    return {"text": True, "origin": origin}


def is_text(value: object, info: ValidationInfo) -> bool:
    """Say whether a value is text from the environment or a file, to be read leniently."""
    return isinstance(value, str) and is_outside(info)


def is_outside(info: ValidationInfo) -> bool:
    """Say whether a value comes from the environment or a file."""
    return bool(info.context) and bool(info.context.get("text"))


def expected(what: str, wrong_type: bool = True) -> PydanticCustomError:
    """Make the error for a value that its field does not take."""
    text: Any = f"expected {what}"  # pydantic declares that it wants a literal
    return PydanticCustomError("wrong_type" if wrong_type else "wrong_value", text)


def _whole(value: Any, info: ValidationInfo) -> Any:
    if is_text(value, info):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise expected("an integer")
    return int(value)


def _real(value: Any, info: ValidationInfo) -> Any:
    if is_text(value, info):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise expected("a number")
    try:
        return float(value)
    except OverflowError:
        raise expected("a number that fits a float", wrong_type=False) from None


def _truth(value: Any, info: ValidationInfo) -> Any:
    if is_text(value, info):
        return value.strip()
    if not isinstance(value, bool) and _numpy_kind(value) != "b":
        raise expected("True or False")
    return bool(value)


def _numpy_kind(value: object) -> str:
    # numpy scalars are recognised by their dtype, so that numpy need not be imported here
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return kind if isinstance(kind, str) else ""


def _string(value: Any, info: ValidationInfo) -> Any:
    if is_outside(info) and isinstance(value, Real) and not isinstance(value, bool):
        return str(value)  # a TOML file may say `run_name = 7`
    if not isinstance(value, str):
        raise expected("a string")
    if not value.strip():
        raise expected("a string that is not empty", wrong_type=False)
    return value


def _none(value: Any, info: ValidationInfo) -> Any:
    return None if is_text(value, info) and value.strip().lower() in _NONE else value


def _device(value: Any, info: ValidationInfo) -> Any:
    # torch.device prints as its name, so torch need not be imported here to recognise it
    name = str(value) if type(value).__module__ == "torch" else value
    if not isinstance(name, str):
        raise expected("a device name such as 'cpu', 'cuda', 'cuda:1' or 'mps'")
    name = name.strip() if is_outside(info) else name
    if not _DEVICE.fullmatch(name):
        raise expected("a device name such as 'cpu', 'cuda', 'cuda:1' or 'mps'", wrong_type=False)
    return name


def _duration(value: Any, info: ValidationInfo) -> timedelta:
    wanted = "a positive timedelta, number of seconds or 'HH:MM:SS'"
    if isinstance(value, bool) or not isinstance(value, timedelta | time | Real | str):
        raise expected(wanted)
    try:
        duration = _as_timedelta(value, is_outside(info))
    except (ValueError, OverflowError):
        raise expected(wanted, wrong_type=False) from None
    if duration <= timedelta(0):
        raise expected(wanted, wrong_type=False)
    return duration


def _as_timedelta(value: timedelta | time | Real | str, outside: bool) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, time):  # TOML has a type for times of day: max_time = 01:30:00
        return timedelta(
            hours=value.hour,
            minutes=value.minute,
            seconds=value.second,
            microseconds=value.microsecond,
        )
    if not isinstance(value, str):
        return timedelta(seconds=_finite(float(value)))
    match = _HOURS.fullmatch(value.strip())
    if match:
        hours, minutes, seconds = match.groups()
        return timedelta(hours=int(hours), minutes=int(minutes), seconds=float(seconds))
    if outside:
        return timedelta(seconds=_finite(float(value)))
    raise ValueError(value)


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError(number)
    return number


def _directory(value: Any) -> Path:
    if not isinstance(value, str | PathLike) or not isinstance(fspath(value), str):
        raise expected("a path")
    if not fspath(value).strip():
        raise expected("a path that is not empty", wrong_type=False)
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise expected("a path below a home directory that exists", wrong_type=False) from None


def read_json(text: str) -> Any:
    """Read a piece of text as JSON where it is JSON, else leave it as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _mapping(value: Any, info: ValidationInfo) -> FrozenDict:
    if is_text(value, info):
        value = read_json(value)
    if not _has_names(value):
        raise expected("a mapping with names as keys")
    if _origin(info).source != "environment":
        return FrozenDict(value)
    # where a variable sets a single value, that value is a text of its own
    leaves = {
        key: read_json(item) if isinstance(item, str) else item for key, item in value.items()
    }
    return FrozenDict(leaves)


def _has_names(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _origin(info: ValidationInfo) -> Origin:
    return (info.context or {}).get("origin", Origin("call"))


def _tags(value: Any, info: ValidationInfo) -> tuple[str, ...] | FrozenDict:
    if is_text(value, info):
        decoded = read_json(value)
        value = decoded if isinstance(decoded, list | dict) else _comma_separated(value) or value
    if isinstance(value, Mapping):
        return FrozenDict({str(key): str(item) for key, item in value.items()})
    if not _are_texts(value):
        raise expected("a sequence of strings, or a mapping from names to values")
    return tuple(value)


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _comma_separated(text: str) -> list[str]:
    return [tag.strip() for tag in text.split(",") if tag.strip()]


def choice(*names: str, instance: type | None = None, call: str = "") -> PlainValidator:
    """Make the check of a field that takes one of some names, a callable or an instance.

    Args:
        names: The names.
        instance: A settings class; its instances and mappings of its fields are accepted too.
        call: What a callable maps from and to, for the message; "" where none is accepted.

    Returns:
        The validator, to be put into an annotation.
    """
    listed = ", ".join(repr(name) for name in names)

    def check(value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and (value.strip() if is_outside(info) else value) in names:
            return value.strip()
        if instance is not None and isinstance(value, instance):
            return value
        if instance is not None:
            built = _from_fields(instance, value, info)
            if built is not None:
                return built
        if call and callable(value):
            return value
        raise expected(_wanted(listed, instance, call, info), wrong_type=not isinstance(value, str))

    return PlainValidator(check)


def _from_fields(owner: Any, value: Any, info: ValidationInfo) -> Any:
    value = read_json(value) if is_text(value, info) else value
    if not _has_names(value):
        return None
    return owner.from_text(value, _origin(info)) if is_outside(info) else owner(**value)


def _wanted(listed: str, instance: type | None, call: str, info: ValidationInfo) -> str:
    if not listed:
        return f"a callable {call}"
    text = f"one of {listed}"
    if instance is not None:
        text += f", {instance.__name__} fields" if is_outside(info) else f", an {instance.__name__}"
    if not call:
        return text
    if is_outside(info):
        return f"{text} (a callable {call} can be passed from Python only)"
    return f"{text} or a callable {call}"


def settings_or(check: PlainValidator) -> BeforeValidator:
    """Let pydantic continue after a check that may return settings.

    After a PlainValidator it would serialise settings twice, and complain the second time.
    """
    return BeforeValidator(check.func)


def several(owner: Any) -> BeforeValidator:
    """Make the check of a field that takes any number of values of one settings class.

    Args:
        owner: The class; mappings of its fields are accepted too, and text as JSON.

    Returns:
        The validator, which gives a tuple.
    """
    wanted = f"a sequence of {owner.__name__} values"

    def check(value: Any, info: ValidationInfo) -> Any:
        value = read_json(value) if is_text(value, info) else value
        if not isinstance(value, list | tuple):
            raise expected(wanted)
        return tuple(one(item, info) for item in value)

    def one(item: Any, info: ValidationInfo) -> Any:
        built = item if isinstance(item, owner) else _from_fields(owner, item, info)
        if built is None:
            raise expected(wanted)
        return built

    return BeforeValidator(check)


def number_or(name: str) -> PlainValidator:
    """Make the check of a field that takes a number of at least 0, or one word.

    Args:
        name: The word.

    Returns:
        The validator, to be put into an annotation.
    """
    wanted = f"a number of at least 0, or {name!r}"

    def check(value: Any, info: ValidationInfo) -> Any:
        text = is_text(value, info)
        if isinstance(value, str) and (value.strip() if text else value) == name:
            return name
        if not text and (isinstance(value, bool) or not isinstance(value, Real)):
            raise expected(wanted)
        try:
            number = _finite(float(value))
        except (ValueError, OverflowError):
            raise expected(wanted, wrong_type=False) from None
        if number < 0:
            raise expected(wanted, wrong_type=False)
        return number

    return PlainValidator(check)


OrNone = BeforeValidator(_none)
"""Reads the text "none" as None; goes around a type that allows None."""

PositiveInt = Annotated[int, BeforeValidator(_whole), Ge(1)]
Count = Annotated[int, BeforeValidator(_whole), Ge(0)]
Seed = Annotated[int, BeforeValidator(_whole), Ge(0), Le(2**63 - 1)]
_Finite = Annotated[float, BeforeValidator(_real)]
PositiveFloat = Annotated[_Finite, Gt(0)]
NonNegativeFloat = Annotated[_Finite, Ge(0)]
Fraction = Annotated[_Finite, Gt(0), Lt(1)]
Bool = Annotated[bool, BeforeValidator(_truth)]
Text = Annotated[str, BeforeValidator(_string)]
Device = Annotated[str, PlainValidator(_device)]
Duration = Annotated[timedelta, PlainValidator(_duration)]
Directory = Annotated[Path, PlainValidator(_directory)]
FrozenMapping = Annotated[Mapping[str, Any], PlainValidator(_mapping)]
Tags = Annotated[tuple[str, ...] | Mapping[str, str], PlainValidator(_tags)]
