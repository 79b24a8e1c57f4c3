"""Give every member of an ensemble curves of its own, and trackers a group of them."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sbi_ignite.ensembles.summary import EnsembleSummary
from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.loggers import Loggers, RunInfo
from sbi_ignite.loggers.base import new_run_name
from sbi_ignite.loggers.make import make_backend
from sbi_ignite.settings import LoggingConfig, Resolved
from sbi_ignite.settings.resolved import item_prefixes
from sbi_ignite.summary import TrainingSummary

_PARENT = "mlflow.parentRunId"
_SECONDS_FOR_PARENT = 60.0
"""How long to wait until MLflow has made the run that members are children of."""

_IN_FOLDERS = ("tensorboard", "jsonl")


@dataclass
class Group:
    """What the members of an ensemble share in trackers.

    Attributes:
        loggers: The loggers of the call; each member gets its own version of each.
        name: Name of the group.
        has_run_directory: Whether files of loggers go to the members' run directories.
        parents: MLflow's id of the run that the members are children of, by number of the logger.
        logged_to: What a continued ensemble needs to find that run again, likewise.
        summary: The summary of the ensemble, once it is known.
    """

    loggers: tuple[LoggingConfig, ...]
    name: str
    has_run_directory: bool
    parents: dict[int, str] = field(default_factory=dict)
    logged_to: dict[str, Any] = field(default_factory=dict)
    summary: EnsembleSummary | None = None

    def of_member(self, index: int) -> list[LoggingConfig]:
        """Return the loggers of a member.

        Args:
            index: Its number.
        """
        return [self._of(position, logger, index) for position, logger in enumerate(self.loggers)]

    @property
    def environment(self) -> dict[str, str | None]:
        """Variables of the members' processes: wandb's group, unless the user has one."""
        if not any(logger.backend == "wandb" for logger in self.loggers):
            return {}
        # A run that the environment names can hold one curve only.
        group = os.environ.get("WANDB_RUN_GROUP") or os.environ.get("WANDB_RUN_ID") or self.name
        return {"WANDB_RUN_GROUP": group, "WANDB_RUN_ID": None}

    @property
    def prints(self) -> bool:
        """Whether members print lines of their own."""
        return any(logger.backend == "stdout" for logger in self.loggers)

    def _of(self, position: int, logger: LoggingConfig, index: int) -> LoggingConfig:
        member = f"member-{index}"
        update: dict[str, Any] = {}
        if logger.backend in _IN_FOLDERS:
            if logger.log_dir is not None or not self.has_run_directory:
                root = Path(logger.log_dir or Path("sbi-logs") / self.name).absolute()
                update["log_dir"] = root / member
        else:
            update["run_name"] = f"{logger.run_name or self.name}-{member}"
        if position in self.parents:
            tags = logger.tags or {}
            named = tags if isinstance(tags, Mapping) else dict.fromkeys(tags, "")
            update["tags"] = {**named, _PARENT: self.parents[position]}
        return logger.model_copy(update=update)


def loggers_of(settings: Resolved) -> tuple[LoggingConfig, ...]:
    """Return the loggers that members can have.

    A logger that prints counts only if the call asks for it: one display shows all members.

    Args:
        settings: The settings of the call.

    Raises:
        ArgumentError: If one of them is an object, which is a single destination.
    """
    found, prefixes = [], item_prefixes("logging", len(settings.logging))
    for logger, prefix in zip(settings.logging, prefixes, strict=True):
        if not isinstance(logger, LoggingConfig):
            raise ArgumentError(
                "train_ensemble: expected a LoggingConfig or the name of a backend as logging, got "
                f"{type(logger).__name__}. An object is one destination, in which the members' "
                "curves would be mixed."
            )
        if logger.backend != "stdout" or settings.origin(f"{prefix}.backend").source == "call":
            found.append(logger)
    return tuple(found)


@contextmanager
def grouped(
    loggers: Sequence[LoggingConfig],
    method: str,
    config: Mapping[str, Any],
    has_run_directory: bool,
    known: Mapping[str, Any],
) -> Iterator[Group]:
    """Make the runs that group members in trackers, and end them with the ensemble.

    Args:
        loggers: The loggers of the call.
        method: Name of the trainer.
        config: The settings as plain data.
        has_run_directory: Whether members have one.
        known: `logged_to` of the ensemble that is continued.
    """
    name = str(known.get("name") or f"ensemble-{new_run_name(method)}")
    group = Group(tuple(loggers), name, has_run_directory, logged_to={"name": name})
    parents: dict[int, Loggers] = {}
    for position, logger in enumerate(loggers):
        if logger.backend == "mlflow" and not _active_mlflow_run():
            parents[position] = _parent(logger, name, method, config, known, position, group)
    try:
        yield group
    except BaseException as error:
        for opened in parents.values():
            opened.fail(error)
        raise
    for opened in parents.values():
        opened.finish(group_summary(group.summary, method))


def _active_mlflow_run() -> bool:
    """Say whether the user has a run open, which becomes the parent of all by itself."""
    mlflow = sys.modules.get("mlflow")
    with contextlib.suppress(Exception):
        return mlflow is not None and mlflow.active_run() is not None
    return False


def _parent(
    logger: LoggingConfig,
    name: str,
    method: str,
    config: Mapping[str, Any],
    known: Mapping[str, Any],
    position: int,
    group: Group,
) -> Loggers:
    """Open the run in MLflow that members are children of, and note its id."""
    backend = make_backend(logger.model_copy(update={"run_name": logger.run_name or name}))
    opened = Loggers([backend])
    key = f"mlflow-{position}"
    earlier = known.get(key)
    info = RunInfo(method=method, config=config, identity=dict(earlier or {}))
    opened.start(info)
    limit = time.monotonic() + _SECONDS_FOR_PARENT
    run_id = None
    while run_id is None and time.monotonic() < limit and backend.trouble is None:
        backend.settled()
        run_id = backend.state_dict().get("run_id")
        if run_id is None:
            time.sleep(0.05)
    if run_id is not None:
        group.parents[position] = run_id
        group.logged_to[key] = opened.state_dict()
    return opened


def group_summary(summary: EnsembleSummary | None, method: str) -> TrainingSummary:
    """Return what a tracker shows of an ensemble: its best member, and how many there are.

    Args:
        summary: The summary of the ensemble; None if it came to nothing.
        method: Name of the trainer.
    """
    if summary is None or not summary.summaries:
        nan = float("nan")
        return TrainingSummary(method, 0, 0, nan, (), (), (), (), (), "callback", "no member")
    best = min(summary.summaries, key=lambda s: s.best_validation_loss)
    trained, failed = len(summary.summaries), len(summary.failed)
    words = f"best of {trained} members" + (f", {failed} failed" if failed else "")
    return replace(best, stop_message=words)
