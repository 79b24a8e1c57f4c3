"""`sbi-ignite settings`: every setting, its value, where that came from, and what it means."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from sbi_ignite.cli.output import console, fail, in_terminal, note, print_json, print_table
from sbi_ignite.exceptions import SettingsError
from sbi_ignite.settings.listing import Listed, list_settings
from sbi_ignite.settings.redaction import redact
from sbi_ignite.settings.sources import CONFIG, GROUPS

DEFAULTS = (
    "Defaults are those of the typed form, train(TrainConfig(...)). With sbi's own keywords alone, "
    "train() has sbi's defaults and trains as sbi does, unless sbi_compat is set here."
)
"""Whose defaults are shown; `train()` without a `TrainConfig` has others."""

_WIDE = 150
"""Columns of a terminal from which on the names of variables are written out."""


def settings(
    toml: Annotated[
        bool,
        typer.Option("--toml", help=f"Print a settings file with these values, for {CONFIG}."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every setting: its value, where that comes from, its variable and its meaning.

    The values are those of a training whose call passes none. Defaults are those of the typed form.
    Exit code 2: a variable or the settings file is wrong.
    """
    if toml and as_json:
        fail("expected one of --toml and --json, got both", 2)
    try:
        listed = list_settings()
    except SettingsError as error:
        fail(error, 2)
    file = os.environ.get(CONFIG)
    if as_json:
        rows = [each.to_dict() for each in listed]
        print_json({"file": file and redact(file), "defaults": DEFAULTS, "settings": rows})
    elif toml:
        from sbi_ignite.cli.toml import settings_file

        text, left_out = settings_file(listed, DEFAULTS)
        typer.echo(text, nl=False)
        for each in left_out:
            note(
                f"{each.group}.{each.name} is left out of the file, which cannot hold its value; "
                f"it stays in {each.origin}"
            )
    elif in_terminal():
        _for_people(listed, file)
    else:
        columns = ("setting", "value", "origin", "variable", "meaning")
        print_table(columns, (_row(each) for each in listed))
        note(DEFAULTS)


def _row(each: Listed) -> list[str]:
    variable = each.variable or "(from Python only)"
    return [f"{each.group}.{each.name}", each.shown, _origin(each), variable, each.meaning]


def _origin(each: Listed) -> str:
    """Say where a value came from: the layer, and which file."""
    where = each.origin.where if each.origin.source == "file" else ""
    return f"{each.origin.source} {where}".rstrip()


def _for_people(listed: list[Listed], file: str | None) -> None:
    """Print a table for each group."""
    wide = console().width >= _WIDE
    columns = ["setting", "value", "origin", *(["variable"] if wide else []), "meaning"]
    for group in GROUPS:
        rows = []
        for each in listed:
            if each.group == group:
                _, *cells = _row(each)
                cells = [each.name, *cells]
                rows.append(cells if wide else [*cells[:3], cells[4]])
        title = f"{group}: SBI_IGNITE_{group.upper()}__SETTING, or [{group}] in a settings file"
        print_table(columns, rows, title)
    console().print(
        f"{DEFAULTS} What a call of train() passes wins over all of these. Settings file "
        f"({CONFIG}): {redact(file) if file else 'none'}.",
        style="dim",
        markup=False,
    )
