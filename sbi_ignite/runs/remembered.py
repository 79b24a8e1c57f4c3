"""What loggers remember of a run, stored so that it stays valid when the directory is moved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def remember(states: Mapping[str, Any], directory: Path, identity: str) -> dict[str, Any]:
    """Return what loggers remember, for a checkpoint.

    Args:
        states: What `Loggers.state_dict()` returns: a state for each logger; "path" is where it
            writes.
        directory: The run directory.
        identity: That of the run, see `RunDirectory`.

    Returns:
        The same, with places relative to the run directory, and the run whose logs these are.
    """
    told = {name: _with_relative(state, directory) for name, state in states.items()}
    return {**told, "run": identity} if states else {}


def recall(states: Mapping[str, Any], directory: Path, run: str, identity: str) -> dict[str, Any]:
    """Return what loggers remembered, as far as it is still the run's own.

    A run whose directory was moved has all its logs; a copy has those that were copied along, and
    begins new ones elsewhere.

    Args:
        states: What `remember` returned, also that of version 0.1, which knew absolute paths only.
        directory: The run directory under its present name.
        run: Identifier that the run shares with its copies; that of a run that was never copied.
        identity: That of the run, see `RunDirectory`.

    Returns:
        A state for each logger that continues where it was.
    """
    copied = states.get("run", run) != identity
    found = {}
    for name, state in states.items():
        if name == "run":
            continue
        if not isinstance(state, Mapping):
            found[name] = state
        elif "path" in state or "log_dir" in state:
            path = _path_now(state, directory, copied)
            if path is not None:
                found[name] = {"path": str(path), "id": state.get("id")}
        elif not copied:
            found[name] = dict(state)
    return found


def folders_outside(states: Mapping[str, Any], directory: Path) -> list[Path]:
    """Return the folders outside a run directory in which loggers remember to have written.

    Args:
        states: What `Loggers.state_dict()` or `remember` returned.
        directory: The run directory.
    """
    here = directory.absolute()
    # Rounds after the first have directories of their own, and log beside the first.
    home = here.parent if here.name.startswith("round-") else here
    paths = [Path(s["path"]) for s in states.values() if isinstance(s, Mapping) and "path" in s]
    return [path for path in dict.fromkeys(paths) if not path.is_relative_to(home)]


def _with_relative(state: Any, directory: Path) -> Any:
    if not isinstance(state, Mapping) or "path" not in state:
        return state
    return {**state, "relative": os.path.relpath(state["path"], directory.absolute())}


def _path_now(state: Mapping[str, Any], directory: Path, copied: bool) -> Path | None:
    """Return where a logger's files are now, None where they are not, or are another run's."""
    if "relative" not in state:
        return _path_of_version_0_1(state, directory, copied)
    relative = Path(state["relative"])
    places = [directory.absolute() / relative]
    if ".." in relative.parts:
        # A copy has no claim to what lies outside the run directory.
        places = [] if copied else [Path(os.path.normpath(places[0])), Path(state["path"])]
    return next((place for place in places if place.exists()), None)


def _path_of_version_0_1(state: Mapping[str, Any], directory: Path, copied: bool) -> Path | None:
    path = Path(state["path"]).parent if "path" in state else Path(state["log_dir"])
    here = directory.absolute()
    # Rounds after the first have directories of their own, and log beside the first.
    homes = [here, here.parent] if here.name.startswith("round-") else [here]
    for home in homes:
        if path.is_relative_to(home):
            return path
    for home in homes:
        if path.name == "logs" and (home / "logs").exists():
            return home / "logs"
    is_anothers = path.name == "logs" and (path.parent / "run.json").exists()
    return None if copied or is_anothers or not path.exists() else path
