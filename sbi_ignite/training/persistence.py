"""Tie a training to its run directory: what it continues from, and when it is saved."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine

from sbi_ignite.callback import TrainingState
from sbi_ignite.exceptions import (
    CheckpointError,
    CheckpointMismatchError,
    RankFailedError,
    SbiIgniteError,
    SbiIgniteWarning,
)
from sbi_ignite.handlers.checkpoint import CheckpointHandler, NoFiles, ends_epoch
from sbi_ignite.handlers.signals import StopOnSignals
from sbi_ignite.handlers.stopping import StopOnRules, rules_as_now
from sbi_ignite.random_state import random_states
from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.fingerprint import FUNCTIONS, INIT_FROM, differences
from sbi_ignite.runs.loss_record import changed_variables, describe_dataset, describe_modules
from sbi_ignite.runs.machine import changes, in_words
from sbi_ignite.runs.manifest import RESUMES, TORCH_SEED, WORLD_SIZE, make_manifest
from sbi_ignite.runs.remembered import folders_outside, recall, remember
from sbi_ignite.runs.snapshot import Snapshot
from sbi_ignite.runs.status import FINISHED
from sbi_ignite.settings import CheckpointConfig
from sbi_ignite.settings.checkpoint import START_ANEW
from sbi_ignite.summary import TrainingSummary
from sbi_ignite.training.state import Saved, Snapshots, Stateful, restore
from sbi_ignite.training.training import Training
from sbi_ignite.world import ONE, World

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
    path, world = place.directory or settings.checkpoint.directory, training.world
    if world.rank:
        yield FollowingPersistence(training, settings.checkpoint, manifest, world)
        return
    with ExitStack() as stack:
        with _first_rank_alone(world):
            directory = stack.enter_context(RunDirectory.open(path, settings.checkpoint.keep_last))
            files = Persistence(
                directory,
                settings.checkpoint,
                manifest,
                training.parts,
                training.state,
                training.snapshots,
                training.loggers,
                training.stopping,
                training.hooks.resume_from,
                training.signals,
                mid_epoch=training.train_batches.resumes_inside_epoch,
                how_computed=training.how_computed,
                # A writer thread must not run while a loader forks its workers.
                background=not training.train_batches.uses_processes,
                ranks=_rank_states(training),
                decide=training.together.decide,
            )
        world.from_first(files.for_followers())
        try:
            yield files
        except BaseException as error:
            files.fail(error)
            raise


@contextmanager
def _first_rank_alone(world: World) -> Iterator[None]:
    """Tell the other ranks about an error that ends the block on the first one."""
    try:
        yield
    except Exception as error:
        world.from_first({"error": (type(error), str(error))})
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
        modules=describe_modules(training.model),
        dataset=describe_dataset(training.train_batches.maker),
    )
    return {**manifest, WORLD_SIZE: training.world.size, **training.hooks.place.manifest}


def _validation_data(training: Training) -> list[dict[str, Any]] | None:
    """Return the fingerprint of validation data that are not part of the training data."""
    batches, known = training.val_batches, training.train_batches.tensors
    if batches is None or batches.tensors is None:
        return None
    if known is not None and set(map(id, batches.tensors)) <= set(map(id, known)):
        return None  # a trainer's rows, or subsets of one dataset
    return batches.fingerprint()


def _rank_states(training: Training) -> RankStates:
    in_parts = training.settings.train.shards == "own"
    same_draws = training.hooks.steps.same_draws
    return RankStates(training.world, training.parts, in_parts, same_draws)


_WHERE_IT_IS = "(deleted, or the run was killed before its first)"
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


class RankStates:
    """What each of several processes has of its own: random states, and sums inside an epoch.

    Args:
        world: The processes.
        parts: The parts of the training.
        in_parts: Whether each process has rows of its own.
        same_draws: Whether all of them draw the same random numbers.
    """

    NAME = "ranks"
    """Name under which checkpoints hold it."""

    def __init__(
        self, world: World, parts: Mapping[str, Stateful], in_parts: bool, same_draws: bool
    ) -> None:
        self.world, self._parts = world, parts
        self._in_parts, self._same_draws = in_parts, same_draws
        own = ("train_loss", "books", "batches") if in_parts else ("train_loss",)
        self._own = tuple(name for name in own if name in parts)

    def gathered(self) -> dict[str, Any]:
        """Return the states of all processes, as texts; nothing for a single one."""
        if self.world is ONE:
            return {}
        own = {name: self._parts[name].state_dict() for name in self._own}
        own["random"] = random_states()
        file = io.BytesIO()
        torch.save(own, file)
        texts = self.world.gather(base64.b64encode(file.getvalue()).decode("ascii"))
        return {self.NAME: {str(rank): text for rank, text in enumerate(texts)}}

    def given_back(self, found: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the states of a checkpoint with this process's own in their places.

        With another number of processes than the checkpoint has, sums are those of all of them, and
        random states other ones.
        """
        texts = found.get(self.NAME)
        rank, size = self.world.rank, self.world.size
        nothing = {"loss_sum": 0.0, "rows": 0}
        if texts is None:
            return {**found, **self._noise(found), "train_loss": nothing} if rank else found
        states = [_loaded(texts[str(number)]) for number in range(len(texts))]
        if len(states) == size:
            return {**found, **states[rank]}
        if self._in_parts:
            raise CheckpointMismatchError(
                f"This run began with {len(states)} processes that each had rows of its own "
                f'(shards="own"), now there are {size}. Start {len(states)} again, with the same '
                f"rows each, or begin a new run with {START_ANEW}."
            )
        sums = [state["train_loss"] for state in states]
        of_all = {name: sum(one[name] for one in sums) for name in ("loss_sum", "rows")}
        sums_here = nothing if rank else of_all
        return {**found, **self._noise(states[0]), "train_loss": sums_here}

    def _noise(self, first: Mapping[str, Any]) -> dict[str, Any]:
        """Return random states to continue with, given those of the first process."""
        own = self.world.rank and not self._same_draws
        return {"random": random_states() if own else first["random"]}


