"""Tell a run directory that was copied from one that was moved."""

from __future__ import annotations

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
    if home is None or "run" not in manifest or home == path.resolve():
        return None
    try:
        there = read_json(home / "run.json") or {}
    except (DamagedError, UnknownVersionError):
        return None
    if _identity(there) != _identity(manifest) or _is_same_folder(path, home):
        return None
    return home


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
