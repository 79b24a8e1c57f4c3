"""A run directory and the parts of a training come in; what is there to continue goes out.

Without a directory nothing is read and nothing is saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from torch import Tensor, nn

from sbi_ignite.callback import TrainingState
from sbi_ignite.data.in_memory import Batches
from sbi_ignite.engine.host import Host
from sbi_ignite.engine.state import Snapshots, Stateful, restore
from sbi_ignite.exceptions import CheckpointError, CheckpointMismatchError
from sbi_ignite.handlers.checkpoint import CheckpointHandler, ends_epoch
from sbi_ignite.handlers.signals import StopOnSignals
from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.fingerprint import differences
from sbi_ignite.runs.manifest import make_manifest
from sbi_ignite.settings import CheckpointConfig, Resolved
from sbi_ignite.summary import TrainingSummary


@contextmanager
def persistence(
    settings: Resolved,
    host: Host,
    model: nn.Module,
    parts: Mapping[str, Stateful],
    state: TrainingState,
    train_loader: Any,
    snapshots: Snapshots,
) -> Iterator[Persistence | NoPersistence]:
    """Hold the run directory that the settings or the host name, for the time of a training.

    Args:
        settings: All settings.
        host: What a host library brings along.
        model: The network.
        parts: The parts of the training that remember something.
        state: The training's numbers.
        train_loader: Batches, whose tensors are what the run is recognised by.
        snapshots: Take snapshots of the parts.
    """
    method, manifest = host.method or type(model).__name__, {}
    if settings.checkpoint is not None or settings.logging:
        manifest = make_manifest(
            method=method,
            settings=settings.to_dict(),
            seed=settings.train.seed,
            data=tensors_of(train_loader),
            network=model,
        )
        manifest.update(host.manifest)
    if settings.checkpoint is None:
        # There is nothing to continue from, but what is logged ends with the right status.
        names = ("SIGTERM",) if settings.logging else ()
        signals = StopOnSignals(state, names, only_deadly=True)
        yield NoPersistence(method, manifest, parts, host.resume_from, signals)
        return
    path = host.directory or settings.checkpoint.directory
    with RunDirectory.open(path, settings.checkpoint.keep_last) as directory:
        yield Persistence(
            directory,
            settings.checkpoint,
            method,
            manifest,
            parts,
            state,
            snapshots,
            mid_epoch=isinstance(train_loader, Batches),
            # A thread that writes must not run while a loader forks its workers.
            background=not getattr(train_loader, "num_workers", 0),
        )


class NoPersistence:
    """A training without a run directory; it may continue an earlier call of the same process.

    Args:
        method: Name of the method.
        manifest: What the training is about.
        parts: The parts of the training that remember something.
        found: Snapshot of an earlier call; None for a fresh training.
        signals: The signals that end the training cleanly.
    """

    path: Path | None = None
    earlier_report = ("", "")

    def __init__(
        self,
        method: str,
        manifest: Mapping[str, Any],
        parts: Mapping[str, Stateful],
        found: Mapping[str, Any] | None,
        signals: StopOnSignals,
    ) -> None:
        self.method, self.manifest, self.found = method, manifest, found
        self._parts, self._signals = parts, signals

    def attach(self, engine: Engine) -> None:
        """Save nothing, and look out for signals."""
        self._signals.attach(engine)

    def resume(self) -> None:
        """Bring all parts to where the snapshot stood."""
        if self.found is not None:
            restore(self._parts, self.found)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold signals off for the time of the training."""
        with self._signals:
            yield

    def finish(self) -> None:
        """Save nothing."""

    def conclude(self, summary: TrainingSummary) -> None:
        """Write nothing, and pass on the signal that ended the training.

        Raises:
            SystemExit: If SIGTERM ended it, with the shell's exit code for it.
        """
        self._signals.pass_on()


