"""Turn pydantic's errors into one SettingsError that says what to change, and where."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from sbi_ignite.exceptions import SettingsError, WrongTypeError
from sbi_ignite.settings.origin import Origin
from sbi_ignite.settings.redaction import shorten

__all__ = ["closest", "refuse_foreign", "suggestion", "translate"]

_WRONG_TYPE = "wrong_type"


def translate(
    error: ValidationError,
    owner: str,
    fields: Sequence[str],
    origins: Mapping[str, Origin],
    field: str | None = None,
) -> SettingsError:
    """Turn pydantic's report into ours.

    Args:
        error: What pydantic found.
        owner: The name of the settings class.
        fields: The names that the class accepts.
        origins: Where each field's value came from; a field that is not listed came from the call.
        field: The field that was checked alone; None if the whole class was.

    Returns:
        The error to raise. It is a TypeError too if a keyword of `train()` had the wrong type.
    """
    problems: list[Any] = list(error.errors(include_url=False))
    for problem in problems if field else ():
        problem["loc"] = (field, *problem["loc"])
    lines = [_line(problem, owner, fields, origins) for problem in problems]
    text = lines[0] if len(lines) == 1 else "\n".join([f"{owner} is not valid:", *lines])
    kind = WrongTypeError if _blames_a_keyword(problems, origins) else SettingsError
    return kind(text)


def _line(problem: Any, owner: str, fields: Sequence[str], origins: Mapping[str, Origin]) -> str:
    cause = problem.get("ctx", {}).get("error")
    if not problem["loc"]:
        return str(cause) if isinstance(cause, SettingsError) else f"{owner}: {_message(problem)}"
    name = ".".join(str(part) for part in problem["loc"])
    field = str(problem["loc"][0])
    origin = origins.get(field, Origin("call", f"{owner}({field}=...)"))
    if problem["type"] == "extra_forbidden":
        return _unknown(owner, name, problem["input"], fields, origin)
    if problem["type"] == "missing":
        return _missing(owner, name, problem["input"], origins)
    if isinstance(cause, SettingsError):
        return f"{owner}.{name}: {cause}"
    arrived = shorten(problem["input"], field)
    return f"{owner}.{name}: {_message(problem)}, got {arrived} from {origin}"


def _missing(owner: str, name: str, given: object, origins: Mapping[str, Origin]) -> str:
    """Say that a required field is missing, which fields were given, and how to add it."""
    text = f"{owner}.{name}: expected a value, because this field has no default"
    if not isinstance(given, Mapping) or not given:
        return f"{text}, got none. Name it: {owner}({name}=...)"
    beside = next(iter(given))
    origin = origins.get(beside, Origin("call", f"{owner}({beside}=...)"))
    text = f"{text}, got only {', '.join(map(str, given))} from {origin}"
    ending = f"__{beside}".upper()
    if origin.source == "environment" and origin.where.upper().endswith(ending):
        return f"{text}. Set {origin.where[: -len(ending)]}__{name.upper()} too"
    return f"{text}. Name {name} beside it"


def _unknown(owner: str, name: str, value: object, fields: Sequence[str], origin: Origin) -> str:
    return (
        f"{owner} has no field {name!r} (got {shorten(value, name)} from {origin})"
        f"{suggestion(name, fields)}. Valid fields: {', '.join(fields)}"
    )


def _message(problem: Any) -> str:
    text = problem["msg"].replace("Input should be", "expected")
    return re.sub("^expected (greater|less)", r"expected a number \1", text)


def _blames_a_keyword(problems: Iterable[Any], origins: Mapping[str, Origin]) -> bool:
    return any(
        problem["loc"]
        and _is_about_type(problem["type"])
        and origins.get(str(problem["loc"][0]), Origin("call")).where.startswith("train(")
        for problem in problems
    )


def _is_about_type(kind: str) -> bool:
    return kind == _WRONG_TYPE or kind.endswith("_type")


def closest(name: str, valid: Iterable[str]) -> str | None:
    """Find the valid name that a misspelt one most likely meant, if any is near."""
    by_lower = {candidate.lower(): candidate for candidate in valid}
    matches = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def suggestion(name: str, valid: Iterable[str]) -> str:
    """Phrase the closest match as an aside; "" if nothing is near."""
    match = closest(name, valid)
    return f" (did you mean {match!r}?)" if match else ""


def refuse_foreign(
    value: BaseModel,
    about: str,
    takes: Mapping[str, Sequence[str]],
    origins: Mapping[str, Origin],
) -> None:
    """Refuse fields that were set although this kind of value does not have them.

    Args:
        value: The settings.
        about: The field that says what kind they are.
        takes: The other fields that each kind has.
        origins: Where each field came from; a field that is not listed came from the call.

    Raises:
        SettingsError: If a field was set that this kind does not have.
    """
    owner, kind = type(value).__name__, getattr(value, about)
    for name in type(value).model_fields:
        if name in value.model_fields_set and name not in (about, *takes[kind]):
            origin = origins.get(name, Origin("call", f"{owner}({name}=...)"))
            raise SettingsError(
                f"{owner}.{name}: {about} {kind!r} does not take this field, "
                f"got {shorten(getattr(value, name), name)} from {origin}. "
                f"It takes: {', '.join(takes[kind]) or 'no field'}. For {name}, name {about} "
                f"{' or '.join(repr(other) for other, fields in takes.items() if name in fields)}"
            )
