"""Tell a run directory that was copied from one that was moved."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sbi_ignite.runs.files import DamagedError, UnknownVersionError, read_json


def original_of(path: Path, manifest: Mapping[str, Any]) -> Path | None:
    """Return the run directory of which this one is a copy, None if it is none.

    It is a copy if the same run is still where this one says that it is. A directory whose original
    is gone was moved, or the node sees the same disk under another path.

    Args:
        path: The run directory, held by this process.
        manifest: Its run.json.
    """
    home = _home(manifest)
    return home if home is not None and _is_of_original(home, path, manifest) else None


def note_home(folder: Path, identity: str, home: Path) -> None:
    """Leave word, in a folder of logs outside a run directory, of where the directory is.

    Args:
        folder: The folder.
        identity: Identity of the run.
        home: The run directory.
    """
    with contextlib.suppress(OSError):  # without it, a copy may be taken for a moved run
        _note(folder, identity).write_text(str(home.resolve()), encoding="utf-8")


def original_in(folder: Path, path: Path, manifest: Mapping[str, Any]) -> Path | None:
    """Return the run directory of which this one is a copy, going by a note beside its logs.

    The original may have been moved since this copy was made, and may have left word there.

    Args:
        folder: A folder of logs outside the run directory.
        path: The run directory, held by this process.
        manifest: Its run.json.
    """
    try:
        home = Path(_note(folder, str(_identity(manifest))).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return home if _is_of_original(home, path, manifest) else None


def _note(folder: Path, identity: str) -> Path:
    return folder / f".sbi_ignite.{identity}"


def _is_of_original(home: Path, path: Path, manifest: Mapping[str, Any]) -> bool:
    """Say whether the run of a manifest is at `home`, too, in another folder than at `path`."""
    if "run" not in manifest or home == path.resolve():
        return False
    try:
        there = read_json(home / "run.json") or {}
    except (DamagedError, UnknownVersionError):
        return False
    return _identity(there) == _identity(manifest) and not _is_same_folder(path, home)


def _identity(manifest: Mapping[str, Any]) -> Any:
    return manifest.get("identity", manifest.get("run"))


def _home(manifest: Mapping[str, Any]) -> Path | None:
    """Return where a run was when its run.json was written."""
    if "home" in manifest:
        return Path(manifest["home"])
    # Version 0.1 recorded the path that the user gave; rounds have folders below it.
    setting = manifest.get("settings", {}).get("checkpoint", {})
    try:
        folder, number = Path(setting["directory"]["value"]), int(manifest.get("round", 0))
    except (LookupError, TypeError, ValueError):
        return None
    return (folder / f"round-{number}" if number else folder).resolve()


def _is_same_folder(path: Path, home: Path) -> bool:
    """Say whether two paths, perhaps through two mounts of a disk, lead to the same folder."""
    probe = f".probe.{uuid.uuid4().hex}.tmp"
    try:
        (path / probe).touch()
    except OSError:
        return os.path.samefile(path, home)
    try:
        return (home / probe).exists()
    finally:
        (path / probe).unlink()