def _loaded(text: str) -> dict[str, Any]:
    return torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)


class FollowingPersistence(NoPersistence):
    """A process that trains with the first one, which has the run directory.

    It is given what the first one continues from, and its states when that one saves.

    Args:
        training: The training.
        config: How often to save.
        manifest: What the training is about.
        world: The processes.
    """

    def __init__(
        self,
        training: Training,
        config: CheckpointConfig,
        manifest: Mapping[str, Any],
        world: World,
    ) -> None:
        told = world.from_first({})
        if "error" in told:
            kind, words = told["error"]
            known = isinstance(kind, type) and issubclass(kind, SbiIgniteError)
            raise kind(words) if known else RankFailedError(f"Rank 0 ended with {words}")
        ranks = _rank_states(training)
        found = told["found"]
        if found is not None:
            found = ranks.given_back(found)
        elif training.hooks.resume_from is not None:
            found = training.hooks.resume_from
        super().__init__(manifest, training.parts, found, training.signals)
        self.path, self.earlier_report = told["path"], told["earlier_report"]
        self._state, self._world, self._config = training.state, world, config
        self._stopping = training.stopping
        self._mid_epoch = training.train_batches.resumes_inside_epoch
        self._engine: Engine | None = None
        self._only_reads = False

        def take() -> Snapshot:
            ranks.gathered()
            return Snapshot.of({})

        self._handler = CheckpointHandler(
            NoFiles(),
            config,
            take,
            training.state,
            self._mid_epoch,
            background=False,
            decide=training.together.decide,
        )

    def attach(self, engine: Engine) -> None:
        """Send states when the first process saves; attach this last."""
        self._engine = engine
        super().attach(engine)
        self._handler.attach(engine)

    def resume(self) -> None:
        """Restore all parts from what the first process has found."""
        super().resume()
        _note_stop(self._state, self.found, self._stopping)

    @contextmanager
    def running(self, trains: bool = True) -> Iterator[None]:
        """Send states for the checkpoint of the beginning."""
        del trains
        self._only_reads = self._world.from_first(self._only_reads)
        if not self._only_reads:
            self._handler.save_now()
        yield

    def finish(self) -> None:
        """Send states for the last checkpoint, if there is one."""
        whole = self._mid_epoch or self._state.iteration == 0 or _at_epoch_end(self._engine)
        if whole and not self._only_reads and not self._signals.cut_in_loader:
            self._handler.finish()


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
        stopping: The stopping rules.
        earlier: Snapshot of an earlier call, to continue from if the directory has nothing.
        signals: The signals that end the training cleanly.
        mid_epoch: Whether the batches know their position inside an epoch.
        how_computed: Returns how steps were computed, and why not in a faster way.
        background: Whether to write in another thread.
        ranks: Gathers what each of several processes has of its own.
        decide: Makes a decision of one process that of all, see `Together.decide`.

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
        stopping: StopOnRules,
        earlier: Mapping[str, Any] | None,
        signals: StopOnSignals,
        mid_epoch: bool,
        how_computed: Callable[[], tuple[str, str]],
        ranks: RankStates,
        background: bool = True,
        decide: Callable[[Callable[[], bool]], Callable[[], bool]] = lambda flag: flag,
    ) -> None:
        self._ranks = ranks
        self._directory, self._config = directory, config
        self.manifest = dict(manifest)
        self._parts, self._state, self._mid_epoch = parts, state, mid_epoch
        self._signals, self._began = signals, False
        self._how_computed = how_computed
        self._changed: dict[str, list[Any]] = {}
        self._engine: Engine | None = None
        self._snapshots, self._loggers, self._stopping = snapshots, loggers, stopping
        self._only_reads = False
        self._handler = CheckpointHandler(
            directory, config, self._take, state, mid_epoch, background, decide
        )
        self.earlier_report: tuple[str, str] = ("", "")
        self.torch_seeds: tuple[int | None, int | None] = (None, None)
        saved = self._find()
        self._saved_logs = (saved or {}).get("loggers", {})
        directory.compare_with_logs(self._logs_outside())
        self._left_word: set[Path] = set()
        self._saved = saved
        self.found = ranks.given_back(saved) if saved else earlier

    def for_followers(self) -> dict[str, Any]:
        """Return what the other processes are told about the run that is continued."""
        if self._ranks.world is ONE:
            return {}
        return {
            "found": self._saved,
            "path": self._directory.path,
            "earlier_report": self.earlier_report,
        }

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
            self._warn_of_frozen(saved)
            now = self.manifest.get(TORCH_SEED)
            self.torch_seeds = saved.get(TORCH_SEED, now), now
            kept = {name: saved[name] for name in (RESUMES, TORCH_SEED, INIT_FROM) if name in saved}
            self.manifest = {**self.manifest, **kept}
        checkpoint = directory.latest()
        if checkpoint is not None:
            return rules_as_now(checkpoint.states)
        lost = "" if saved is None else f": run.json is here, but no checkpoint {_WHERE_IT_IS}"
        if self._config.resume == "must":
            raise CheckpointError(
                f'{directory.path}: there is nothing to continue, and resume="must" asks for it'
                f'{lost}. Use resume="auto" to start anew.'
            )
        if saved is not None:
            self._start_over(lost)
        return None

    def _start_over(self, lost: str) -> None:
        """Begin a run anew whose checkpoints are gone; what is left of it is kept."""
        aside = self._directory.set_aside() if self._directory.has_results() else None
        self.earlier_report, self._changed = ("", ""), {}
        self.torch_seeds = (None, None)
        for name in (RESUMES, TORCH_SEED):
            self.manifest.pop(name, None)
        self.manifest[TORCH_SEED] = torch.initial_seed()
        warnings.warn(
            f"{self._directory.path}{lost}. Training starts over from the beginning"
            f"{'' if aside is None else f'; what was left is in {aside.name}/'}.",
            SbiIgniteWarning,
            stacklevel=9,
        )

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
                f"{START_ANEW} or in another directory to train with the new ones from the "
                "beginning.",
                SbiIgniteWarning,
                stacklevel=8,
            )

    def _warn_of_frozen(self, saved: Mapping[str, Any]) -> None:
        """Say if frozen weights are others than the run's, such as another pretrained module.

        They may also be drawn without a seed, so that refusing would make such a run end for good.
        """
        before, now = (m.get("network") or {} for m in (saved, self.manifest))
        if before.get("digest") == now.get("digest") and before.get("frozen") not in (
            None,
            now.get("frozen"),
        ):
            warnings.warn(
                f"{self._directory.path}: the network's frozen weights are not those that the run "
                "began with, such as those of another pretrained module. The run goes on with its "
                f"own; start with {START_ANEW} or in another directory to train with the new ones "
                "from the beginning.",
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

    def _logs_outside(self) -> list[Path]:
        """Return the folders outside the directory where the run has logged, as they are now."""
        directory, logs = self._directory, self._saved_logs
        # Without regard to whose they are, which is the question.
        logs = recall(logs, directory.path, directory.run, logs.get("run", directory.run))
        return folders_outside(logs, directory.path)

    def _leave_word(self, states: Mapping[str, Any]) -> None:
        folders = set(folders_outside(states, self._directory.path)) - self._left_word
        self._directory.leave_word(folders)
        self._left_word |= folders

    def _remembering(self) -> dict[str, Any]:
        """Return what the loggers remember, in the form that checkpoints hold."""
        directory = self._directory
        states = self._loggers.state_dict()
        self._leave_word(states)
        return remember(states, directory.path, directory.identity)

    def _logs_elsewhere(self) -> bool:
        """Say whether a logger remembers something that the run does not."""
        saved, now = self._saved_logs, self._remembering()
        return any(saved.get(name) != state for name, state in now.items() if name != "iterations")

    def _take(self) -> Snapshot:
        own = self._ranks.gathered()
        return self._snapshots.take().with_words(loggers=self._remembering(), **own)

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
        _note_stop(self._state, self.found, self._stopping, self.path)

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
        self._ranks.world.from_first(self._only_reads)
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
        directory.write_manifest(saved if saved.get("status") in FINISHED else self.manifest)
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
        whole = self._mid_epoch or self._state.iteration == 0 or _at_epoch_end(self._engine)
        if whole and not self._signals.cut_in_loader:
            self._handler.finish()
        self._directory.wait()

    def conclude(self, summary: TrainingSummary) -> None:
        """Write what people read."""
        if self._only_reads:
            return
        if summary.complete:
            self._directory.write_summary(summary.to_dict())
        status = summary.status
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


def _at_epoch_end(engine: Engine | None) -> bool:
    return engine is None or ends_epoch(engine)


def _note_stop(
    state: TrainingState,
    found: Mapping[str, Any] | None,
    stopping: StopOnRules,
    path: Path | None = None,
) -> None:
    """Note a request to stop that no rule would make again.

    Args:
        state: Where it is noted.
        found: States of the checkpoint.
        stopping: The rules of this call, which take back what another rule of the user's asked.
        path: The run directory, where there is something to say.
    """
    stopped = (found or {}).get("stop")
    if stopped is None:
        return
    if stopped["reason"] == "rule":
        ended_by = list(stopping.ended_by_user())
        if not ended_by:
            return
        changed = next(filter(None, ended_by), "")
        if changed and path is not None:
            warnings.warn(
                f"{path}: the run here was ended by a stopping rule that now reads other values: "
                f"{changed}. It is complete under the old ones and is returned as it is; pass them "
                "as arguments of the rule, by functools.partial, to let them decide again.",
                SbiIgniteWarning,
                stacklevel=5,
            )
    state.stop(stopped["message"] or stopped["reason"])
    state.stop_reason = stopped["reason"]


def _line(error: BaseException) -> str:
    """Return an error as one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
