"""Write settings as a commented TOML file, which gives the same values when it is loaded."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import tomlkit
from tomlkit.items import Item, Table

from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.field_types import NO_LIMIT
from sbi_ignite.settings.listing import Listed
from sbi_ignite.settings.serialization import plain
from sbi_ignite.settings.sources import CONFIG

_HEAD = f"""\
Settings of sbi_ignite. They apply to trainings in whose environment {CONFIG}
names this file; variables and what a call passes win over it. Lines that are commented out
show defaults."""


class _CannotHoldError(ValueError):
    """A settings file cannot hold this value: it is secret, or TOML has no such value."""


def settings_file(listed: Sequence[Listed], defaults: str = "") -> tuple[str, list[Listed]]:
    """Return the text of a file that sets what is set now.

    Args:
        listed: All settings.
        defaults: Whose defaults they are, in a sentence.

    Returns:
        The text, and the settings that are missing in it: secrets, and None inside a mapping, which
        TOML does not have.

    Example:
        >>> from sbi_ignite.settings.listing import list_settings
        >>> text, _ = settings_file(list_settings())
        >>> "# batch_size = 200" in text
        True
    """
    document, left_out = tomlkit.document(), []
    for line in [*_HEAD.splitlines(), *textwrap.wrap(defaults, 96)]:
        document.add(tomlkit.comment(line))
    for group in dict.fromkeys(each.group for each in listed):
        table = tomlkit.table()
        for each in listed:
            if each.group == group and each.variable is not None and not _add(table, each):
                left_out.append(each)
        document.add(tomlkit.nl())
        document.add(group, table)
    return tomlkit.dumps(document), left_out


def _add(table: Table, each: Listed) -> bool:
    """Add a setting with its meaning; say whether the file could hold it."""
    table.add(tomlkit.nl())
    for line in textwrap.wrap(each.meaning, 96):
        table.add(tomlkit.comment(line))
    try:
        if each.is_set:
            table.add(each.name, _item(each.value, each.name))
        elif each.required:
            table.add(tomlkit.comment(f"{each.name} = (no default)"))
        else:
            default = _item(each.value, each.name).as_string()
            words = "  # no limit" if each.value == NO_LIMIT else ""
            table.add(tomlkit.comment(f"{each.name} = {default}{words}"))
    except _CannotHoldError:
        table.add(tomlkit.comment(f"{each.name}: not written here, see {each.origin}"))
        return False
    return True


def _item(value: object, name: str) -> Item:
    written = tomlkit.item(_written(value, name, top=True))
    return written if isinstance(written, Item) else tomlkit.item(str(written))


def _written(value: Any, name: str = "", top: bool = False) -> Any:
    """Return a value as TOML has it: settings by what was set in them, mappings in one line."""
    if isinstance(value, Settings):
        value = {
            n: getattr(value, n) for n in type(value).model_fields if n in value.model_fields_set
        }
        return _inline({n: _written(item, n, top=True) for n, item in value.items()})
    if isinstance(value, Mapping):
        return _inline({str(key): _written(item, str(key)) for key, item in value.items()})
    if isinstance(value, list | tuple):
        written = tomlkit.array()
        written.extend(_written(item) for item in value)
        return written
    if value is None and top:
        return "none"  # which is how the text of a field says it
    shown = plain(value, name)
    hidden = shown != plain(value) or (isinstance(value, str) and shown != value)
    if value is None or hidden:
        raise _CannotHoldError
    return shown


def _inline(content: Mapping[str, Any]) -> Any:
    table = tomlkit.inline_table()
    for key, item in content.items():
        table[key] = item
    return table
