"""An ensemble as a script of its own, to be killed and started again.

Run as `python -m tests.ensembles.programs DIRECTORY OUT N_JOBS`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sbi_ignite import Callback, TrainConfig
from tests.ensembles.small import ensemble, maker

EPOCHS = 12


class Slow(Callback):
    """Takes its time, and leaves a note with its process in every epoch.

    Args:
        folder: Where the notes are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_epoch_end(self, state: Any) -> None:
        """Note the epoch."""
        (self.folder / f"{torch.initial_seed()}-{state.epoch}").write_text(str(os.getpid()))
        time.sleep(float(os.environ.get("SECONDS_AN_EPOCH", "0")))


def run(directory: str, out: str, n_jobs: str) -> None:
    """Train and save all weights."""
    notes = Path(out).with_suffix(".notes")
    notes.mkdir(exist_ok=True)
    found = ensemble(
        maker(),
        members=3,
        config=TrainConfig(max_epochs=EPOCHS, batch_size=50),
        checkpoint=directory,
        n_jobs=int(n_jobs),
        stacked=bool(os.environ.get("STACKED")),
        callbacks=[Slow(notes)],
    )
    resumed = [summary.resumed_from_epoch for summary in found.summary.summaries]
    executors = [summary.executor for summary in found.summary.summaries]
    weights = [dict(estimator.state_dict()) for estimator in found.estimators]
    torch.save({"weights": weights, "resumed": resumed, "executors": executors}, out)


if __name__ == "__main__":
    run(*sys.argv[1:])
