"""What the processes of these tests do."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from sbi.utils import BoxUniform
from torch import Tensor, nn

import sbi_ignite
from sbi_ignite import EarlyStopping, TrainConfig

ROWS = 203


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def simulations(seed: int = 0, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    theta = 2 * torch.rand(rows, 2, generator=generator) - 1
    return theta, theta + 0.1 * torch.randn(rows, 2, generator=generator)


def prior() -> BoxUniform:
    return BoxUniform(-torch.ones(2), torch.ones(2))


def trainer_of(kind: str, **kwargs: Any) -> Any:
    """Return a trainer, by its name and perhaps its network, with simulations."""
    name, _, network = kind.partition(":")
    theta, x = simulations()
    if name == "MarginalTrainer":
        return sbi_ignite.MarginalTrainer(show_progress_bars=False).append_samples(x)
    if network:
        word = "classifier" if "NRE" in name else "density_estimator"
        kwargs[word] = network
    if name in ("MNLE", "MNPE"):
        mixed = torch.cat([x[:, :1], (x[:, 1:] > 0).float()], dim=1)
        theta, x = (theta, mixed) if name == "MNLE" else (mixed, theta)
    trainer = getattr(sbi_ignite, name)(prior(), show_progress_bars=False, **kwargs)
    return trainer.append_simulations(theta, x)


def what_it_did(trainer: Any, net: nn.Module) -> dict[str, Any]:
    summary = trainer.training_summary
    return {
        "weights": {name: value.clone() for name, value in net.state_dict().items()},
        "training_loss": summary.training_loss,
        "validation_loss": summary.validation_loss,
        "gradient_norm": summary.gradient_norm,
        "epochs": summary.epochs_trained,
        "stop_reason": summary.stop_reason,
        "world_size": summary.world_size,
        "executor": summary.executor,
        "resumed": summary.resumed_from_epoch,
        "run_directory": summary.run_directory,
        "next_random": torch.rand(3),
    }


def train(kind: str, **config: Any) -> dict[str, Any]:
    """Train in the typed form, or with sbi's keywords alone."""
    trainer = trainer_of(kind)
    # The script's own seed differs from rank to rank: training must not depend on it.
    torch.manual_seed(1 + 10 * rank())
    others = ("checkpoint", "callbacks", "early_stopping", "logging")
    arguments = {name: config.pop(name) for name in others if name in config}
    if not config.pop("sbi_form", False):
        arguments["train_config"] = TrainConfig(**{"batch_size": 45, "max_epochs": 1, **config})
        config = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net = trainer.train(**arguments, **config)
    return {
        **what_it_did(trainer, net),
        "warnings": [str(warning.message) for warning in caught],
    }


def train_for_ever(directory: str, **config: Any) -> dict[str, Any]:
    """Train until something ends it."""
    return train(
        "NPE:mdn",
        **{"max_epochs": 10**6, "early_stopping": EarlyStopping.never(), **config},
        checkpoint=directory,
    )


class StopsHere:
    """Asks for the end after an epoch, in one process only."""

    def __init__(self, at: int, where: int) -> None:
        self.at, self.where = at, where

    def on_epoch_end(self, state: Any) -> None:
        if state.epoch == self.at and rank() == self.where:
            state.stop("enough")


class SignalsHere:
    """Sends this process a signal in mid-epoch, in one process only."""

    def __init__(self, number: int, at: int, where: int) -> None:
        self.number, self.at, self.where = number, at, where

    def attach(self, engine: Any) -> None:
        from ignite.engine import Events

        if rank() == self.where:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.at), self._send)

    def _send(self) -> None:
        os.kill(os.getpid(), self.number)


def train_each(calls: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Train one after the other, in the same processes."""
    return {name: train(name.partition(" ")[0], **config) for name, config in calls.items()}


class FirstGradients:
    """Keeps the gradients of the first step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.found = trainer, {}

    def attach(self, engine: Any) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self._look)

    def on_train_start(self, state: Any) -> None:
        self._model = state.model

    def _look(self) -> None:
        named = self._model.named_parameters()
        self.found = {name: p.grad.clone() for name, p in named if p.grad is not None}


def first_gradients(calls: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the gradients of the first step, and the validation loss after the first epoch."""
    results = {}
    for name, config in calls.items():
        trainer = trainer_of(name.partition(" ")[0])
        torch.manual_seed(1)
        look = FirstGradients(trainer)
        settings = {"batch_size": 45, "max_epochs": 1, "clip_max_norm": None, **config}
        net = trainer.train(TrainConfig(**settings), callbacks=[look])
        results[name] = {"gradients": look.found, **what_it_did(trainer, net)}
    return results


def size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
