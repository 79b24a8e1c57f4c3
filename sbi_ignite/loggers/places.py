"""Folders for logs: a fresh run gets one that no other run writes to, a continued run its own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sbi_ignite.loggers.base import RunInfo, new_run_name


@dataclass(frozen=True)
class Place:
    """Where a file backend writes.

    Attributes:
        folder: The folder.
        continued: Whether it holds what this run has logged before.
        id: What the run's first file holds, so that the folder is recognised; None in a run
            directory, which no other run writes to.
    """

    folder: Path
    continued: bool
    id: str | None = None

    @property
    def name(self) -> str:
        """The folder's name, which is that of the run where several share a `log_dir`."""
        return self.folder.name


@dataclass(frozen=True)
class Finder:
    """Finds the folder of a run.

    Args:
        first: Name of the file whose creation makes a folder a run's own; the operating system
            lets only one process create it.
        taken: Says whether a folder holds files of this kind.
        id_in: Reads the id from the first file of a folder.
        by_name: Whether `run_name` names a folder below `log_dir` for the first run there, too.
    """

    first: str
    taken: Callable[[Path], bool]
    id_in: Callable[[Path], str | None]
    by_name: bool

    def find(
        self,
        info: RunInfo,
        identity: Mapping[str, Any],
        log_dir: str | os.PathLike[str] | None,
        run_name: str | None,
    ) -> Place:
        """Return the folder where the run has logged before, else one of its own.

        Args:
            info: The run.
            identity: What it remembers: "path" of the folder, "id" of the run in it.
            log_dir: The folder that was asked for.
            run_name: The run's name.

        Raises:
            OSError: If no folder can be made.
        """
        known = self._known(identity, log_dir)
        if known is not None:
            return known
        if log_dir is None and info.run_directory is not None:
            folder = info.run_directory.absolute() / "logs"
            return Place(folder, continued=self.taken(folder))
        return self._claimed(self._candidates(info, log_dir, run_name))

    def _known(
        self, identity: Mapping[str, Any], log_dir: str | os.PathLike[str] | None
    ) -> Place | None:
        """Return the remembered folder, if it exists and lies where it is asked for."""
        if "path" not in identity:
            return None
        folder, found = Path(identity["path"]), identity.get("id")
        if log_dir is not None and not folder.resolve().is_relative_to(Path(log_dir).resolve()):
            return None
        if not self.taken(folder) or (found is not None and self.id_in(folder) != found):
            return None
        return Place(folder, continued=True, id=found)

    def _candidates(
        self, info: RunInfo, log_dir: str | os.PathLike[str] | None, run_name: str | None
    ) -> Iterator[Path]:
        name = run_name or new_run_name(info.method)
        root = Path("sbi-logs" if log_dir is None else log_dir).absolute()
        if log_dir is not None and not (self.by_name and run_name):
            yield root
        yield root / name
        for number in itertools.count(2):
            yield root / f"{name}-{number}"

    def _claimed(self, candidates: Iterator[Path]) -> Place:
        """Return the first folder that no other run writes to, not even one starting right now."""
        while True:
            folder = next(candidates)
            folder.mkdir(parents=True, exist_ok=True)
            if self.taken(folder):
                continue
            try:
                os.close(os.open(folder / self.first, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            except FileExistsError:
                continue
            return Place(folder, continued=False, id=os.urandom(8).hex())
