"""Find run directories and say in one row each what is in them, damaged ones included."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sbi_ignite.exceptions import CheckpointError
from sbi_ignite.pictures import Curves
from sbi_ignite.runs.directory import read_manifest
from sbi_ignite.runs.load import Run, load_without_rounds
from sbi_ignite.runs.lock import is_held
from sbi_ignite.summary import TrainingSummary

_FILES = ("run.json", "metrics.jsonl", "summary.json")
_PART = re.compile(r"(round|trainer|member)-(\d+)|(training)-[0-9a-f]+")
"""Folders in which a run keeps its rounds, further trainers, members and trainings of workers."""
_ASIDE = re.compile(r"replaced-\d+")
_UNREADABLE = (CheckpointError, OSError, LookupError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class RunRow:
    """What is in one run directory, in short.

    Attributes:
        path: The directory.
        status: "running", "killed" (it was running, and no process holds the directory any more),
            "complete", "interrupted", "failed", or another word of the manifest; "damaged" if it
            cannot be read.
        method: Name of the method; "" if it is unknown, likewise below.
        stop_reason: Why training stopped.
        epochs: Finished epochs; None if they cannot be read.
        best_loss: Loss of the best weights; NaN before there are any.
        best_kind: Which loss that is: "validation" or "training".
        best_epoch: Epoch of the best weights, from 1; 0 before there are any.
        seconds: Time spent in epochs; NaN if it cannot be read.
        note: Why it is damaged, or the error that ended it.
        curves: What `show --plot` draws.
    """

    path: Path
    status: str
    method: str = ""
    stop_reason: str = ""
    epochs: int | None = None
    best_loss: float = math.nan
    best_kind: str = "validation"
    best_epoch: int = 0
    seconds: float = math.nan
    note: str = ""
    curves: Curves = field(default=Curves(""), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data for JSON: None stands for what is unknown."""

        def known(number: float) -> float | None:
            return number if math.isfinite(number) else None

        return {
            "directory": str(self.path),
            "method": self.method or None,
            "status": self.status,
            "stop_reason": self.stop_reason or None,
            "epochs": self.epochs,
            "best_loss": known(self.best_loss),
            "best_loss_kind": self.best_kind if self.best_epoch else None,
            "best_epoch": self.best_epoch or None,
            "seconds_in_epochs": known(self.seconds),
            "note": self.note or None,
        }


class Overview:
    """Rows of the runs below some directories; only what has changed is read again.

    Args:
        paths: Run directories, or folders that hold some.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self._paths = [Path(path) for path in paths]
        self._known: dict[Path, tuple[object, RunRow]] = {}

    def rows(self) -> list[RunRow]:
        """Return the rows as the runs are now, in the order of the paths.

        Example:
            >>> Overview(["no such folder"]).rows()
            []
        """
        found = dict.fromkeys(run for path in self._paths for run in find_runs(path))
        return [self._row(path) for path in found]

    def _row(self, path: Path) -> RunRow:
        held = is_held(path / ".lock")
        mark = (held, *(_mark(path / name) for name in _FILES))
        known = self._known.get(path)
        if known is None or known[0] != mark:
            known = mark, read_row(path, held)
            self._known[path] = known
        return known[1]


def find_runs(path: Path) -> Iterator[Path]:
    """Yield the run directories at or below a path: a run before its parts, names in their order.

    Files of a run that were set aside are left out.

    Args:
        path: A run directory or a folder that holds some; anything else holds none.
    """
    if not path.is_dir():
        return
    is_run = _is_run(path)
    if is_run:
        yield path
    try:
        names = [name for name in os.listdir(path) if (path / name).is_dir()]
    except OSError:
        return
    # Below a run there are its parts only, and logs of backends.
    below = [n for n in names if _PART.fullmatch(n) or not (is_run or _ASIDE.fullmatch(n))]
    for name in sorted(below, key=_in_order):
        if not name.startswith(".") and not (path / name).is_symlink():
            yield from find_runs(path / name)


def read_row(path: Path, held: bool | None) -> RunRow:
    """Return the row of one run directory; a damaged one is a row, too.

    Args:
        path: The directory.
        held: Whether a process holds it; None if nobody can tell.
    """
    try:
        if not (path / "run.json").exists():
            raise CheckpointError(f"{path / 'run.json'} is missing beside its checkpoints.")
        return _row(load_without_rounds(path), held)
    except _UNREADABLE as error:
        problem = str(error) if isinstance(error, CheckpointError | OSError) else repr(error)
        return RunRow(path, "damaged", _method_of(path), note=_in_a_line(problem))


def _row(run: Run, held: bool | None) -> RunRow:
    manifest, rows = run.manifest, run.metrics
    curves = Curves.from_rows(str(run.path), rows)
    validated = not rows or "validation_loss" in rows[-1]
    best: Any = run.summary or curves
    failed = run.status in ("failed", "interrupted")
    return RunRow(
        path=run.path,
        status="killed" if run.status == "running" and held is False else run.status,
        method=run.method,
        stop_reason=str(manifest.get("stop_reason") or ""),
        epochs=run.summary.epochs_trained if run.summary else len(rows),
        best_loss=_best_loss(best),
        best_kind="validation" if validated else "training",
        best_epoch=best.best_epoch,
        seconds=float(sum(row.get("epoch_durations_sec", 0.0) for row in rows)),
        note=_in_a_line(str(manifest.get("error") or "")) if failed else "",
        curves=curves,
    )


def _best_loss(best: TrainingSummary | Curves) -> float:
    return best.best_loss if isinstance(best, Curves) else best.best_validation_loss


def _method_of(path: Path) -> str:
    """Return the method of a damaged run, "" if not even that can be read."""
    try:
        return str((read_manifest(path) or {}).get("method", ""))
    except _UNREADABLE:
        return ""


def _is_run(path: Path) -> bool:
    names = ("run.json", "summary.json", "best.pt")
    return any((path / name).exists() for name in names) or any(path.glob("checkpoint-*.pt"))


def _in_order(name: str) -> tuple[str | int, ...]:
    """Return what sorts round-10 behind round-2."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name))


def _mark(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is written."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _in_a_line(text: str) -> str:
    return " ".join(text.split())
