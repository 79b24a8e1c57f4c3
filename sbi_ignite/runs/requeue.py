"""Decide whether a job that ran out of time goes back into its queue.

    python -m sbi_ignite.runs.requeue runs/exp1 --job 4711 --status 138 --ran-for 86280

ends with status 0 if it should, and with status 1 if not; it prints why. It is for job scripts, see
`examples/slurm`, and reads nothing but the files of the run directory.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sbi_ignite.runs.status import FINISHED

FRUITLESS_STARTS = 3
"""Starts of one job without any progress after which it is not queued again."""

_MEMORY = "requeue.json"
_SLACK = 2.0
"""Seconds by which a file server's clock may be behind."""


@dataclass(frozen=True)
class Decision:
    """What to do with a job that has ended after the signal that its time is nearly up.

    Attributes:
        requeue: Whether it goes back into the queue.
        reason: Why, in a sentence.
    """

    requeue: bool
    reason: str


def decide(
    directory: Path, job: str, status: int, ran_for: float, limit: int = FRUITLESS_STARTS
) -> Decision:
    """Decide from the run's files whether a job was cut short and is making progress.

    The exit status alone does not tell: the signal may have come before or after the training, and
    launchers such as torchrun have a status of their own. What is decided is remembered in the run
    directory, in `requeue.json`.

    Args:
        directory: The run directory, which may not be there yet.
        job: The job's name; a new name restarts the count.
        status: Exit status of the training script.
        ran_for: Seconds since the job was started.
        limit: Number of starts without progress after which a job is not queued again.

    Returns:
        The decision.

    Example:
        >>> import tempfile
        >>> decide(Path(tempfile.mkdtemp()), "4711", status=1, ran_for=60.0).requeue
        False
    """
    if status == 0:
        return Decision(False, f"Job {job} has ended by itself.")
    began = time.time() - ran_for - _SLACK
    stopped = any(_read(file).get("status") == "interrupted" for file in _runs(directory, began))
    if not stopped and status not in (128 + signal.SIGUSR1, 128 + signal.SIGTERM):
        return Decision(False, f"Job {job} has failed with status {status}.")
    memory = _read(directory / _MEMORY)
    memory = memory if memory.get("job") == job else {}
    progress = _progress(directory)
    fruitless = 0 if progress != memory.get("progress", {}) else memory.get("fruitless", 0) + 1
    _write(directory, {"job": job, "progress": progress, "fruitless": fruitless})
    if fruitless >= limit:
        return Decision(
            False,
            f"Job {job} does not go back into the queue: {fruitless} starts in a row brought no "
            f"progress in {directory}. What the script does before or after the training, or one "
            "epoch of a loader without a position, may take longer than the job's time limit.",
        )
    return Decision(
        True, f"Time is nearly up: job {job} goes back into the queue and will continue."
    )


def _runs(directory: Path, since: float = 0.0) -> list[Path]:
    """Return the manifests of all rounds that were written since a time."""
    found = [file for file in directory.rglob("run.json") if not _is_old(file, directory)]
    return [file for file in found if file.stat().st_mtime >= since]


def _is_old(file: Path, directory: Path) -> bool:
    """Say whether a file belongs to a run that another one has replaced."""
    return any(part.startswith("replaced-") for part in file.relative_to(directory).parts)


def _progress(directory: Path) -> dict[str, Any]:
    """Return the last saved step of every round, or that the round is complete."""
    progress: dict[str, Any] = {}
    for file in _runs(directory):
        numbers = [path.stem.removeprefix("checkpoint-") for path in file.parent.glob("check*.pt")]
        last = max((int(number) for number in numbers if number.isdecimal()), default=0)
        complete = _read(file).get("status") in FINISHED
        if last or complete:
            progress[str(file.parent.relative_to(directory))] = "complete" if complete else last
    return progress


def _read(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads(file.read_bytes())
        return content if isinstance(content, dict) else {}
    return {}


def _write(directory: Path, memory: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / f".{_MEMORY}.tmp"
    new.write_text(json.dumps(memory, indent=2) + "\n")
    new.replace(directory / _MEMORY)


def main() -> int:
    """Take the arguments of the command line, print the reason and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sbi_ignite.runs.requeue",
        description="Decide whether a job that ran out of time goes back into its queue.",
    )
    parser.add_argument("directory", type=Path, help="the run directory")
    parser.add_argument("--job", required=True, help="name of the job")
    parser.add_argument("--status", required=True, type=int, help="exit status of the training")
    parser.add_argument("--ran-for", required=True, type=float, help="seconds since the start")
    parser.add_argument(
        "--limit",
        type=int,
        default=FRUITLESS_STARTS,
        help="starts without progress before giving up",
    )
    decision = decide(**vars(parser.parse_args()))
    print(decision.reason, flush=True)
    return 0 if decision.requeue else 1


if __name__ == "__main__":
    sys.exit(main())
