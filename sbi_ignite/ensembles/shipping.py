"""Send trainers to other processes, and their simulations by way of one memory-mapped file."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import Tensor

from sbi_ignite.bridge.lines import SbiTrainer, private
from sbi_ignite.exceptions import ArgumentError, CheckpointError, DataError
from sbi_ignite.runs.lock import Lock

_FOLDER = "sbi-ignite-ensemble-"
_FILE = "simulations.pt"


def pack(trainer: Any) -> bytes:
    """Return a trainer without tracker and simulations, to be sent to another process.

    Args:
        trainer: One of sbi's trainers.

    Raises:
        ArgumentError: If a part of it cannot be pickled.
    """
    state, _ = private(trainer).taken_apart()
    try:
        return cloudpickle.dumps((type(trainer), state))
    except Exception as error:
        part = next((name for name, value in state.items() if not _is_picklable(value)), "class")
        raise ArgumentError(
            f"train_ensemble: expected a {type(trainer).__name__} that can be sent to another "
            f"process, got one whose {part.lstrip('_')} cannot be pickled ({_line(error)}). Make "
            "what it needs inside the function that builds the network, and keep open files, "
            "locks and generators out of prior, network builder and proposal."
        ) from error


def pack_arguments(arguments: dict[str, Any]) -> bytes:
    """Return arguments of `train()`, to be sent to another process.

    Args:
        arguments: The arguments by name.

    Raises:
        ArgumentError: If one of them cannot be pickled.
    """
    try:
        return cloudpickle.dumps(arguments)
    except Exception as error:
        part = next((n for n, value in arguments.items() if not _is_picklable(value)), "them")
        raise ArgumentError(
            f"train_ensemble: expected arguments that can be sent to another process, got {part}="
            f"{arguments.get(part)!r}, which cannot be pickled ({_line(error)}). Every member gets "
            "a copy of its own: open files and connections in its method on_train_start, not when "
            "it is made."
        ) from error


def unpack(packed: bytes, tensors: Sequence[Tensor], tracker: Any, prior: Any | None = None) -> Any:
    """Return a trainer that `pack` packed.

    Args:
        packed: What it returned.
        tensors: Its simulations, see `simulations_of`.
        tracker: Its tracker.
        prior: The very prior that it had, where that is still at hand.
    """
    kind, state = cloudpickle.loads(packed)
    return SbiTrainer.put_together(kind, state, tensors, tracker, prior)


def simulations_of(trainer: Any) -> list[Tensor]:
    """Return the tensors that hold the simulations of a trainer, in a fixed order."""
    return private(trainer).taken_apart()[1]


def _is_picklable(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True


def _line(error: BaseException) -> str:
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0]


# --- simulations


@dataclass(frozen=True)
class SharedFolder:
    """A folder that all processes of an ensemble see, with the simulations in a file.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def progress(self) -> Path:
        """The file in which members note how far they are."""
        return self.path / "progress"

    def share(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Write tensors to the file, and return them as they are mapped from it.

        Args:
            tensors: Tensors on any device.

        Raises:
            DataError: If the disk has no room for them.
        """
        owned = [tensor.detach().cpu() for tensor in tensors]
        owned = [t.clone() if _is_part(t) else t for t in owned]  # the whole would be written
        try:
            torch.save(owned, self.path / _FILE)
        except (OSError, RuntimeError) as error:
            size = sum(t.numel() * t.element_size() for t in owned) / 2**20
            raise DataError(
                f"train_ensemble: the simulations ({size:,.0f} MiB) could not be written to "
                f"{self.path}, where all workers would read them ({_line(error)}). Set "
                "JOBLIB_TEMP_FOLDER to a folder with enough room, which all workers see, or train "
                "with n_jobs=1, which needs no file."
            ) from error
        return self.open()

    def open(self) -> list[Tensor]:
        """Return the tensors; they take no memory of this process until they are written to.

        Raises:
            DataError: If this machine does not see the file.
        """
        file = self.path / _FILE
        if not file.exists():
            raise DataError(
                f"{file} with the simulations of the ensemble is not there for a worker on "
                f"{platform.node()}. Set JOBLIB_TEMP_FOLDER, where the ensemble is started, to "
                "a folder that all machines see."
            )
        return torch.load(file, mmap=True, weights_only=True)


def _is_part(tensor: Tensor) -> bool:
    """Say whether a tensor is a view of a larger one."""
    return tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()


@contextmanager
def shared_folder() -> Iterator[SharedFolder]:
    """Make a folder that is removed at the end, and remove those whose owners were killed."""
    root = Path(os.environ.get("JOBLIB_TEMP_FOLDER") or tempfile.gettempdir())
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=root))
    lock = Lock(folder / ".lock")
    try:
        yield SharedFolder(folder)
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove folders of ensembles whose processes have been killed."""
    for folder in root.glob(f"{_FOLDER}*"):
        if not (folder / ".lock").exists():
            continue  # being made
        with contextlib.suppress(CheckpointError, OSError):
            Lock(folder / ".lock").release()
            shutil.rmtree(folder, ignore_errors=True)
