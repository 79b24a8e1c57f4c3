"""What a backend in another process must know of the user's process and its environment."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any

_taken: set[str] = set()
"""Ids under which a training or the user has logged to wandb in this process."""


def new_identity(name: str) -> dict[str, Any]:
    """Return the identity of a training that starts afresh.

    The first training of a process takes the wandb run that the environment names, unless the user
    logs to it. The backend process has the last word: only it can see other processes.

    Args:
        name: The backend's name.
    """
    given = os.environ.get("WANDB_RUN_ID") if name == "wandb" else None
    if given and given not in _taken and users_wandb_run() is None:
        return {"id": given}
    return {"id": os.urandom(8).hex()}


def known_to_this_process(name: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a user's own use of the library in this process implies for ours.

    Args:
        name: The backend's name.
        identity: The identity of the training.
    """
    script = {"script": os.path.abspath(sys.argv[0]) if sys.argv and sys.argv[0] else "python"}
    if name == "mlflow":
        return {**script, **_known_of_mlflow()}
    if name == "wandb":
        theirs = users_wandb_run()
        given = os.environ.get("WANDB_RUN_ID", "")
        free = theirs is None and (given not in _taken or given == identity["id"])
        if theirs is not None:
            _taken.add(theirs["id"])
        elif free and given:
            _taken.add(given)
        return {**script, "pid": os.getpid(), "users_run": theirs, "may_take_given": free}
    return script


def secrets_of_this_process(name: str) -> dict[str, str]:
    """Return the login of the user in this process, as environment variables for the other."""
    wandb = sys.modules.get("wandb") if name == "wandb" else None
    if wandb is not None and "WANDB_API_KEY" not in os.environ:
        with contextlib.suppress(Exception):
            key = wandb.api.api_key
            return {"WANDB_API_KEY": key} if key else {}
    return {}


def users_wandb_run() -> dict[str, Any] | None:
    """Return the run of wandb that the user has open in this process, None without one."""
    run = getattr(sys.modules.get("wandb"), "run", None)
    if run is None:
        return None
    with contextlib.suppress(Exception):
        names = ("id", "group", "project", "entity")
        return {name: getattr(run, name) or None for name in names}
    return None


def _known_of_mlflow() -> dict[str, Any]:
    """Return the store and the active run of the user's process."""
    mlflow = sys.modules.get("mlflow")
    known: dict[str, Any] = {}
    if mlflow is None:
        return known
    with contextlib.suppress(Exception):
        known["default_tracking_uri"] = mlflow.get_tracking_uri()
        run = mlflow.active_run()
        if run is not None:
            known["users_run"] = {
                "run_id": run.info.run_id,
                "experiment_id": run.info.experiment_id,
            }
    return known
