"""The directory of an ensemble: a record of it, and a run directory per member.

runs/ens/             ensemble.json: seed, number of members, how they differ
  member-0/           a run directory, see `sbi_ignite.runs.directory`
  member-1/           …
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sbi_ignite.exceptions import CheckpointError, CheckpointMismatchError
from sbi_ignite.runs.files import DamagedError, UnknownVersionError, read_json, write_json
from sbi_ignite.runs.lock import Lock
from sbi_ignite.settings import CheckpointConfig
from sbi_ignite.settings.checkpoint import START_ANEW

_FIXED = ("method", "seed", "bootstrap", "resplit", "threads")
"""What an ensemble that is continued cannot change; members may be added."""


@dataclass(frozen=True)
class EnsembleDirectory:
    """The directory of an ensemble.

    Attributes:
        path: The directory.
        config: How its members are saved.
    """

    path: Path
    config: CheckpointConfig

    @property
    def record(self) -> Path:
        """Where the ensemble is described."""
        return self.path / "ensemble.json"

    def read(self) -> dict[str, Any] | None:
        """Return the record, None if there is none or the members shall start anew.

        Raises:
            CheckpointError: If it is damaged, or there is none and `resume="must"` asks for one.
        """
        if self.config.resume == "never":
            return None
        try:
            found = read_json(self.record)
        except (DamagedError, UnknownVersionError) as error:
            raise CheckpointError(
                f"{self.record} cannot be used: {error}. Put back a copy of it, or take another "
                "directory."
            ) from error
        if found is None and self.config.resume == "must":
            raise CheckpointError(
                f'{self.path}: there is no ensemble to continue, and resume="must" asks for it. '
                'Use resume="auto" to start anew.'
            )
        return found

    def begin(self, wanted: Mapping[str, Any]) -> None:
        """Record an ensemble that starts or continues.

        Args:
            wanted: What it is.

        Raises:
            CheckpointMismatchError: If the directory has another one.
            CheckpointError: If nothing can be written there.
        """
        found = self.read()
        if found is not None:
            different = [
                f"its {name} is {found.get(name)!r}, here {wanted[name]!r}"
                for name in _FIXED
                if found.get(name) != wanted[name]
            ]
            if different:
                raise CheckpointMismatchError(
                    f"{self.path} holds another ensemble: {'; '.join(different)}. Take another "
                    f"directory, or {START_ANEW} to start anew in this one."
                )
            wanted = {**found, **wanted, "members": max(found["members"], wanted["members"])}
        if found == wanted:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.record, wanted)
        except OSError as error:
            raise CheckpointError(
                f"{self.record} cannot be written: {error.strerror}. Make room, or take another "
                "directory."
            ) from error

    def of_member(self, index: int) -> CheckpointConfig:
        """Return how a member is saved.

        Args:
            index: Its number.
        """
        # Of a killed ensemble, some members have nothing to continue yet.
        resume = "auto" if self.config.resume == "must" else self.config.resume
        update = {"directory": (self.path / f"member-{index}").absolute(), "resume": resume}
        return self.config.model_copy(update=update)

    @contextmanager
    def held(self, alone: bool) -> Iterator[None]:
        """Keep other ensembles out.

        Args:
            alone: Whether all members are trained; processes that train one each share it.

        Raises:
            CheckpointError: If another one trains there.
        """
        if not alone:
            yield
            return
        with contextlib.suppress(OSError):  # reported by the lock
            self.path.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.path / ".lock")
        try:
            yield
        finally:
            lock.release()
