"""List every setting with its value, origin, environment variable and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.origin import Origin
from sbi_ignite.settings.redaction import in_words
from sbi_ignite.settings.resolve import resolve
from sbi_ignite.settings.serialization import plain
from sbi_ignite.settings.sources import GROUPS, variable_of

__all__ = ["Listed", "list_settings"]


@dataclass(frozen=True)
class Listed:
    """One setting as environment, file and defaults leave it.

    Attributes:
        group: Its group: "train", "early_stopping", "logging" or "checkpoint".
        name: Its name in the group.
        value: Its value.
        origin: Where that comes from.
        variable: The environment variable that sets it; None if only Python can.
        meaning: What it is, in a sentence.
        required: Whether it has no default.
    """

    group: str
    name: str
    value: Any
    origin: Origin
    variable: str | None
    meaning: str
    required: bool = False

    @property
    def is_set(self) -> bool:
        """Whether something other than the default decided about it."""
        return self.origin.source != "default"

    @property
    def shown(self) -> str:
        """The value in a line, without secrets; "" where there is none."""
        return "" if self.required and self.value is None else _shown(self.value, self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return the setting as plain data for JSON, without secrets."""
        return {
            "name": f"{self.group}.{self.name}",
            "value": plain(self.value, self.name),
            "origin": self.origin.source,
            "where": self.origin.where,
            "variable": self.variable,
            "meaning": self.meaning,
        }


def list_settings() -> list[Listed]:
    """Return every setting as a training would find it whose call passes none.

    Fields that the stopping rule or the backend in force does not take are listed with their
    defaults.

    Raises:
        SettingsError: If a variable or the file is wrong.

    Example:
        >>> next(each.value for each in list_settings() if each.name == "batch_size")
        200
    """
    resolved = resolve()
    in_force: Mapping[str, object] = {
        "train": resolved.train,
        "early_stopping": resolved.early_stopping[0],
        "logging": resolved.logging[0] if resolved.logging else None,
        "checkpoint": resolved.checkpoint,
    }
    listed = []
    for group, cls in GROUPS.items():
        for name, info in cls.model_fields.items():
            default = None if info.is_required() else info.default
            listed.append(
                Listed(
                    group,
                    name,
                    getattr(in_force[group], name, default),
                    resolved.origin(f"{group}.{name}"),
                    variable_of(group, name),
                    info.description or "",
                    info.is_required(),
                )
            )
    return listed


def _shown(value: object, name: str) -> str:
    if isinstance(value, Settings):
        return repr(value)
    if isinstance(value, tuple) and value and isinstance(value[0], Settings):
        return f"[{', '.join(map(repr, value))}]"
    value = plain(value, name)
    if value is None:
        return "none"
    return value if isinstance(value, str) else in_words(value, name)
