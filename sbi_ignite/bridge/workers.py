"""Worker processes: pass the patch on to them, and tell whether this process is one."""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from sbi_ignite.exceptions import SbiIgniteWarning

STARTUP = str(Path(__file__).parents[1] / "_startup")
"""Folder of the start-up hook, which Python processes run if it is on their PYTHONPATH."""

_inherited = False


def pass_on_patch() -> Callable[[], None]:
    """Make Python processes started from now on with this environment patch sbi, too.

    This reaches every worker that inherits the environment, however it is started: joblib's loky,
    multiprocessing by spawn or forkserver, Ray and Dask on this machine, pytest-xdist, plain
    subprocesses. Forked ones are copies of this process anyway. Workers that cannot be reached
    are named in one warning.

    Returns:
        A function that ends this for processes started later.
    """
    # Workers do not check for siblings: inside a Ray task, Ray is running anyway.
    missed = [] if _inherited else [*_already_running(), *_cut_off()]
    if missed:
        warnings.warn(
            f"patch_sbi() does not reach {' and '.join(missed)}: what they train is trained by "
            "plain sbi. Start workers after patch_sbi(), or call it inside the tasks.",
            SbiIgniteWarning,
            stacklevel=4,
        )
    before = os.environ.get("PYTHONPATH")
    if STARTUP not in _folders():
        os.environ["PYTHONPATH"] = os.pathsep.join([STARTUP, *_folders()])

    def end() -> None:
        folders = [folder for folder in _folders() if folder != STARTUP]
        if folders or before == "":
            os.environ["PYTHONPATH"] = os.pathsep.join(folders)
        else:
            os.environ.pop("PYTHONPATH", None)

    return end


def inherit_patch() -> None:
    """Patch sbi in a process started by a patched one; called by the start-up hook."""
    global _inherited
    import sbi_ignite._import_ignite  # noqa: F401 # before anything imports ignite
    from sbi_ignite.bridge.patch import patch_sbi

    _inherited = True
    patch_sbi()


def is_worker() -> bool:
    """Return whether another process has started this one to share its work.

    This is a process of multiprocessing (those of joblib's loky and Dask are), or one that has
    inherited the patch.
    """
    return _inherited or multiprocessing.parent_process() is not None


def _folders() -> list[str]:
    found = os.environ.get("PYTHONPATH", "")
    return found.split(os.pathsep) if found else []


def _already_running() -> list[str]:
    """Name the workers of this process that were already started."""
    found = []
    running = len(multiprocessing.active_children())
    if running:
        found.append(f"{running} worker process{'es' * (running > 1)} that run already")
    server = sys.modules.get("multiprocessing.forkserver")
    if getattr(getattr(server, "_forkserver", None), "_forkserver_pid", None) is not None:
        found.append("workers of the fork server, which runs already")
    ray = sys.modules.get("ray")
    if ray is not None and getattr(ray, "is_initialized", bool)():
        found.append("the workers of Ray, which runs already")
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        try:
            distributed.default_client()
        except (AttributeError, ValueError):
            return found
        found.append("the workers of the Dask client that is connected already")
    return found


def _cut_off() -> list[str]:
    """Name workers that do not inherit the environment."""
    if sys.flags.ignore_environment or sys.flags.no_site:
        return ["worker processes, since Python runs with -E, -I or -S"]
    return []
