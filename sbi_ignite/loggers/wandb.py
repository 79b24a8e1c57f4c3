"""Numbers come in; a run of Weights & Biases goes out.

ignite's logger goes through wandb's global run, which may be the user's, reports success after an
exception and cannot continue a run; this one has a run of its own. Made to live in a courier's
process.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sbi_ignite.loggers.base import (
    Backend,
    EpochRow,
    RunInfo,
    new_run_name,
    origins,
    parameters,
    results,
    warm_up_figures,
)
from sbi_ignite.loggers.clock import now

if TYPE_CHECKING:
    from sbi_ignite.summary import TrainingSummary

INIT_SECONDS = 30.0
"""How long wandb may try to reach its server."""

_EXIT_CODES = {"failed": 1, "killed": 255}


class Wandb(Backend):
    """Logs to a run of its own, over the axes "epoch" and "iteration".

    Args:
        project: The project; None: `WANDB_PROJECT`, or "sbi".
        entity: User or team; None: the user's default.
        mode: "online", "offline", "shared" or "disabled"; None: `WANDB_MODE`, or "online".
        script: The user's script, named as the run's program.
        pid: The process whose use of the machine is shown.
        run_name: See `Backend`, likewise the others.
        tags: Become the run's tags, as "name" or "name:value".
        every_n_iterations: Steps between two values of the iteration metrics.
    """

    name: str = "wandb"
    package = "wandb"

    def __init__(
        self,
        *,
        project: str | None = None,
        entity: str | None = None,
        mode: str | None = None,
        script: str = "python",
        pid: int | None = None,
        run_name: str | None = None,
        tags: Any = None,
        every_n_iterations: int | None = None,
    ) -> None:
        super().__init__(run_name=run_name, tags=tags, every_n_iterations=every_n_iterations)
        self._project = project or os.environ.get("WANDB_PROJECT") or "sbi"
        self._entity, self._mode, self._script, self._pid = entity, mode, script, pid
        self._run: Any = None
        self._have: dict[str, int] = {}
        self._moved: str | None = None

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        """Open a new run, or the one that is continued, with settings and manifest as config."""
        import wandb

        continued = bool(identity.get("continued"))
        root = Path(os.environ.get("WANDB_DIR") or ".").absolute()
        here = last_logged(root / "wandb", identity["id"]) if continued else {}
        self._run = wandb.init(
            project=self._project,
            entity=self._entity,
            mode=self._mode,  # type: ignore[arg-type] # checked by LoggingConfig
            id=identity["id"],
            resume="allow" if continued else None,
            name=self.run_name or (None if continued else new_run_name(info.method)),
            tags=[f"{name}:{value}" if value else name for name, value in self.tags.items()],
            config=_config(info),
            settings=wandb.Settings(
                init_timeout=INIT_SECONDS,
                console="off",
                silent=True,
                program=self._script,
                x_stats_pid=self._pid or os.getpid(),
            ),
        )
        files = Path(self._run.dir)
        if not files.resolve().is_relative_to(root.resolve()):
            self._moved = f"{root} cannot be written; wandb keeps the run in {files.parent}"
        there = {n: self._run.summary.get(n) for n in ("epoch", "iteration")} if continued else {}
        self._have = {n: max(here.get(n, 0), int(there.get(n) or 0)) for n in there}
        self._run.define_metric("epoch", hidden=True)
        self._run.define_metric("iteration", hidden=True)
        self._run.define_metric("*", step_metric="epoch")
        self._run.define_metric("iteration_*", step_metric="iteration")
        self._run.define_metric("training_loss", step_metric="epoch", summary="last")
        import matplotlib.pyplot  # noqa: F401 # wandb needs it for the figure; now, not at the end

        warm_up_figures()
        with contextlib.suppress(ImportError):
            # wandb asks of its first image whether it is a data frame: 0.3 s, of which nobody waits
            # for any while training runs.
            import pandas  # noqa: F401

        if self._run.url:
            self.say(f"wandb: {self._run.url}")

    def say(self, line: str) -> None:
        """Tell the user; the courier's process puts its own way of doing so here."""

    def log_epoch(self, row: EpochRow) -> None:
        """Log the numbers of an epoch."""
        if row.step > self._have.get("epoch", 0):
            self._run.log({"epoch": row.step, **row.values, "_timestamp": row.time or now()})

    def log_iteration(
        self, iteration: int, values: Mapping[str, float], seconds: float | None = None
    ) -> None:
        """Log the numbers of an iteration, as of a time in seconds since 1970."""
        if iteration > self._have.get("iteration", 0):
            self._run.log({"iteration": iteration, **values, "_timestamp": seconds or now()})

    def finish(self, summary: TrainingSummary) -> None:
        """Put the results into the run's summary, log the figure, and close."""
        import wandb

        self._run.summary.update(results(summary))
        self._run.log({"loss_curve": wandb.Image(summary.plot())})
        self._run.finish(exit_code=0)
        if self._moved is not None:
            raise OSError(self._moved)

    def fail(self, status: str, message: str) -> None:
        """Note what happened and close as failed."""
        self._run.summary.update({"status": status, "error": message})
        self._run.finish(exit_code=_EXIT_CODES[status])


def _config(info: RunInfo) -> dict[str, Any]:
    """Return what becomes columns of wandb's table: flat names, plain values."""
    flat = parameters(info)
    return {**flat, "round_index": info.round_index, "origin": origins(info)}


def last_logged(folder: Path, run_id: str) -> dict[str, int]:
    """Return the last epoch and iteration that the files of a run on this machine hold.

    Args:
        folder: wandb's folder, with one folder per start of a run.
        run_id: The run.
    """
    last: dict[str, int] = {}
    for path in folder.glob(f"*-{run_id}/run-{run_id}.wandb"):
        for row in logged_rows(path):
            for name in ("epoch", "iteration"):
                last[name] = max(last.get(name, 0), int(row.get(name, 0)))
    return last


def logged_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Return what was logged to a run file, one dict per call of `log`, as far as it is readable.

    Args:
        path: A file `run-ID.wandb`.
    """
    from wandb.proto import wandb_internal_pb2

    message: Any = vars(wandb_internal_pb2)["Record"]  # made at import, unseen by type checkers
    for data in _records(path.read_bytes()):
        record = message.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}


def _records(data: bytes) -> Iterator[bytes]:
    """Return the records of a file in LevelDB's log format after wandb's 7 bytes of header.

    Blocks have 32 KiB; a fragment has checksum (4 bytes), length (2), type (1): whole, first,
    middle or last.
    """
    block, position, parts = 32768, 7, b""
    while position + 7 <= len(data):
        left = block - position % block
        if left < 7:
            position += left
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind, end = data[position + 6], position + 7 + length
        if kind not in (1, 2, 3, 4) or end > len(data):
            return
        parts = (b"" if kind in (1, 2) else parts) + data[position + 7 : end]
        position = end
        if kind in (1, 4):
            yield parts
