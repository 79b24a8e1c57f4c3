"""Trainings in forked processes that can be signalled, and that end as scripts do.

Run as a script; `Trainings` in `test_signals.py` talks to it. This process imports everything once,
so that a training starts in milliseconds. Every line that it reads starts one: a JSON object with
the arguments of `train`. It answers with the id of the new process, which is the leader of a
process group, and later with its exit status.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sbi_ignite import TrainConfig, run_training
from sbi_ignite.data.in_memory import ShuffledBatches

EPOCHS, ROWS, BATCH = 4, 500, 20


class Slowly:
    """Makes batches last, and says which one was trained last.

    Args:
        folder: Where the number goes.
        seconds: What a batch lasts.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._batch)

    def _batch(self, engine: Engine) -> None:
        time.sleep(self.seconds)
        say(self.folder, "iteration", engine.state.iteration)


def say(folder: Path, name: str, value: object) -> None:
    """Replace a file at once."""
    (folder / f"{name}.new").write_text(str(value))
    (folder / f"{name}.new").rename(folder / name)


def stall_the_disk(folder: Path) -> None:
    """Let every `os.fsync` wait for the file `go` as soon as there is a file `stall`."""
    fsync = os.fsync

    def stalled(descriptor: int) -> None:
        if (folder / "stall").exists():
            say(folder, "writing", True)
            while not (folder / "go").exists():
                time.sleep(0.005)
        fsync(descriptor)

    os.fsync = stalled


def squared_error(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean(1)


def train(
    folder: Path,
    seconds: float = 0.002,
    workers: int = 0,
    context: str = "fork",
    persistent: bool = False,
    only_validation: bool = False,
) -> None:
    """Train in `folder / "run"`, and leave the weights in `folder / "weights"`.

    Args:
        folder: A folder of this training's own.
        seconds: What a batch lasts.
        workers: Processes that load batches; 0 takes tensors in memory.
        context: How these are started.
        persistent: Whether they live on after an epoch, and begin before the training.
        only_validation: Whether training batches come from memory all the same.
    """
    torch.manual_seed(1)
    x = torch.randn(ROWS, 3)
    rows = TensorDataset(x, x.sum(1, keepdim=True))
    loader = validation = None
    if workers:
        more = {"multiprocessing_context": context, "persistent_workers": persistent}
        loader, validation = (
            DataLoader(rows, BATCH, shuffle=shuffle, num_workers=workers, **more)
            for shuffle in (True, False)
        )
    if loader is None or only_validation:
        loader = ShuffledBatches(rows.tensors, torch.arange(ROWS), BATCH, seed=3)
    if persistent:
        _ = [list(one) for one in (loader, validation) if isinstance(one, DataLoader)]
        torch.manual_seed(2)
    stall_the_disk(folder)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    run_training(
        TrainConfig(max_epochs=EPOCHS),
        model,
        squared_error,
        loader,
        validation,
        callbacks=[Slowly(folder, seconds)],
        checkpoint=str(folder / "run"),
        logging="none",
    )
    torch.save(model.state_dict(), folder / "weights.new")
    (folder / "weights.new").rename(folder / "weights")


def main() -> None:
    torch.set_num_threads(1)
    for line in iter(sys.stdin.readline, ""):
        wanted = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            descriptor = os.open(Path(wanted["folder"], "output"), os.O_WRONLY | os.O_CREAT)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            train(**{**wanted, "folder": Path(wanted["folder"])})
            return
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
