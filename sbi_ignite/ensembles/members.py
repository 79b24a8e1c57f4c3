"""Train one member of an ensemble, in whatever process it finds itself."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import signal
import struct
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from ignite.utils import manual_seed
from sbi.utils.tracking import TensorBoardTracker
from torch import Tensor

from sbi_ignite.bridge.lines import private
from sbi_ignite.bridge.memory import memory_of
from sbi_ignite.bridge.mixins import IgniteTrainer
from sbi_ignite.bridge.patch import is_patched, patch_sbi
from sbi_ignite.ensembles.seeds import MemberSeeds
from sbi_ignite.ensembles.shipping import SharedFolder, pack, unpack
from sbi_ignite.exceptions import (
    CheckpointError,
    CheckpointMismatchError,
    NonFiniteLossError,
    SbiIgniteWarning,
)
from sbi_ignite.random_state import random_states, set_random_states
from sbi_ignite.runs.lock import Lock
from sbi_ignite.settings.redaction import SECRET_NAME
from sbi_ignite.summary import TrainingSummary

_POLL_SECONDS = 0.25
_SECONDS_TO_SAVE = 120.0
"""How long a worker whose ensemble was killed may take to finish its batch and save."""

_SECONDS_FOR_ORPHANS = 10.0
"""How long to wait for a worker of a killed ensemble, which saves and ends by itself."""

one_at_a_time = threading.Lock()
"""Members in one process take turns: random states and numbers of threads belong to a process."""


@dataclass(frozen=True)
class Task:
    """What a process must know to train a member.

    Attributes:
        index: Number of the member.
        trainer: The trainer, from `pack`.
        arguments: Arguments of `train()`, from `pack_arguments`.
        seeds: Its seeds.
        threads: Threads that torch may use.
        folder: Where the simulations and the file of progress are.
        environment: Variables that hold during the training, beside those of `passed_on`.
        log_folder: Folder for sbi's own tracker; None if the trainer has another.
        tracker: The trainer's own tracker, pickled; None for sbi's.
        run_directory: The member's; None without checkpoints.
        started_by: Number of the process of the ensemble and name of its machine.
        prints: Whether a logger prints, so that output is left alone.
    """

    index: int
    trainer: bytes
    arguments: bytes
    seeds: MemberSeeds
    threads: int
    folder: SharedFolder
    environment: Mapping[str, str | None] = field(default_factory=dict)
    log_folder: str | None = None
    tracker: bytes | None = None
    run_directory: Path | None = None
    started_by: tuple[int, str] = (0, "")
    prints: bool = False


@dataclass(frozen=True)
class Failure:
    """Why a member has no network.

    Attributes:
        kind: Name of the error.
        message: Its words.
        advice: What to do.
        trace: The traceback, as text.
        error: The error itself, where it can be sent between processes; pickled.
    """

    kind: str
    message: str
    advice: str
    trace: str = ""
    error: bytes | None = None

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.kind}: {self.message}"


@dataclass(frozen=True)
class Outcome:
    """What became of a member.

    Attributes:
        index: Number of the member.
        seeds: Its seeds.
        trainer: The trainer after the training, from `pack`; None if it failed.
        estimator: What `train()` returned, pickled; None if it failed.
        summary: Its summary; None if it failed.
        failure: Why it failed.
        warnings: What was warned of: category and text.
        stacking: Whether its steps were stacked with those of others, and why or why not; None if
            nobody asked for it.
    """

    index: int
    seeds: MemberSeeds
    trainer: bytes | None = None
    estimator: bytes | None = None
    summary: TrainingSummary | None = None
    failure: Failure | None = None
    warnings: tuple[tuple[bytes, str], ...] = ()
    stacking: tuple[bool, str] | None = None


def train_member(task: Task, tensors: Sequence[Tensor] | None = None) -> Outcome:
    """Train a member; the process is afterwards as it was.

    Args:
        task: What to train.
        tensors: The simulations; None reads them from the task's folder.

    Returns:
        The outcome; an error of the training is in it instead of being raised.
    """
    end_with_parent(task.started_by)
    with one_at_a_time:
        return attempt(task, tensors)


Around = Callable[[Any, list[warnings.WarningMessage]], AbstractContextManager[object]]
"""Makes the context in which a trainer is trained, given what it has warned of so far."""


def attempt(task: Task, tensors: Sequence[Tensor] | None, around: Around | None = None) -> Outcome:
    """Train a member, while no other thread trains one; see `train_member`.

    Args:
        task: What to train.
        tensors: The simulations; None reads them from the task's folder.
        around: Makes a context for the call of `train()`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            outcome = _train(task, tensors, lambda trainer: _around(around, trainer, caught))
        except Exception as error:
            outcome = Outcome(task.index, task.seeds, failure=failure_of(error))
    seen = {(cloudpickle.dumps(w.category), str(w.message)): None for w in caught if _matters(w)}
    return replace(outcome, warnings=tuple(seen))


