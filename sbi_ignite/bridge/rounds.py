"""Number the rounds of a trainer, and choose their run directories.

Rounds share one axis of epochs in loggers, and every round after the first has its own run
directory below the given one.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sbi_ignite.bridge.arguments import Call
from sbi_ignite.bridge.lines import private
from sbi_ignite.bridge.memory import Round, TrainerMemory, memory_of
from sbi_ignite.bridge.workers import is_worker
from sbi_ignite.data.fingerprint import fingerprint_data
from sbi_ignite.data.source import Batches
from sbi_ignite.runs.fingerprint import BUDGETS, fingerprint_network


def begin_round(trainer: Any, resume: bool) -> Round:
    """Return the round that a call belongs to, and record it on the trainer.

    Args:
        trainer: One of sbi's trainers.
        resume: Whether the call continues the last one.
    """
    now = next_round(trainer, resume)
    memory_of(trainer).round = now
    return now


def next_round(trainer: Any, resume: bool) -> Round:
    """Return the round that a call belongs to.

    Args:
        trainer: One of sbi's trainers.
        resume: Whether the call continues the last one.
    """
    last = memory_of(trainer).round
    if last is None:
        return Round(first_step=0 if resume else _epochs_so_far(trainer))
    if resume or not last.complete:
        return replace(last, complete=False)
    return Round(
        index=last.index + 1,
        first_step=_epochs_so_far(trainer),
        first_iteration=last.first_iteration + last.iterations,
    )


def end_round(memory: TrainerMemory, now: Round, iterations: int) -> None:
    """Record that a training has ended regularly after this many optimizer steps."""
    memory.round = replace(now, iterations=iterations, complete=True)


def _epochs_so_far(trainer: Any) -> int:
    return len(private(trainer).summary["training_loss"])


# --- run directories

_given: dict[Path, list[tuple[weakref.ref[Any], str]]] = {}
"""Which trainers of this process use which folders below directories that they share."""


def directory_of(trainer: Any, call: Call, now: Round, batches: Batches) -> Path | None:
    """Return the run directory of a training; None without checkpoints.

    A directory named in the call is used as it is. One from the environment or a file belongs to a
    whole script: its first trainer gets the directory itself, the others `trainer-1`,
    `trainer-2`, ... below it, in the order in which they first train.

    Worker processes share the directory, and their order is not fixed. There a trainer gets
    `training-DIGEST`, a digest of what identifies its first training: settings, data, initial
    weights and random state. A restarted script finds it again if it seeds every training.

    Args:
        trainer: The trainer.
        call: The call.
        now: Its round; rounds after the first get `round-1`, `round-2`, ... below.
        batches: Batches of training data.
    """
    checkpoint = call.settings.checkpoint
    if checkpoint is None:
        return None
    path = Path(checkpoint.directory)
    if call.settings.origin("checkpoint.directory").source != "call":
        path = path / _own_folder(trainer, call, path.absolute(), batches)
    return path / f"round-{now.index}" if now.index else path


def _own_folder(trainer: Any, call: Call, path: Path, batches: Batches) -> str:
    """Return a trainer's folder below a shared directory; "" stands for the directory itself."""
    given = _given.setdefault(path, [])
    for reference, folder in given:
        if reference() is trainer:
            return folder
    if is_worker():
        folder = f"training-{_digest_of(trainer, call, batches)}"
    else:
        folder = f"trainer-{len(given)}" if given else ""
    given.append((weakref.ref(trainer), folder))
    return folder


def _digest_of(trainer: Any, call: Call, batches: Batches) -> str:
    """Return a digest of everything that determines the numbers of a new training."""
    net, train = private(trainer).network, call.settings.to_dict()["train"]
    known = {
        "method": type(trainer).__name__,
        "settings": {name: train[name]["value"] for name in train.keys() - BUDGETS},
        "network": fingerprint_network(net)["digest"],
        # Without buffers: z-scores of many rows depend on the number of threads in the last bits.
        "weights": fingerprint_data(list(net.parameters())),
        "data": batches.fingerprint() or [],
        "random state": fingerprint_data([torch.get_rng_state()]),
    }
    text = json.dumps(known, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
