"""Tie a training to its run directory: what it continues from, and when it is saved."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ignite.engine import Engine

from sbi_ignite.callback import TrainingState
from sbi_ignite.exceptions import CheckpointError, CheckpointMismatchError, SbiIgniteWarning
from sbi_ignite.handlers.checkpoint import CheckpointHandler, ends_epoch
from sbi_ignite.handlers.signals import StopOnSignals
from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.fingerprint import FUNCTIONS, INIT_FROM, differences
from sbi_ignite.runs.loss_record import changed_variables
from sbi_ignite.runs.machine import changes, in_words
from sbi_ignite.runs.manifest import RESUMES, TORCH_SEED, make_manifest
from sbi_ignite.runs.remembered import recall, remember
from sbi_ignite.runs.snapshot import Snapshot
from sbi_ignite.settings import CheckpointConfig
from sbi_ignite.summary import TrainingSummary
from sbi_ignite.training.state import Saved, Snapshots, Stateful, restore
from sbi_ignite.training.training import Training

_SECONDS_FOR_LAST_WORDS = 1.0


@contextmanager
def persistence(training: Training) -> Iterator[Persistence | NoPersistence]:
    """Hold the run directory of a training, if it has one, while it runs.

    Args:
        training: The training.
    """
    settings, place = training.settings, training.hooks.place
    manifest = _manifest(training) if settings.checkpoint is not None or settings.logging else {}
    if settings.checkpoint is None:
        yield NoPersistence(manifest, training.parts, training.hooks.resume_from, training.signals)
        return
    path = place.directory or settings.checkpoint.directory
    with RunDirectory.open(path, settings.checkpoint.keep_last) as directory:
        files = Persistence(
            directory,
            settings.checkpoint,
            manifest,
            training.parts,
            training.state,
            training.snapshots,
            training.loggers,
            training.hooks.resume_from,
            training.signals,
            mid_epoch=training.train_batches.resumes_inside_epoch,
            how_computed=training.how_computed,
            # A writer thread must not run while a loader forks its workers.
            background=not training.train_batches.uses_processes,
        )
        try:
            yield files
        except BaseException as error:
            files.fail(error)
            raise


def _manifest(training: Training) -> dict[str, Any]:
    """Return what identifies the training."""
    manifest = make_manifest(
        method=training.method,
        settings=training.settings.to_dict(),
        seed=training.settings.train.seed,
        data=training.train_batches.fingerprint(),
        validation_data=_validation_data(training),
        optimizer=training.users_optimizer,
        scheduler=training.users_scheduler,
        network=training.model,
    )
    return {**manifest, **training.hooks.place.manifest}


def _validation_data(training: Training) -> list[dict[str, Any]] | None:
    """Return the fingerprint of validation data that are not part of the training data."""
    batches, known = training.val_batches, training.train_batches.tensors
    if batches is None or batches.tensors is None:
        return None
    if known is not None and set(map(id, batches.tensors)) <= set(map(id, known)):
        return None  # a trainer's rows, or subsets of one dataset
    return batches.fingerprint()


_NEW_VALUES = "The run goes on with the new ones"
_OLD_VALUES = "The run is complete, and was trained with the old ones"


class NoPersistence:
    """A training without a run directory; it may continue an earlier call of the same process.

    Args:
        manifest: What the training is about.
        parts: The parts of the training that remember something.
        found: Snapshot of an earlier call; None for a fresh training.
        signals: The signals that end the training cleanly.
    """

    path: Path | None = None
    earlier_report = ("", "")

    def __init__(
        self,
        manifest: Mapping[str, Any],
        parts: Mapping[str, Stateful],
        found: Mapping[str, Any] | None,
        signals: StopOnSignals,
    ) -> None:
        self.manifest, self.found = manifest, found
        self._parts, self._signals = parts, signals

    def attach(self, engine: Engine) -> None:
        """Save nothing, but watch for signals."""
        self._signals.attach(engine)

    @property
    def remembered(self) -> dict[str, Any]:
        """What the loggers remembered in the call that is continued."""
        return dict((self.found or {}).get("loggers", {}))

    def require_writable(self) -> None:
        """Do nothing: nothing will be written."""

    def resume(self) -> None:
        """Restore all parts from the snapshot."""
        if self.found is not None:
            restore(self._parts, self.found)

    def note_resume(self) -> None:
        """Say nothing: it is the same process that continues."""

    @contextmanager
    def running(self, trains: bool = True) -> Iterator[None]:
        """Note nothing."""
        del trains
        yield

    def finish(self) -> None:
        """Save nothing."""

    def conclude(self, summary: TrainingSummary) -> None:
        """Write nothing."""


class Persistence:
    """Ties one training to its run directory.

    Args:
        directory: The directory, held by this process.
        config: How often to save and whether to continue.
        manifest: What the training is about, from `make_manifest`.
        parts: The parts of the training that remember something.
        state: The training's numbers.
        snapshots: Take snapshots of the parts.
        loggers: Remember where they log to.
        earlier: Snapshot of an earlier call, to continue from if the directory has nothing.
        signals: The signals that end the training cleanly.
        mid_epoch: Whether the batches know their position inside an epoch.
        how_computed: Returns how steps were computed, and why not in a faster way.
        background: Whether to write in another thread.

    Attributes:
        found: The states of the checkpoint that is continued; None in a fresh run.
        earlier_report: How steps of earlier calls were computed, and why; for a run that is
            already complete.
        torch_seeds: The seed of torch's generator when the run in the directory began, and the one
            in this process.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: CheckpointConfig,
        manifest: Mapping[str, Any],
        parts: Mapping[str, Stateful],
        state: TrainingState,
        snapshots: Snapshots,
        loggers: Saved,
        earlier: Mapping[str, Any] | None,
        signals: StopOnSignals,
        mid_epoch: bool,
        how_computed: Callable[[], tuple[str, str]],
        background: bool = True,
    ) -> None:
        self._directory, self._config = directory, config
        self.manifest = manifest
        self._parts, self._state, self._mid_epoch = parts, state, mid_epoch
        self._signals, self._began = signals, False
        self._how_computed = how_computed
        self._changed: dict[str, list[Any]] = {}
        self._engine: Engine | None = None
        self._snapshots, self._loggers = snapshots, loggers
        self._only_reads = False
        self._handler = CheckpointHandler(
            directory, config, self._take, state, mid_epoch, background
        )
        self.earlier_report: tuple[str, str] = ("", "")
        self.torch_seeds: tuple[int | None, int | None] = (None, None)
        saved = self._find()
        self._saved_logs = (saved or {}).get("loggers", {})
        self.found = saved or earlier

    def _find(self) -> Mapping[str, Any] | None:
        """Return the states to continue from, if there are any and they belong to this training."""
        directory = self._directory
        if self._config.resume == "never":
            directory.set_aside()
        saved = directory.read_manifest()
        if saved is not None:
            self.earlier_report = (saved.get("executor", ""), saved.get("executor_reason", ""))
        different = differences(saved, self.manifest) if saved is not None else []
        if different:
            raise CheckpointMismatchError(f"{directory.path}: " + "\n".join(different))
        if saved is not None:
            self._changed = changes(saved, self.manifest)
            self._warn_of_loss(saved)
            now = self.manifest.get(TORCH_SEED)
            self.torch_seeds = saved.get(TORCH_SEED, now), now
            kept = {name: saved[name] for name in (RESUMES, TORCH_SEED, INIT_FROM) if name in saved}
            self.manifest = {**self.manifest, **kept}
        checkpoint = directory.latest()
        if checkpoint is None and self._config.resume == "must":
            raise CheckpointError(
                f'{directory.path}: there is nothing to continue, and resume="must" asks for it. '
                'Use resume="auto" to start anew.'
            )
        return None if checkpoint is None else checkpoint.states

    def _warn_of_loss(self, saved: Mapping[str, Any]) -> None:
        """Say if variables differ that the loss function, or a part of it, reads."""
        for key, what in FUNCTIONS.items():
            if key not in saved or key not in self.manifest:
                continue
            changed = changed_variables(saved[key], self.manifest[key])
            if not changed:
                continue
            warnings.warn(
                f"{self._directory.path}: the {what} {self.manifest[key]['name']} reads "
                f"other values than when this run was last started: {changed}. "
                f"{_OLD_VALUES if saved.get('status') == 'complete' else _NEW_VALUES}; start with "
                'resume="never" or in another directory to train with the new ones from the '
                "beginning.",
                SbiIgniteWarning,
                stacklevel=8,
            )

    @property
    def remembered(self) -> dict[str, Any]:
        """What the loggers of the run remembered, as far as it is still the run's own."""
        directory, earlier = self._directory, (self.found or {}).get("loggers", {})
        if self._saved_logs:
            return recall(self._saved_logs, directory.path, directory.run, directory.identity)
        return dict(earlier)

    def _remembering(self) -> dict[str, Any]:
        """Return what the loggers remember, in the form that checkpoints hold."""
        directory = self._directory
        return remember(self._loggers.state_dict(), directory.path, directory.identity)

    def _logs_elsewhere(self) -> bool:
        """Say whether a logger remembers something that the run does not."""
        saved, now = self._saved_logs, self._remembering()
        return any(saved.get(name) != state for name, state in now.items() if name != "iterations")

    def _take(self) -> Snapshot:
        return self._snapshots.take().with_words(loggers=self._remembering())

    def require_writable(self) -> None:
        """Check that the training, if it continues, can be saved.

        Raises:
            CheckpointError: If the run can only be read.
        """
        self._directory.require_writable()

    def resume(self) -> None:
        """Restore all parts from the checkpoint."""
        if self.found is None:
            return
        restore(self._parts, self.found)
        stopped = self.found.get("stop")
        if stopped is not None:
            self._state.stop(stopped["message"] or stopped["reason"])
            self._state.stop_reason = stopped["reason"]

    def note_resume(self) -> None:
        """Say, also in run.json, if what is trained on now may differ in its last bits."""
        if self.found is None or not self._changed:
            return
        note = {"epoch": self._state.epoch, "iteration": self._state.iteration}
        notes = [*self.manifest.get(RESUMES, ()), {**note, "changed": self._changed}]
        self.manifest = {**self.manifest, RESUMES: notes}
        warnings.warn(
            f"{self._directory.path}: this run continues under other conditions, so its numbers "
            f"may differ in the last bits from those of an uninterrupted run: "
            f"{in_words(self._changed)}.",
            SbiIgniteWarning,
            stacklevel=3,
        )

    def attach(self, engine: Engine) -> None:
        """Save during training; attach this last.

        Args:
            engine: The training engine.
        """
        self._engine = engine
        self._signals.attach(engine)
        self._handler.attach(engine)

    @contextmanager
    def running(self, trains: bool = True) -> Iterator[None]:
        """Record that the training runs, and any error that ends it, before others hear of it.

        Args:
            trains: Whether there is anything left to train. A complete run that has all its files
                is not rewritten.

        Warns:
            SbiIgniteWarning: Off the main thread, where no signals arrive.
        """
        directory = self._directory
        if not trains:
            self._only_reads = directory.read_only or (
                directory.is_whole() and not self._logs_elsewhere()
            )
        if self._only_reads:
            yield
            return
        if trains and threading.current_thread() is not threading.main_thread():
            warnings.warn(
                f"{self.path}: this training runs in a thread, so that SIGTERM, SIGUSR1 and Ctrl-C "
                "end the process without saving first; it can be continued from the last "
                "checkpoint. Train on the main thread, of another process if need be.",
                SbiIgniteWarning,
                stacklevel=5,
            )
        saved = {} if trains else directory.read_manifest() or {}
        # A complete run stays complete at every moment, for others that may be reading it.
        directory.write_manifest(saved if saved.get("status") == "complete" else self.manifest)
        self._handler.start()
        self._handler.save_now()
        self._began = True
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Record the error that ended the training; only the first one."""
        if not self._began:
            return
        self._began = False
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        executor, reason = self._how_computed()
        words = {
            "status": "interrupted" if interrupted else "failed",
            "error": _line(error),
            "executor": executor,
            "executor_reason": reason,
        }
        with contextlib.suppress(CheckpointError):
            if isinstance(error, KeyboardInterrupt):  # a user who insists must not wait for a disk
                self._directory.update_manifest_soon(_SECONDS_FOR_LAST_WORDS, **words)
            else:
                self._directory.update_manifest(**words)

    def finish(self) -> None:
        """Save the last state, from which a longer training would continue."""
        if self._only_reads:
            return
        # A foreign loader cannot be resumed between batches: the end of its last epoch stays saved.
        # Nor can a training that was cut short in mid-validation.
        whole = self._mid_epoch or self._state.iteration == 0 or self._at_epoch_end()
        if whole and not self._signals.cut_in_loader:
            self._handler.finish()
        self._directory.wait()

    def conclude(self, summary: TrainingSummary) -> None:
        """Write what people read."""
        if self._only_reads:
            return
        if summary.complete:
            self._directory.write_summary(summary.to_dict())
        status = "complete" if summary.complete else "interrupted"
        with contextlib.suppress(CheckpointError):
            self._directory.update_manifest(
                status=status,
                stop_reason=summary.stop_reason,
                executor=summary.executor,
                executor_reason=summary.executor_reason,
            )
        self._began = False

    @property
    def path(self) -> Path | None:
        """Where the files are."""
        return self._directory.path

    def _at_epoch_end(self) -> bool:
        return self._engine is None or ends_epoch(self._engine)


def _line(error: BaseException) -> str:
    """Return an error as one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