def _around(around: Around | None, trainer: Any, caught: Any) -> AbstractContextManager[object]:
    return contextlib.nullcontext() if around is None else around(trainer, caught)


def _train(
    task: Task,
    tensors: Sequence[Tensor] | None,
    around: Callable[[Any], AbstractContextManager[object]],
) -> Outcome:
    tensors = task.folder.open() if tensors is None else tensors
    with (
        _as_before(),
        _variables(task.environment),
        _patched(task),
        _watched(task) as watch,
        contextlib.nullcontext() if task.prints else contextlib.redirect_stdout(io.StringIO()),
        _tracker(task) as tracker,
    ):
        torch.set_num_threads(task.threads)
        trainer = unpack(task.trainer, tensors, tracker)
        private(trainer).show_progress(False)
        watch(trainer)
        memory_of(trainer).row_seeds = task.seeds.rows
        arguments: dict[str, Any] = cloudpickle.loads(task.arguments)
        _await_orphan(task.run_directory)
        manual_seed(task.seeds.train)
        with around(trainer):
            estimator = trainer.train(**arguments)
        summary = trainer.training_summary
        return Outcome(task.index, task.seeds, pack(trainer), cloudpickle.dumps(estimator), summary)


# --- the process during the training


@contextmanager
def _as_before() -> Iterator[None]:
    """Restore random states and the number of threads."""
    threads, states = torch.get_num_threads(), random_states()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        set_random_states(states)


def passed_on() -> dict[str, str]:
    """Return the variables of this process that decide about settings and trackers.

    Workers may have been started before they were set. Secrets are not among them: tasks may be
    written down on their way.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_PREFIXES) and not SECRET_NAME.search(name)
    }


_PREFIXES = ("SBI_IGNITE_", "WANDB_", "MLFLOW_")


@contextmanager
def _variables(wanted: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables, and remove others of the same kinds."""
    wanted = {**dict.fromkeys(passed_on()), **wanted}
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _patched(task: Task) -> Iterator[None]:
    """Let one of sbi's own trainers be trained by us, also where the patch did not reach."""
    kind, _ = cloudpickle.loads(task.trainer)
    if issubclass(kind, IgniteTrainer) or is_patched():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SbiIgniteWarning)  # of workers, which have nothing to do
        patch = patch_sbi()
    with patch:
        yield


@contextmanager
def _tracker(task: Task) -> Iterator[Any]:
    """Yield the member's tracker: a copy of the user's, or sbi's own in a folder of its own."""
    if task.tracker is not None:
        yield cloudpickle.loads(task.tracker)["tracker"]
        return
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(task.log_folder)
    try:
        yield TensorBoardTracker(writer)
    finally:
        writer.close()


