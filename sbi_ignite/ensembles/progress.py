"""Show how far the members of an ensemble are, in one bar or one line per member."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sbi_ignite.ensembles.members import Outcome, read_progress
from sbi_ignite.loggers.stdout import somebody_watches

_POLL_SECONDS = 0.5


@contextmanager
def progress_shown(
    file: Path, num_members: int, wanted: bool
) -> Iterator[Callable[[Outcome], None]]:
    """Yield a function that is told every finished member.

    In a terminal or notebook it moves a bar, which also shows the epochs of those that still train;
    elsewhere it prints a line.

    Args:
        file: The file in which members note their epochs.
        num_members: How many are trained.
        wanted: Whether to show anything.
    """
    if not wanted:
        yield lambda outcome: None
        return
    if not somebody_watches():
        yield lambda outcome: print(describe(outcome), flush=True)
        return
    from tqdm.auto import tqdm

    over, done = threading.Event(), set()
    with tqdm(total=num_members, desc="ensemble", unit="member") as bar:

        def finished(outcome: Outcome) -> None:
            done.add(outcome.index)
            bar.update()

        def look() -> None:
            while not over.wait(_POLL_SECONDS):
                bar.set_postfix_str(_epochs(file, done))

        thread = threading.Thread(target=look, daemon=True, name="sbi-ignite-progress")
        thread.start()
        try:
            yield finished
        finally:
            over.set()
            thread.join()


def describe(outcome: Outcome) -> str:
    """Return a line about a finished member."""
    if outcome.summary is None:
        return f"member {outcome.index} failed: {outcome.failure}"
    s = outcome.summary
    return (
        f"member {outcome.index}: best {s.best_kind} loss {s.best_validation_loss:.4f} at epoch "
        f"{s.best_epoch}, stopped by {s.ended_by} after epoch {s.epochs_trained}"
    )


def _epochs(file: Path, done: set[Any]) -> str:
    running = [
        f"{index}: {epochs}"
        for index, epochs in enumerate(read_progress(file))
        if epochs and index not in done
    ]
    return f"epochs of member {', '.join(running)}" if running else ""
