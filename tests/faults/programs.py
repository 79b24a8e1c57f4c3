"""Small seeded sbi programs that train in a run directory and write their results.

Each program is like a user's script: started again after a kill, it must end with the
same numbers. They run in processes of their own, see `killing.py`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sbi.utils import BoxUniform

from sbi_ignite import (
    FMPE,
    NLE,
    NPE,
    NRE,
    CheckpointConfig,
    LRSchedule,
    Stage,
    TrainConfig,
    WeightAveraging,
)

PRIOR = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))


def simulate(theta: torch.Tensor) -> torch.Tensor:
    return theta + 0.3 * torch.randn_like(theta)


def _train(inference: Any, directory: Path, **kwargs: Any) -> None:
    # Saving within epochs too lets kills fall on every kind of moment.
    checkpoint = CheckpointConfig(directory=directory, every_seconds=0.02)
    config = kwargs.pop("config", None)
    args = (config,) if config is not None else ()
    inference.train(*args, checkpoint=checkpoint, **kwargs)


def _single(trainer: type, rows: int, seed: int, **kwargs: Any) -> Callable[[Path], Any]:
    def program(directory: Path) -> Any:
        torch.manual_seed(seed)
        np.random.seed(seed)
        theta = PRIOR.sample((rows,))
        inference = trainer(PRIOR, show_progress_bars=False)
        inference.append_simulations(theta, simulate(theta))
        _train(inference, directory, **kwargs)
        return inference

    return program


def _two_rounds(typed: bool) -> Callable[[Path], Any]:
    def program(directory: Path) -> Any:
        torch.manual_seed(11)
        x_o = torch.zeros(1, 2)
        proposal: Any = PRIOR
        inference = NPE(PRIOR, show_progress_bars=False)
        kwargs: dict[str, Any] = {"max_num_epochs": 5, "training_batch_size": 50}
        if typed:
            kwargs = {"config": TrainConfig(max_epochs=6, batch_size=50)}
        for _ in range(2):
            theta = proposal.sample((200,))
            inference.append_simulations(theta, simulate(theta), proposal=proposal)
            _train(inference, directory, **kwargs)
            proposal = inference.build_posterior().set_default_x(x_o)
        return inference

    return program


TYPED = TrainConfig(max_epochs=12, batch_size=40)

STAGED = TrainConfig(
    max_epochs=16,
    batch_size=40,
    learning_rate=0.01,
    optimizer="adamw",
    weight_decay=0.01,
    averaging=WeightAveraging("power", factor=4.0),
    stages=[
        Stage(patience=1, max_epochs=5),
        Stage(lr_factor=0.3, weight_decay="best", patience=1, max_epochs=4, reset_optimizer=True),
        Stage(lr_factor=0.1, patience=2, min_improvement=0.1, max_epochs=5, reset_average=True),
    ],
)

PROGRAMS: dict[str, Callable[[Path], Any]] = {
    "npe": _single(NPE, 400, 1, max_num_epochs=10, training_batch_size=50),
    "npe_typed_plateau": _single(
        NPE, 400, 2, config=TrainConfig(max_epochs=12, batch_size=50, lr_schedule="plateau")
    ),
    "npe_loader_workers": _single(
        NPE,
        200,
        3,
        max_num_epochs=4,
        training_batch_size=50,
        dataloader_kwargs={"num_workers": 1},
    ),
    "npe_cosine_ema": _single(
        NPE,
        400,
        12,
        config=TrainConfig(
            max_epochs=12,
            batch_size=50,
            lr_schedule=LRSchedule("cosine", warmup_steps=20),
            ema_decay=0.95,
        ),
    ),
    "npe_one_cycle_power_loader_workers": _single(
        NPE,
        200,
        13,
        config=TrainConfig(
            max_epochs=4,
            batch_size=50,
            lr_schedule="one_cycle",
            averaging="power",
            dataloader_kwargs={"num_workers": 1},
        ),
    ),
    "nre_stages": _single(NRE, 400, 14, config=STAGED),
    "fmpe_stages": _single(FMPE, 400, 15, config=STAGED),
    "npe_traced": _single(
        NPE,
        400,
        16,
        config=TrainConfig(
            max_epochs=12, batch_size=50, compile="trace", lr_schedule="cosine", ema_decay=0.95
        ),
    ),
    "nre_traced_stages": _single(
        NRE, 400, 17, config=STAGED.model_copy(update={"compile": "trace"})
    ),
    "fmpe_traced": _single(
        FMPE, 400, 18, config=TrainConfig(max_epochs=12, batch_size=40, compile="trace")
    ),
    "nle": _single(NLE, 400, 4, max_num_epochs=10, training_batch_size=50),
    "nre": _single(NRE, 400, 5, config=TYPED),
    "nre_as_sbi": _single(NRE, 400, 6, max_num_epochs=10, training_batch_size=50),
    "fmpe": _single(FMPE, 400, 7, config=TYPED),
    "fmpe_as_sbi": _single(FMPE, 400, 8, max_num_epochs=10, training_batch_size=50),
    "npe_two_rounds": _two_rounds(typed=False),
    "npe_two_rounds_typed": _two_rounds(typed=True),
}


def results(inference: Any, directory: Path) -> dict[str, Any]:
    """Return everything that must not depend on kills, as plain data and tensors."""
    rounds = [directory, *sorted(directory.glob("round-*"))]
    summary = inference.training_summary.to_dict()
    # What is about the last call only: too few steps may be left to record them, for instance.
    of_this_call = ("epoch_durations_sec", "resumed_from_epoch", "executor", "executor_reason")
    for name in (*of_this_call, "run_directory", "config"):
        summary.pop(name)
    books = {k: v for k, v in inference.summary.items() if k != "epoch_durations_sec"}
    return {
        "weights": dict(inference._neural_net.state_dict()),
        "fruitless": inference._epochs_since_last_improvement,
        "best": dict(inference._best_model_state_dict),
        "summary": summary,
        "books": books,
        "metrics": [row for part in rounds for row in _metrics(part / "metrics.jsonl")],
        "random": [torch.rand(3), torch.from_numpy(np.random.rand(3))],
        "status": [json.loads((part / "run.json").read_text())["status"] for part in rounds],
    }


def _metrics(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{n: v for n, v in row.items() if n != "epoch_durations_sec"} for row in rows]


def run(name: str, directory: Path, out: Path) -> None:
    """Train and write the results; called in a process that may be killed at any instant."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sbi's words about spent budgets
        inference = PROGRAMS[name](directory)
    partial = out.with_suffix(".partial")
    torch.save(results(inference, directory), partial)
    partial.replace(out)
