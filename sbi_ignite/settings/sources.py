"""Read the environment, and the file that it names, into layers of checked values.

This is the only place that reads the environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sbi_ignite.exceptions import SettingsError
from sbi_ignite.settings.averaging import WeightAveraging
from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.checkpoint import CheckpointConfig
from sbi_ignite.settings.early_stopping import EarlyStopping
from sbi_ignite.settings.errors import suggestion
from sbi_ignite.settings.logging_config import LoggingConfig
from sbi_ignite.settings.origin import Origin
from sbi_ignite.settings.schedule import LRSchedule
from sbi_ignite.settings.train import TrainConfig

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

__all__ = ["CONFIG", "GROUPS", "Layer", "read_layers", "valid_variables", "variable_of"]

PREFIX = "SBI_IGNITE_"
CONFIG = f"{PREFIX}CONFIG"
GROUPS: Mapping[str, type[Settings]] = {
    "train": TrainConfig,
    "early_stopping": EarlyStopping,
    "logging": LoggingConfig,
    "checkpoint": CheckpointConfig,
}
_OF_SBI = {"STOP_AFTER_EPOCHS": f"{PREFIX}EARLY_STOPPING__PATIENCE"}
"""Keywords of sbi's that have another name in another group."""

# what only Python can express
_CALL_ONLY = {"early_stopping": {"rule"}}
_SUBFIELDS: Mapping[tuple[str, str], tuple[str, ...] | None] = {
    ("train", "lr_schedule"): tuple(LRSchedule.model_fields),
    ("train", "averaging"): tuple(WeightAveraging.model_fields),
    ("train", "dataloader_kwargs"): None,  # any name
}


@dataclass(frozen=True)
class Layer:
    """What one source says: a value and an origin for each field that it sets.

    Args:
        values: Checked values by group and field.
        origins: Where each came from, by group and field.
    """

    values: Mapping[str, dict[str, Any]] = field(
        default_factory=lambda: {group: {} for group in GROUPS}
    )
    origins: Mapping[str, dict[str, Origin]] = field(
        default_factory=lambda: {group: {} for group in GROUPS}
    )

    def put(self, group: str, name: str, text: object, origin: Origin) -> None:
        """Check one text and add it.

        Args:
            group: The group of settings.
            name: One of the field's names.
            text: What the source says.
            origin: Where it says so.

        Raises:
            SettingsError: If the field does not take this text, or is already set.
        """
        cls = GROUPS[group]
        own = cls.aliases.get(name, name)
        if own in self.values[group]:
            other = self.origins[group][own]
            raise SettingsError(f"{cls.__name__}.{own} is given twice: in {other} and in {origin}")
        self.values[group][own] = cls.read_text(own, text, origin)
        self.origins[group][own] = origin


def valid_variables() -> tuple[str, ...]:
    """List the environment variables that are read.

    Returns:
        Their names, SBI_IGNITE_CONFIG first, then group by group.
    """
    return (CONFIG, *(f"{PREFIX}{path}".upper() for path in _valid_paths()))


def variable_of(group: str, name: str) -> str | None:
    """Return the environment variable that sets a field; None if only Python can.

    Args:
        group: The group of settings.
        name: The field.

    Example:
        >>> variable_of("train", "batch_size")
        'SBI_IGNITE_TRAIN__BATCH_SIZE'
    """
    if name in _CALL_ONLY.get(group, ()):
        return None
    return f"{PREFIX}{group}__{name}".upper()


def _valid_paths() -> Iterator[str]:
    for group in GROUPS:
        for name in _names(group):
            yield f"{group}__{name}"
            inside = _SUBFIELDS.get((group, name)) or ()
            yield from (f"{group}__{name}__{part}" for part in inside)


def _names(group: str) -> list[str]:
    cls = GROUPS[group]
    return [n for n in [*cls.model_fields, *cls.aliases] if n not in _CALL_ONLY.get(group, ())]


def read_layers() -> tuple[Layer, Layer]:
    """Read the environment and the file that SBI_IGNITE_CONFIG names.

    Returns:
        The layer of the environment, then that of the file; empty where nothing is set.

    Raises:
        SettingsError: If a variable, table or key is misspelt, a value is wrong, or the file
            cannot be read.
    """
    variables = _our_variables()
    if not variables:
        return Layer(), Layer()
    said = _environment()
    path = said.pop("config", None)
    environment = _environment_layer(said, variables)
    return environment, Layer() if path is None else _file_layer(path, variables["config"])


def _our_variables() -> dict[str, str]:
    """Map each of our variables, in lower case and without the prefix, to its name as set."""
    ours: dict[str, str] = {}
    for name in os.environ:
        if not name.upper().startswith(PREFIX):
            continue
        _refuse_misspelt(name)
        key = name[len(PREFIX) :].lower()
        if key in ours:
            raise SettingsError(f"one setting is given twice: by {ours[key]} and by {name}")
        ours[key] = name
    return ours


