"""The backend for Weights & Biases.

ignite's logger goes through wandb's global run, which may be the user's, reports success after an
exception and cannot continue a run; this one has a run of its own. It is meant to live in a
backend process.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sbi_ignite.loggers.base import (
    Backend,
    EpochFigure,
    EpochRow,
    RunInfo,
    new_run_name,
    origins,
    parameters,
    results,
    status_of,
    warm_up_figures,
)
from sbi_ignite.loggers.clock import now
from sbi_ignite.loggers.locks import claim

if TYPE_CHECKING:
    from sbi_ignite.summary import TrainingSummary

INIT_SECONDS = 30.0
"""How long wandb may try to reach its server."""

_OF_ONE_RUN = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")
"""Variables that name a run, or make wandb use it whatever it is told."""

_EXIT_CODES = {"failed": 1, "killed": 255}


class Wandb(Backend):
    """Logs to a run of its own, over the axes "epoch" and "iteration".

    What is None here is left to the variables `WANDB_*` and wandb's settings files. The run that
    `WANDB_RUN_ID` names is taken unless it is the user's or holds another curve; then the training
    gets a run of its own, in the same group.

    Args:
        project: The project; None: that of the user's open run, or what wandb says, or "sbi".
        entity: User or team; None: likewise.
        mode: "online", "offline", "shared" or "disabled".
        script: The user's script, named as the run's program.
        pid: The process whose use of the machine is shown.
        users_run: Names of the run that the user has open in the process that trains.
        may_take_given: Whether the run that the environment names may be taken.
        run_name: See `Backend`, likewise the others.
        tags: Become the run's tags, as "name" or "name:value".
        every_n_iterations: Steps between two values of the iteration metrics.
    """

    name: str = "wandb"
    package = "wandb"
    shows_figures = True
    in_own_process = True

    @classmethod
    def place(
        cls, fields: Mapping[str, Any], run_directory: str | os.PathLike[str] | None
    ) -> tuple[tuple[Hashable, ...], str, str]:
        """Return the run's entity, project and name."""
        variables = {"entity": "ENTITY", "project": "PROJECT", "run_name": "NAME"}
        found = (fields[n] or os.environ.get(f"WANDB_{word}") for n, word in variables.items())
        return tuple(found), cls.name, "another project or run_name"

    def __init__(
        self,
        *,
        project: str | None = None,
        entity: str | None = None,
        mode: str | None = None,
        script: str = "python",
        pid: int | None = None,
        users_run: Mapping[str, Any] | None = None,
        may_take_given: bool = True,
        run_name: str | None = None,
        tags: Any = None,
        every_n_iterations: int | None = None,
    ) -> None:
        super().__init__(run_name=run_name, tags=tags, every_n_iterations=every_n_iterations)
        self._project, self._entity, self._mode = project, entity, mode
        self._script, self._pid = script, pid
        self._users_run, self._may_take_given = dict(users_run or {}), may_take_given
        self.local = (mode or os.environ.get("WANDB_MODE")) in ("offline", "dryrun", "disabled")
        self._run: Any = None
        self._have: dict[str, int] = {}
        self._claims: list[Any] = []
        self._moved: str | None = None
        self._silent = False
        self._first_step = 0

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        """Open a new run, or the one that is continued, with settings and manifest as config."""
        self._first_step = info.first_step
        # The service of the user's process would end with it.
        os.environ.pop("WANDB_SERVICE", None)
        root = Path(os.environ.get("WANDB_DIR") or ".").absolute()
        # Earlier rounds are in the run that they were logged to, and nowhere else.
        self._may_take_given &= not (identity.get("continued") and info.first_step)
        wanted = self._choose(root / "wandb", identity["id"], bool(identity.get("continued")))
        self._open(info, wanted)
        self._have = self._logged(root / "wandb")
        if not wanted.continued and any(self._have.values()):
            # Only now is it known that the run that the environment names has a curve already.
            wanted = self._step_aside(self._run.id, "", continued=False)
            self._close(exit_code=0)
            self._open(info, wanted)
            self._have = {}
        files = Path(self._run.dir)
        if not self._run.disabled and not files.resolve().is_relative_to(root.resolve()):
            self._moved = f"{root} cannot be written; wandb keeps the run in {files.parent}"
        self._run.define_metric("epoch", hidden=True)
        self._run.define_metric("iteration", hidden=True)
        self._run.define_metric("*", step_metric="epoch")
        self._run.define_metric("iteration_*", step_metric="iteration")
        self._run.define_metric("training_loss", step_metric="epoch", summary="last")
        import matplotlib.pyplot  # noqa: F401 # wandb needs it for the figure; now, not at the end

        warm_up_figures()
        with contextlib.suppress(ImportError):
            # wandb checks whether its first image is a data frame, which takes 0.3 s; nothing waits
            # for it while training runs.
            import pandas  # noqa: F401

        if self._run.url and not self._silent:
            self.say(f"wandb: {self._run.url}")

    def state_dict(self) -> dict[str, Any]:
        """Return the id of the run, which the environment may have chosen."""
        return {"id": self._run.id}

    def log_epoch(self, row: EpochRow) -> None:
        """Log the numbers of an epoch."""
        if row.step > self._have.get("epoch", 0):
            self._run.log({"epoch": row.step, **row.values, "_timestamp": row.time or now()})

    def log_figure(self, figure: EpochFigure) -> None:
        """Log it as an image over its epoch."""
        if figure.step <= self._have.get("epoch", 0):
            return
        import wandb
        from PIL import Image

        picture = wandb.Image(Image.open(io.BytesIO(figure.png())))
        self._run.log({"epoch": figure.step, figure.name: picture, "_timestamp": figure.time})

    def log_iteration(
        self, iteration: int, values: Mapping[str, float], seconds: float | None = None
    ) -> None:
        """Log the numbers of an iteration, as of a time in seconds since 1970."""
        if iteration > self._have.get("iteration", 0):
            self._run.log({"iteration": iteration, **values, "_timestamp": seconds or now()})

    def finish(self, summary: TrainingSummary) -> None:
        """Put the results into the run's summary, log the figure, and close."""
        import wandb

        self._run.summary.update(
            {**results(summary, self._first_step), "status": status_of(summary)}
        )
        self._run.log({"loss_curve": wandb.Image(summary.plot())})
        self._close(exit_code=0)
        if self._moved is not None:
            raise OSError(self._moved)

    def fail(self, status: str, message: str) -> None:
        """Note what happened and close as failed."""
        self._run.summary.update({"status": status, "error": message})
        self._close(exit_code=_EXIT_CODES[status])

    def _open(self, info: RunInfo, wanted: _Wanted) -> None:
        """Open a run; what is None is left to wandb, which reads its environment."""
        import wandb

        known = wandb.setup().settings
        fresh_name = None if wanted.continued or known.run_name else new_run_name(info.method)
        tags = [f"{name}:{value}" if value else name for name, value in self.tags.items()]
        self._silent = bool(known.silent or known.quiet)
        self._run = wandb.init(
            project=self._project or self._users_run.get("project") or known.project or "sbi",
            entity=self._entity or self._users_run.get("entity") or known.entity,
            mode=self._mode,  # type: ignore[arg-type] # checked by LoggingConfig
            id=wanted.run_id,
            resume="allow" if wanted.exists and not known.resume else None,
            group=wanted.group,
            name=self.run_name or fresh_name,
            tags=tags or None,
            config=_config(info),
            settings=wandb.Settings(
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT") or INIT_SECONDS),
                console="off",
                silent=True,
                program=os.environ.get("WANDB_PROGRAM") or self._script,
                x_stats_pid=self._pid or os.getpid(),
            ),
        )
        self.local = bool(self._run.offline or self._run.disabled)

    def _choose(self, folder: Path, own: str, continued: bool) -> _Wanted:
        """Say which run to open.

        Args:
            folder: wandb's folder, with one folder per start of a run.
            own: The id that the training has, or is meant to have.
            continued: Whether the training has logged under it before.
        """
        given = os.environ.get("WANDB_RUN_ID")
        if not given:
            group = None if continued else self._users_group()
            # With "auto" wandb looks for the id of a run that was interrupted.
            automatic = os.environ.get("WANDB_RESUME") == "auto" and not continued
            return _Wanted(None if automatic else own, continued, continued, group)
        mine = continued and own == given
        if mine or (self._may_take_given and self._is_free(folder, given)):
            exists = mine or any(folder.glob(f"*-{given}"))
            return _Wanted(given, mine, exists, self._users_group())
        return self._step_aside(given, own, continued)

    def _is_free(self, folder: Path, run_id: str) -> bool:
        """Say whether no other training logs to a run, or has logged to it on this machine."""
        held = claim(f"wandb {folder} {run_id}")
        if held is None:
            return False
        self._claims.append(held)
        return not last_logged(folder, run_id)

    def _step_aside(self, given: str, own: str, continued: bool) -> _Wanted:
        """Leave the run that the environment names to the training, or the user, that uses it."""
        for name in _OF_ONE_RUN:
            os.environ.pop(name, None)
        its_own = continued and own != given
        run_id = own if own and own != given else os.urandom(8).hex()
        group = os.environ.get("WANDB_RUN_GROUP") or self._users_group() or given
        return _Wanted(run_id, its_own, its_own, None if its_own else group)

    def _users_group(self) -> str | None:
        """Return the group that a run shares with the user's; None leaves it to wandb."""
        if os.environ.get("WANDB_RUN_GROUP"):
            return None
        return self._users_run.get("group") or self._users_run.get("id")

    def _logged(self, folder: Path) -> dict[str, int]:
        """Return the last epoch and iteration of the open run, here or on the server."""
        here, there = last_logged(folder, self._run.id), self._run.summary
        return {n: max(here.get(n, 0), _whole(there.get(n))) for n in ("epoch", "iteration")}

    def _close(self, exit_code: int) -> None:
        """Close the run and wait until its file is complete.

        `finish` returns before wandb's service has written the end of the file, or all of a short
        one; the service writes it before it ends. A new one starts when it is needed.
        """
        import wandb

        self._run.finish(exit_code=exit_code)
        try:
            wandb.teardown()
        except SystemExit as ended:
            raise OSError(f"wandb's service ended with exit code {ended.code}") from None


@dataclass(frozen=True)
class _Wanted:
    """The run to open.

    Attributes:
        run_id: Its id; None lets wandb choose.
        continued: Whether the curve that it holds is ours.
        exists: Whether it exists, with or without a curve.
        group: Its group; None leaves it to wandb.
    """

    run_id: str | None
    continued: bool
    exists: bool
    group: str | None


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
                last[name] = max(last.get(name, 0), _whole(row.get(name)))
    return last


def _whole(value: Any) -> int:
    """Return a number as an integer, 0 for anything else that a user may have logged."""
    if isinstance(value, int | float) and math.isfinite(value):
        return int(value)
    return 0


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
