"""The run directory: the files from which a training is read and continued.

    runs/exp1/            (round-0/, round-1/, … below it for several rounds)
      run.json            manifest
      metrics.jsonl       one line per epoch
      checkpoint-*.pt     the newest few; best.pt: best weights
      summary.json        when complete

Tensor files are a line of JSON with a checksum, followed by what `torch.save` writes; they are read
only with `torch.load(weights_only=True)`. The best weights are stored in best.pt only, to which
checkpoints refer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from sbi_ignite.exceptions import CheckpointError, SbiIgniteWarning
from sbi_ignite.runs.files import (
    FULL,
    Chunk,
    DamagedError,
    Header,
    UnknownVersionError,
    checksum,
    encode_tensors,
    json_line,
    read_header,
    read_json,
    read_tensors,
    remove_temporary_files,
    strict,
    sync_folder,
    write_json,
    write_whole,
)
from sbi_ignite.runs.lock import Lock
from sbi_ignite.runs.original import note_home, original_in, original_of
from sbi_ignite.runs.packing import pack, unpack
from sbi_ignite.runs.snapshot import BEST, BestCopy, Snapshot, from_file
from sbi_ignite.runs.status import FINISHED
from sbi_ignite.runs.writer import Writer
from sbi_ignite.settings.checkpoint import START_ANEW

_ADVICE = (
    f"Put back a copy of the directory; to train anew, pass {START_ANEW}, which moves the old "
    "files aside, or take another directory"
)


@dataclass(frozen=True)
class Checkpoint:
    """A training as it stood.

    Attributes:
        path: The file.
        epoch: Finished epochs.
        iteration: Finished optimizer steps.
        states: What was saved.
    """

    path: Path
    epoch: int
    iteration: int
    states: dict[str, Any]


@dataclass(frozen=True)
class _KnownBest:
    """What best.pt held when this process wrote or verified it last, and how to tell a change."""

    digest: str
    mark: tuple[int, int, int] | None


class RunDirectory:
    """The files of one run, held by one process. Make one with `RunDirectory.open`.

    A run that is moved stays the same run. One that is copied, so that the original is still where
    it was, has another `identity` from then on.

    Attributes:
        path: The directory.
        run: Identifier that all files of the run share, those of its copies included.
        identity: Identifier that tells the run from its copies.

    Example:
        >>> import tempfile
        >>> with RunDirectory.open(tempfile.mkdtemp()) as directory:
        ...     _ = directory.write(1, 10, Snapshot.of({"state": {"epoch": 1}}))
        ...     directory.latest().states
        {'state': {'epoch': 1}}
    """

    def __init__(
        self,
        path: Path,
        lock: Lock | None,
        keep_last: int,
        refusal: CheckpointError | None = None,
    ) -> None:
        # A program may change its working directory while it trains.
        self.path, self.keep_last = path.absolute(), keep_last
        self._lock, self._refusal = lock, refusal
        self._writer: Writer | None = None
        self._writing: Future[None] | None = None
        self._warned = False
        self._damaged: set[Path] = set()
        self._last_best: BestCopy | None = None
        self._known_best: _KnownBest | None = None
        self._references: dict[str, str | None] = {}
        self._unwritten_manifest: Mapping[str, Any] | None = None
        self._read_identity()

    # --- opening and closing

    @classmethod
    def open(cls, path: str | os.PathLike[str], keep_last: int = 2) -> Self:
        """Create the directory if needed, keep other processes out, and tidy up.

        A complete run is opened for reading where it cannot be held: on a read-only disk, or while
        another process holds it.

        Args:
            path: The directory.
            keep_last: How many of the newest checkpoints are kept.

        Raises:
            CheckpointError: If another process trains there, or nothing can be written there, and
                there is no complete run to read.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be used as a run directory: {error.strerror}."
            ) from error
        lock = None
        try:
            lock = Lock(path / ".lock")
            _check_writable(path)
            remove_temporary_files(path)
            return cls(path, lock, keep_last)
        except BaseException as error:
            if lock is not None:
                lock.release()
            if isinstance(error, CheckpointError) and _is_complete(path):
                return cls(path, None, keep_last, refusal=error)
            raise

    @property
    def read_only(self) -> bool:
        """Whether the run can only be read."""
        return self._refusal is not None

    def require_writable(self) -> None:
        """Check that the run can be written.

        Raises:
            CheckpointError: If it can only be read; the message says why.
        """
        if self._refusal is not None:
            raise CheckpointError(
                f"{self._refusal} The run in it is complete and can be read, but not changed or "
                "continued."
            ) from self._refusal

    def is_whole(self) -> bool:
        """Say whether the run is complete, with its manifest, summary and metrics up to date."""
        found = metrics_checksum(self.path)
        try:
            manifest, summary = read_manifest(self.path) or {}, read_summary(self.path, self.run)
        except CheckpointError:
            return False
        who = self._who()
        is_mine = all(manifest.get(name) == value for name, value in who.items())
        if manifest.get("status") not in FINISHED or not is_mine:
            return False
        return summary is not None and summary["metrics_checksum"] == found

    def has_results(self) -> bool:
        """Say whether there is anything here that a run took time for, besides checkpoints."""
        metrics = self.path / "metrics.jsonl"
        found = (self.best_path, self.path / "summary.json", *self.path.glob("round-*"))
        return any(path.exists() for path in found) or (
            metrics.exists() and metrics.stat().st_size > 0
        )

    def close(self) -> None:
        """Finish what is being written and let other processes in."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            self._release()

    def abandon(self) -> None:
        """Do not wait; other processes are let in once pending writes are done."""
        writer, self._writer = self._writer, None
        if writer is None:
            self._release()
        else:
            writer.submit(self._release)
            writer.close(wait=False)

    def _release(self) -> None:
        """Let other processes in; a run that is only read was never locked."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.abandon()
        else:
            self.close()

    # --- checkpoints

    def write(self, epoch: int, iteration: int, snapshot: Snapshot) -> bool:
        """Save a snapshot safely; older checkpoints are pruned afterwards.

        Args:
            epoch: Finished epochs.
            iteration: Finished optimizer steps.
            snapshot: The training at that moment.

        Returns:
            Whether it was saved. If not (the disk is full), there is a warning, and the earlier
            checkpoints are as they were.

        Raises:
            CheckpointError: If the snapshot holds something that cannot be saved.
        """
        self.require_writable()
        self.wait()
        snapshot.require_savable()
        try:
            self._write(epoch, iteration, snapshot)
        except OSError as error:
            self.report(error)
            return False
        self._warned = False
        return True

    def write_in_background(self, epoch: int, iteration: int, snapshot: Snapshot) -> None:
        """Save a snapshot while the training goes on, after the one before it.

        A failure is reported by a warning at the next call, or by `wait`.
        """
        self.require_writable()
        self.wait()
        snapshot.require_savable()
        self._writing = self._submit(lambda: self._write(epoch, iteration, snapshot))

    def wait(self) -> None:
        """Wait until everything is on the disk; warn once if something could not be written."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except OSError as error:
            self.report(error)
        else:
            self._warned = False

    def report(self, failure: OSError) -> None:
        """Warn that something could not be saved; once, until saving works again."""
        self._last_best = None
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"{self.path}: nothing could be saved ({failure.strerror}); training goes on, and what "
            "was saved before can still be continued from.",
            SbiIgniteWarning,
            stacklevel=3,
        )

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is intact, None if there is none at all.

        A damaged one is skipped with a warning.

        Raises:
            CheckpointError: If there are checkpoints, but none can be read.
        """
        self.wait()
        paths = self._checkpoints()
        if paths:
            self._require_manifest()
        problems: dict[Path, str] = {}
        for path in reversed(paths):
            try:
                checkpoint = self._read(path)
            except UnknownVersionError as error:
                raise CheckpointError(f"{path}: {error}.") from error
            except DamagedError as error:
                problems[path] = str(error)
                continue
            self._damaged = set(problems)
            if problems:
                warnings.warn(
                    f"{_listed(problems)}; continuing from {path.name} instead.",
                    SbiIgniteWarning,
                    stacklevel=2,
                )
            return checkpoint
        if problems:
            raise CheckpointError(
                f"{self.path}: no checkpoint can be read: {_listed(problems)}. {_ADVICE}."
            )
        return None

    # --- best weights

    def write_best(self, weights: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> str:
        """Write best.pt; the one before is kept as long as a checkpoint needs it.

        Args:
            weights: A state dict.
            meta: Plain data to go with it, such as {"epoch": 12}.

        Returns:
            Digest of the file.

        Raises:
            CheckpointError: If it cannot be written.
        """
        self.require_writable()
        self.wait()
        self._last_best = None
        meta = dict(meta or {})
        try:
            digest = self._put_best(pack({"weights": weights}), int(meta.pop("epoch", 0)), meta)
            sync_folder(self.path)
        except OSError as error:
            raise CheckpointError(
                f"{self.best_path} cannot be written: {error.strerror}."
            ) from error
        return digest

    def read_best(self) -> dict[str, Any] | None:
        """Return {"weights", "epoch", "digest", "meta"} of best.pt, None if there is none.

        Raises:
            CheckpointError: If it is damaged, or belongs to another run.
        """
        self.wait()
        return read_best(self.path)

    @property
    def best_path(self) -> Path:
        """Where the best weights are."""
        return self.path / "best.pt"

    # --- words and numbers

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write run.json; if that fails, there is a warning, and the earlier one stays.

        Where there is none yet, it is tried again before anything else is written.

        Args:
            manifest: Plain data, see `sbi_ignite.runs.manifest`. The identity of the run, where it
                is, when it was created, the time of writing and a checksum are added.
        """
        self.require_writable()
        own = {
            **self._who(),
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "best_digest": self._best_digest() if manifest.get("status") in FINISHED else None,
        }
        try:
            write_json(self._manifest_path, {**manifest, **own})
        except OSError as error:
            self._unwritten_manifest = {**manifest, **own}
            self.report(error)

    def update_manifest(self, **values: Any) -> None:
        """Change some values in run.json, such as `status="complete"`; see `write_manifest`."""
        self.write_manifest({**(self.read_manifest() or self._unwritten_manifest or {}), **values})

    def update_manifest_soon(self, seconds: float, **values: Any) -> None:
        """Change some values in run.json, after pending writes.

        Args:
            seconds: How long to wait for it. A process that ends earlier may leave it undone.
            **values: The values.
        """
        writing = self._submit(lambda: self.update_manifest(**values))
        with contextlib.suppress(FutureTimeoutError):
            writing.result(seconds)

    def read_manifest(self) -> dict[str, Any] | None:
        """Return run.json, None if nothing was ever saved here.

        Raises:
            CheckpointError: If it is damaged, or missing beside checkpoints.
        """
        if not self._manifest_path.exists() and not self._files_of_a_run():
            return None
        return self._require_manifest()

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        self.require_writable()
        self._ensure_manifest()
        with (self.path / "metrics.jsonl").open("ab") as file:
            file.write(json_line(row))

    def set_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace metrics.jsonl as a whole; after a resume, by the history up to the checkpoint.

        Raises:
            OSError: If it cannot be written; the old file is untouched.
        """
        self.require_writable()
        self._ensure_manifest()
        write_whole(self.path / "metrics.jsonl", map(json_line, rows))

    def write_summary(self, summary: Mapping[str, Any]) -> bool:
        """Write summary.json, together with a checksum of metrics.jsonl as it is now.

        Args:
            summary: Plain data: `TrainingSummary.to_dict()`.

        Returns:
            Whether it was written. If not, there is a warning: a training that has ended is not
            lost for want of a file.
        """
        self.require_writable()
        self.wait()
        try:
            self._ensure_manifest()
            found = metrics_checksum(self.path)
            whole = {"summary": strict(summary), "metrics_checksum": found, "run": self.run}
            write_json(self.path / "summary.json", whole)
        except OSError as error:
            self.report(error)
            return False
        return True

    def read_summary(self) -> dict[str, Any] | None:
        """Return what `write_summary` was given (NaN as None), None if the run is not complete.

        Raises:
            CheckpointError: If the file is damaged, or belongs to another run.
        """
        return read_summary(self.path, self.run)

    def set_aside(self) -> Path | None:
        """Move all files of the run into a folder `replaced-1`, `replaced-2`, … and start anew.

        Nothing is deleted. run.json goes last, so that a kill in between leaves no orphans.

        Returns:
            The folder, None if there was nothing to move.
        """
        self.require_writable()
        self.wait()
        names = [*self._checkpoints(), *sorted(self.path.glob("best*.pt"))]
        names += [*sorted(self.path.glob("round-*")), self.path / "logs"]
        names += [self.path / "summary.json"]
        names += [self.path / "metrics.jsonl", self._manifest_path]
        there = [path for path in names if path.exists()]
        if not there:
            return None
        number = 1
        while (folder := self.path / f"replaced-{number}").exists():
            number += 1
        folder.mkdir()
        for path in there:
            os.replace(path, folder / path.name)
        self._last_best = self._known_best = None
        self._references.clear()
        self._read_identity()
        return folder

    # --- inside

    def _submit(self, job: Callable[[], None]) -> Future[None]:
        if self._writer is None:
            self._writer = Writer()
        return self._writer.submit(job)

    @property
    def _manifest_path(self) -> Path:
        return self.path / "run.json"

    def _best_digest(self) -> str | None:
        try:
            return read_header(self.best_path)[1]
        except DamagedError:
            return None

    def _read_identity(self) -> None:
        """Take the identity of the run from its manifest, or make one up."""
        try:
            manifest = read_json(self._manifest_path) or {}
        except (DamagedError, UnknownVersionError):
            manifest = {}  # reported in full where the manifest is needed
        self.run = str(manifest.get("run", uuid.uuid4().hex))
        self._created = manifest.get("created", time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        self.identity = str(manifest.get("identity", self.run))
        self._copied_from = manifest.get("copied_from")
        if not self.read_only:
            self._note_original(original_of(self.path, manifest))

    def compare_with_logs(self, folders: Iterable[Path]) -> None:
        """Look for word of an original of which this run is a copy, and if so become another run.

        Args:
            folders: Folders of logs outside the directory.
        """
        if self.read_only:
            return
        for folder in folders:
            self._note_original(original_in(folder, self.path, self._who()))

    def leave_word(self, folders: Iterable[Path]) -> None:
        """Leave word of where the run is, by which copies of it know that they are copies.

        Args:
            folders: Folders of logs outside the directory.
        """
        for folder in folders:
            note_home(folder, self.identity, self.path)

    def _note_original(self, original: Path | None) -> None:
        if original is not None:
            self.identity, self._copied_from = uuid.uuid4().hex, str(original)

    def _who(self) -> dict[str, Any]:
        """Return the entries of run.json that identify the run."""
        return {
            "run": self.run,
            "identity": self.identity,
            "home": str(self.path.resolve()),
            "copied_from": self._copied_from,
            "created": self._created,
        }

    def _ensure_manifest(self) -> None:
        """Write run.json if there is none: without it, other files tell nobody whose they are."""
        if not self._manifest_path.exists():
            write_json(self._manifest_path, self._unwritten_manifest or self._who())

    def _require_manifest(self) -> dict[str, Any]:
        manifest = read_manifest(self.path)
        if manifest is None:
            raise CheckpointError(
                f"{self._manifest_path} is missing, so that nobody can tell what run "
                f"{', '.join(path.name for path in self._files_of_a_run())} beside it belong to. "
                f"{_ADVICE}."
            )
        return manifest

    def _files_of_a_run(self) -> list[Path]:
        """Return the files here that a run would replace."""
        others = (self.path / name for name in ("best.pt", "metrics.jsonl", "summary.json"))
        return [*self._checkpoints(), *(path for path in others if path.exists())]

    def _checkpoints(self) -> list[Path]:
        """Return the files, oldest first; none where the directory has been removed."""
        try:
            names = [name for name in os.listdir(self.path) if _is_checkpoint(name)]
        except FileNotFoundError:
            return []
        return sorted(map(self.path.joinpath, names), key=_iteration)

    def _read(self, path: Path) -> Checkpoint:
        header, _, content = read_tensors(path)
        if header.run != self.run:
            raise DamagedError("it belongs to another run")
        if header.kind != "checkpoint" or header.iteration != _iteration(path):
            raise DamagedError("it is another file than its name says")
        states = _unpacked(content, from_file)
        if header.best is not None:
            weights = self._find_best(header.best)
            states[BEST] = {**states[BEST], "weights": weights}
        return Checkpoint(path, header.epoch, header.iteration, states)

    def _find_best(self, digest: str) -> dict[str, Any]:
        """Return the weights that a checkpoint refers to."""
        reason = "is missing"
        for path in (self.best_path, _older_best(self.path, digest)):
            try:
                header, found, content = read_tensors(path)
            except DamagedError as error:
                reason = f"cannot be used: {error}" if path.exists() else reason
                continue
            if found == digest and header.run == self.run:
                return _unpacked(content)["weights"]
        raise DamagedError(f"the best weights that belong to it are not there: best.pt {reason}")

    def _write(self, epoch: int, iteration: int, snapshot: Snapshot) -> None:
        """Write best weights and checkpoint, then prune; may run in the writer's thread."""
        self._ensure_manifest()
        best = None
        if snapshot.best is not None and snapshot.best is self._last_best:
            best = self._digest_of_unchanged_best()
        elif snapshot.best is not None:
            best = self._put_best(snapshot.best.packed.for_file(), snapshot.best.epoch, {})
        self._last_best = snapshot.best
        header = Header("checkpoint", self.run, epoch, iteration, best)
        path = self.path / f"checkpoint-{iteration:09d}.pt"
        write_whole(path, encode_tensors(header, snapshot.for_file())[1])
        self._references[path.name] = best
        self._damaged.discard(path)
        self._prune(iteration)

    def _digest_of_unchanged_best(self) -> str:
        known = self._known_best
        if known is None or known.mark != _mark(self.best_path):
            raise OSError(errno.ESTALE, "best.pt was changed by somebody else")
        return known.digest

    def _put_best(self, packed: Mapping[str, Any], epoch: int, meta: Mapping[str, Any]) -> str:
        """Replace best.pt, after giving a second name to one that a checkpoint refers to.

        The folder is synchronised with the checkpoint that follows; until then all checkpoints
        refer to the file with the second name.
        """
        header = Header("best", self.run, epoch, meta=strict(meta))
        digest, chunks = encode_tensors(header, packed)
        known = self._known_best
        trusted = known is not None and known.mark == _mark(self.best_path)
        old = known.digest if known is not None and trusted else self._best_digest()
        if trusted and old == digest:
            return digest
        if old not in (None, digest) and old in self._needed_bests(self._checkpoints()):
            _link(self.best_path, _older_best(self.path, old))
        write_whole(self.best_path, chunks, durable_name=False)
        self._known_best = _KnownBest(digest, _mark(self.best_path))
        return digest

    def _needed_bests(self, checkpoints: Iterable[Path]) -> set[str | None]:
        """Return the digests of best weights that checkpoints refer to."""
        needed = set()
        for path in checkpoints:
            if path.name not in self._references:
                with contextlib.suppress(DamagedError):
                    self._references[path.name] = read_header(path)[0].best
            needed.add(self._references.get(path.name))
        return needed

    def _prune(self, iteration: int) -> None:
        """Remove checkpoints that are no longer needed, once the one of `iteration` is safe."""
        there = self._checkpoints()
        good = [path for path in there if path not in self._damaged]
        # A resume has skipped the newer ones; this run will write them again.
        kept = [path for path in good if _iteration(path) <= iteration][-self.keep_last :]
        for path in there:
            if path not in kept:
                path.unlink(missing_ok=True)
                self._references.pop(path.name, None)
        self._damaged.clear()
        needed = {f"best-{digest[:16]}.pt" for digest in self._needed_bests(kept) if digest}
        for name in os.listdir(self.path):
            if name.startswith("best-") and name.endswith(".pt") and name not in needed:
                (self.path / name).unlink(missing_ok=True)


# --- reading without holding the directory


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return run.json of a run directory, None if there is none.

    Raises:
        CheckpointError: If it is damaged, or of an unknown format version.
    """
    return _read_json(path / "run.json")


def read_summary(path: Path, run: str | None) -> dict[str, Any] | None:
    """Return the plain data of summary.json, None if there is none.

    Args:
        path: The run directory.
        run: Identity of the run.

    Raises:
        CheckpointError: If it is damaged, or belongs to another run.
    """
    whole = _read_json(path / "summary.json")
    if whole is None:
        return None
    if whole["run"] != run:
        raise CheckpointError(f"{path / 'summary.json'} belongs to another run. {_ADVICE}.")
    return {**whole["summary"], "metrics_checksum": whole["metrics_checksum"]}


def read_best(path: Path) -> dict[str, Any] | None:
    """Return {"weights", "epoch", "digest", "meta"} of best.pt, None if there is none.

    Args:
        path: The run directory.

    Raises:
        CheckpointError: If it is damaged, or belongs to another run.
    """
    file = path / "best.pt"
    if not file.exists():
        return None
    manifest = read_manifest(path) or {}
    try:
        header, digest, content = read_tensors(file)
        if header.run != manifest.get("run"):
            raise DamagedError("it belongs to another run")
        if header.kind != "best":
            raise DamagedError("it is another file than its name says")
        if (manifest.get("best_digest") or digest) != digest:
            raise DamagedError("it is not the one that this run ended with")
        weights = _unpacked(content)["weights"]
    except (DamagedError, UnknownVersionError) as error:
        raise CheckpointError(f"{file} cannot be used: {error}. {_ADVICE}.") from error
    return {
        "weights": weights,
        "epoch": header.epoch,
        "digest": digest,
        "meta": dict(header.meta or {}),
    }


def _unpacked(
    content: Any, unpacking: Callable[[Mapping[str, Any]], dict[str, Any]] = unpack
) -> dict[str, Any]:
    """Unpack the content of a file, which must be packed states."""
    try:
        return unpacking(content)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedError("it holds something else than a training") from error


def metrics_checksum(path: Path) -> str | None:
    """Return a digest of metrics.jsonl, None without one."""
    file = path / "metrics.jsonl"
    return checksum(file.read_bytes()) if file.exists() else None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except (DamagedError, UnknownVersionError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}. {_ADVICE}.") from error


def _check_writable(path: Path) -> None:
    probe = path / f".probe.{os.getpid()}.tmp"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        # A full disk may have room again before the training has ended.
        if error.errno not in FULL:
            raise CheckpointError(
                f"{path} cannot be used as a run directory: {error.strerror}."
            ) from error


def _is_complete(path: Path) -> bool:
    try:
        return (read_json(path / "run.json") or {}).get("status") in FINISHED
    except (DamagedError, UnknownVersionError):
        return False


def _mark(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when another process writes a file, None without one."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _is_checkpoint(name: str) -> bool:
    return name.startswith("checkpoint-") and name.endswith(".pt")


def _iteration(path: Path) -> int:
    """Return the number in a checkpoint's name; -1 for names that are not ours."""
    number = path.stem.removeprefix("checkpoint-")
    return int(number) if number.isascii() and number.isdigit() else -1


def _older_best(path: Path, digest: str) -> Path:
    return path / f"best-{digest[:16]}.pt"


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; where that is not possible, copy it."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)


def _listed(problems: Mapping[Path, str]) -> str:
    return "; ".join(f"{path} is damaged: {reason}" for path, reason in problems.items())


__all__ = [
    "Checkpoint",
    "Chunk",
    "RunDirectory",
    "metrics_checksum",
    "read_best",
    "read_manifest",
    "read_summary",
]