class Persistence:
    """Ties one training to its run directory.

    Args:
        directory: The directory, held by this process.
        config: How often to save and whether to continue.
        method: Name of the method.
        manifest: What the training is about, from `make_manifest`.
        parts: The parts of the training that remember something.
        state: The training's numbers.
        snapshots: Take snapshots of the parts.
        mid_epoch: Whether the batches know their position inside an epoch.
        background: Whether to write in another thread.

    Attributes:
        found: The states of the checkpoint that is continued; None in a fresh run.
        earlier_report: Which way steps of earlier calls were computed, and why; for a run that is
            complete already.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: CheckpointConfig,
        method: str,
        manifest: Mapping[str, Any],
        parts: Mapping[str, Stateful],
        state: TrainingState,
        snapshots: Snapshots,
        mid_epoch: bool,
        background: bool = True,
    ) -> None:
        self._directory, self._config = directory, config
        self.method, self.manifest = method, manifest
        self._parts, self._state, self._mid_epoch = parts, state, mid_epoch
        self._signals = StopOnSignals(state)
        self._engine: Engine | None = None
        self._handler = CheckpointHandler(
            directory, config, snapshots.take, state, mid_epoch, background
        )
        self.earlier_report: tuple[str, str] = ("", "")
        self.found = self._find()

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
        checkpoint = directory.latest()
        if checkpoint is None and self._config.resume == "must":
            raise CheckpointError(
                f'{directory.path}: there is nothing to continue, and resume="must" asks for it. '
                'Use resume="auto" to start anew.'
            )
        return None if checkpoint is None else checkpoint.states

    def resume(self) -> None:
        """Bring all parts to where the checkpoint stood."""
        if self.found is None:
            return
        restore(self._parts, self.found)
        stopped = self.found.get("stop")
        if stopped is not None:
            self._state.stop(stopped["message"] or stopped["reason"])
            self._state.stop_reason = stopped["reason"]

    def attach(self, engine: Engine) -> None:
        """Save during training; attach it last.

        Args:
            engine: The training engine.
        """
        self._engine = engine
        self._signals.attach(engine)
        self._handler.attach(engine)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold signals off for the time of the training, and note how it ended."""
        self._directory.write_manifest(self.manifest)
        self._handler.start()
        self._handler.save_now()
        try:
            with self._signals:
                yield
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            self._note_end("interrupted" if interrupted else "failed", error=_line(error))
            raise

    def finish(self) -> None:
        """Save the last state, from which a longer training would go on."""
        # Between batches of a foreign loader nothing can be continued: its last epoch's end stays.
        if self._mid_epoch or self._state.iteration == 0 or self._at_epoch_end():
            self._handler.finish()
        self._directory.wait()

    def conclude(self, summary: TrainingSummary) -> None:
        """Write what people read, and pass on the signal that ended the training.

        Raises:
            KeyboardInterrupt: If Ctrl-C ended it.
            SystemExit: If SIGTERM or SIGUSR1 ended it, with the shell's exit code for it.
        """
        if summary.complete:
            self._directory.write_summary(summary.to_dict())
        self._note_end(
            "complete" if summary.complete else "interrupted",
            stop_reason=summary.stop_reason,
            executor=summary.executor,
            executor_reason=summary.executor_reason,
        )
        self._signals.pass_on()

    @property
    def path(self) -> Path | None:
        """Where the files are."""
        return self._directory.path

    def _at_epoch_end(self) -> bool:
        return self._engine is None or ends_epoch(self._engine)

    def _note_end(self, status: str, **values: Any) -> None:
        with contextlib.suppress(CheckpointError):
            self._directory.update_manifest(status=status, **values)


def tensors_of(loader: Any) -> tuple[Tensor, ...] | None:
    """Return the tensors behind batches; None where a loader does not show them."""
    source = getattr(loader, "dataset", loader)
    source = getattr(source, "dataset", source)
    return getattr(source, "tensors", None)


def _line(error: BaseException) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