def _refuse_misspelt(name: str) -> None:
    group, _, path = name[len(PREFIX) :].lower().partition("__")
    top, *rest = path.split("__")
    valid = name.upper() == CONFIG or (group in GROUPS and top in _names(group))
    if valid and (not rest or _is_subfield(group, top, rest)):
        return
    if group in GROUPS and top in _CALL_ONLY.get(group, ()):
        raise SettingsError(
            f"environment variable {name}: a callable can be passed from Python only, "
            f"as EarlyStopping.when(rule)"
        )
    raise SettingsError(
        f"unknown environment variable {name}{suggestion(_meant(name), valid_variables())}. "
        f"Valid variables: {', '.join(valid_variables())}"
    )


def _meant(name: str) -> str:
    """Return the variable of another group, or of sbi's keyword, that a name ends as; else it."""
    word = name[len(PREFIX) :].upper().split("__")[-1]
    same = [valid for valid in valid_variables() if valid.endswith(f"__{word}")]
    return _OF_SBI.get(word) or min(same, key=lambda valid: valid.count("__"), default=name)


def _is_subfield(group: str, name: str, rest: list[str]) -> bool:
    if (group, name) not in _SUBFIELDS or len(rest) != 1 or not rest[0]:
        return False
    known = _SUBFIELDS[group, name]
    return known is None or rest[0] in known


@cache
def _reader() -> type[BaseSettings]:
    # pydantic-settings takes long to import, and values made in Python do without it
    from pydantic_settings import BaseSettings, SettingsConfigDict

    class Reader(BaseSettings):
        """The fields that the sources may set."""

        model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__")

        train: dict[str, Any] = {}
        early_stopping: dict[str, Any] = {}
        logging: dict[str, Any] = {}
        checkpoint: dict[str, Any] = {}
        config: str | None = None

    return Reader


def _environment() -> dict[str, Any]:
    from pydantic.fields import FieldInfo
    from pydantic_settings import EnvSettingsSource

    class Texts(EnvSettingsSource):
        """Leaves every text as it is: the settings classes know how to read it."""

        def decode_complex_value(self, field_name: str, field: FieldInfo | None, value: Any) -> Any:
            return value

    return Texts(_reader())()


def _environment_layer(said: Mapping[str, Any], variables: Mapping[str, str]) -> Layer:
    layer = Layer()
    for group in GROUPS:
        for name, text in said.get(group, {}).items():
            layer.put(group, name, text, _variable_origin(f"{group}__{name}", variables))
    return layer


def _variable_origin(key: str, variables: Mapping[str, str]) -> Origin:
    names = [name for lower, name in variables.items() if lower == key]
    inside = [name for lower, name in variables.items() if lower.startswith(f"{key}__")]
    if names and inside:
        raise SettingsError(f"one setting is given twice: by {names[0]} and by {', '.join(inside)}")
    return Origin("environment", ", ".join(names or inside))


def _file_layer(path: str, variable: str) -> Layer:
    tables = _read_file(path, variable)
    layer = Layer()
    for group, table in tables.items():
        _refuse_unknown_table(group, table, path)
        for name, value in table.items():
            _refuse_unknown_key(group, name, path)
            layer.put(group, name, value, Origin("file", f"{path} [{group}]"))
    return layer


def _read_file(path: str, variable: str) -> dict[str, Any]:
    from pydantic_settings import TomlConfigSettingsSource

    file = Path(path).expanduser()
    where = f"the settings file {path!r} that {variable} names"
    if not path.strip() or not file.is_file():
        raise SettingsError(f"{where} does not exist or is not a file")
    try:
        return TomlConfigSettingsSource(_reader(), file).toml_data
    except OSError as error:
        raise SettingsError(f"{where} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{where} is not valid TOML: {error}") from error


def _refuse_unknown_table(group: str, table: object, path: str) -> None:
    homes = [home for home in GROUPS if group in _names(home)]
    if group not in GROUPS and homes and not isinstance(table, dict):
        raise SettingsError(
            f"key {group!r} in the settings file {path!r} must stand in a table: write "
            f"{' or '.join(f'[{home}]' for home in homes)} above it"
        )
    if group not in GROUPS:
        raise SettingsError(
            f"unknown table [{group}] in the settings file {path!r}"
            f"{suggestion(group, GROUPS)}. Valid tables: {', '.join(GROUPS)}"
        )
    if not isinstance(table, dict):
        raise SettingsError(
            f"{group!r} in the settings file {path!r} must be a table: write [{group}] above "
            f"its keys"
        )


def _refuse_unknown_key(group: str, name: str, path: str) -> None:
    if name in _CALL_ONLY.get(group, ()):
        raise SettingsError(
            f"key {name!r} in table [{group}] of the settings file {path!r}: "
            f"a callable can be passed from Python only, as EarlyStopping.when(rule)"
        )
    if name not in _names(group):
        raise SettingsError(
            f"unknown key {name!r} in table [{group}] of the settings file {path!r}"
            f"{suggestion(name, _names(group))}. Valid keys: {', '.join(_names(group))}"
        )