@contextmanager
def _watched(task: Task) -> Iterator[Callable[[Any], None]]:
    """Note progress in the file for it.

    It looks at the trainer from a thread, so that nothing is added to the training itself.
    """
    over, held = threading.Event(), []

    def look() -> None:
        while not over.wait(_POLL_SECONDS):
            if held:
                note_progress(task.folder.progress, task.index, getattr(held[0], "epoch", 0))

    thread = threading.Thread(target=look, daemon=True, name="sbi-ignite-member")
    thread.start()
    try:
        yield held.append
    finally:
        over.set()
        thread.join()


_guarded = False
"""Whether this process watches for the death of the one that has started it."""


def end_with_parent(started_by: tuple[int, str]) -> None:
    """Let a worker save and end once the process of its ensemble is gone.

    Workers of joblib's loky would train on, and then wait forever for somebody to take the result:
    each of them holds open the pipes that the others write to.

    Args:
        started_by: Number of the process of the ensemble and name of its machine.
    """
    global _guarded
    parent = os.getppid()
    if _guarded or started_by != (parent, platform.node()):
        return
    _guarded = True

    def guard() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        if one_at_a_time.locked():  # the training saves itself and gives up the lock
            os.kill(os.getpid(), signal.SIGTERM)
            one_at_a_time.acquire(timeout=_SECONDS_TO_SAVE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=guard, daemon=True, name="sbi-ignite-guard").start()


def _await_orphan(directory: Path | None) -> None:
    """Wait until a worker of a killed ensemble has let go of the member's run directory."""
    if directory is None or not directory.exists():
        return
    limit = time.monotonic() + _SECONDS_FOR_ORPHANS
    while time.monotonic() < limit:
        try:
            Lock(directory / ".lock").release()
        except CheckpointError:
            time.sleep(_POLL_SECONDS)
        else:
            return


# --- progress

_EPOCHS = struct.Struct("<q")


def note_progress(file: Path, index: int, epochs: int) -> None:
    """Write how many epochs a member has finished.

    Args:
        file: The file.
        index: Number of the member.
        epochs: The epochs.
    """
    with contextlib.suppress(OSError, TypeError, struct.error):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, _EPOCHS.pack(epochs), index * _EPOCHS.size)
        finally:
            os.close(descriptor)


def read_progress(file: Path) -> list[int]:
    """Return the finished epochs of the members, as far as they have noted them."""
    try:
        data = file.read_bytes()
    except OSError:
        return []
    whole = len(data) // _EPOCHS.size * _EPOCHS.size
    return [epochs for (epochs,) in _EPOCHS.iter_unpack(data[:whole])]


# --- failures


def failure_of(error: BaseException) -> Failure:
    """Return an error with what to do about it."""
    try:
        pickled = cloudpickle.dumps(error)
        cloudpickle.loads(pickled)
    except Exception:
        pickled = None
    trace = "".join(traceback.format_exception(error))
    return Failure(type(error).__name__, str(error), advice_on(error), trace, pickled)


def advice_on(error: BaseException) -> str:
    """Return what to do about an error that ended a member."""
    if isinstance(error, NonFiniteLossError):
        return (
            "Train it again with a lower learning rate or a smaller clip_max_norm, or look at the "
            "rows that the message names"
        )
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "Train fewer members at a time (n_jobs), or with a smaller batch_size"
    if isinstance(error, CheckpointMismatchError):
        return "Take another directory, or the settings that the ensemble began with"
    if isinstance(error, CheckpointError):
        return "Call again with the same checkpoint=: members that are complete return at once"
    return "Mend the cause; with checkpoint=, a second call trains only what is missing"


def raised(failure: Failure) -> BaseException:
    """Return the error of a failure, to be raised."""
    if failure.error is not None:
        return cloudpickle.loads(failure.error)
    return RuntimeError(f"{failure}\n{failure.trace}")


def _matters(warning: warnings.WarningMessage) -> bool:
    """Say whether a warning is one for the user: of training, and not of how python works."""
    return not issubclass(
        warning.category, DeprecationWarning | PendingDeprecationWarning | ResourceWarning
    )
