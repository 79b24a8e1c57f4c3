"""Trainers of every method, with little data and a small network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sbi
import torch
from sbi.neural_nets import (
    classifier_nn,
    likelihood_nn,
    posterior_flow_nn,
    posterior_nn,
    posterior_score_nn,
)
from sbi.utils import BoxUniform
from torch import Tensor

import sbi_ignite.inference
from sbi_ignite.methods.table import TRAINERS

ROOT = Path(__file__).parents[1]

METHODS = tuple(TRAINERS)
"""Every trainer that trains something."""

SBI_WARNS = [
    pytest.mark.filterwarnings(f"ignore:{message}:UserWarning")
    for message in (
        "The mixed neural density estimator assumes",
        "Inferring num_categories from batch_x",
        "Maximum number of epochs",
        "When the inference object is pickled",
        "Data has extreme outliers",
    )
]
"""Marks for tests in which sbi, quite rightly, warns about something else than they promise."""


class Silent:
    """sbi's tracker, without files."""

    log_dir = None

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def log_metric(self, name: str, value: Any, step: int | None = None) -> None:
        self.calls.append((name, step))

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.calls.append(("metrics", step))

    def log_params(self, params: Any) -> None:
        self.calls.append(("params", None))

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        self.calls.append((name, step))

    def flush(self) -> None:
        """Have nothing to write."""


def box(dim: int = 2) -> BoxUniform:
    """Return the prior of all these tests."""
    return BoxUniform(-torch.ones(dim), torch.ones(dim))


def draw(num_rows: int = 120) -> tuple[Tensor, Tensor]:
    """Return parameters and data of shape (num_rows, 2)."""
    theta = box().sample((num_rows,))
    return theta, theta + 0.3 * torch.randn_like(theta)


def flow(hidden_features: int = 8, **kwargs: Any) -> Callable[..., Any]:
    """Return a builder of a small flow for NPE."""
    return posterior_nn("maf", hidden_features=hidden_features, num_transforms=2, **kwargs)


def _networks(name: str) -> dict[str, Any]:
    """Return the constructor's arguments that make the network of a method small."""
    if name in ("NPE_B", "NPE_C"):
        return {"density_estimator": flow()}
    if name == "NPE_A":
        return {"num_components": 2}
    if name == "NLE_A":
        return {"density_estimator": likelihood_nn("maf", hidden_features=8, num_transforms=2)}
    if name in ("NRE_A", "NRE_B", "NRE_C", "BNRE"):
        return {"classifier": classifier_nn("mlp", hidden_features=8)}
    if name == "FMPE":
        return {"vf_estimator": posterior_flow_nn("mlp", hidden_features=16)}
    if name == "NPSE":
        return {"vf_estimator": posterior_score_nn("mlp", hidden_features=16)}
    return {}


def empty(name: str, inference: Any = sbi_ignite.inference, **kwargs: Any) -> Any:
    """Return a trainer without simulations."""
    kwargs = {**_networks(name), "tracker": Silent(), "show_progress_bars": False, **kwargs}
    if name == "MarginalTrainer":
        return inference.MarginalTrainer(**kwargs)
    return getattr(inference, name)(**{"prior": box(), **kwargs})


def append(trainer: Any, theta: Tensor, x: Tensor, **kwargs: Any) -> Any:
    """Append simulations in the way of the trainer; mixed methods get a discrete last column."""
    name = type(trainer).__name__
    if name == "MarginalTrainer":
        return trainer.append_samples(x)
    if name == "MNPE":
        theta = torch.cat([theta[:, :1], (theta[:, 1:] > 0).float()], dim=1)
    if name == "MNLE":
        x = torch.cat([x[:, :1], (x[:, 1:] > 0).float()], dim=1)
    return trainer.append_simulations(theta, x, **kwargs)


def ready(name: str = "NPE_C", num_rows: int = 120, inference: Any = None, **kwargs: Any) -> Any:
    """Return a trainer with simulations, the same ones in every call."""
    torch.manual_seed(1)
    trainer = empty(name, inference or sbi_ignite.inference, **kwargs)
    return append(trainer, *draw(num_rows))


def train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Train from one and the same random state in every call, and return the trainer."""
    torch.manual_seed(2)
    trainer.train(*args, **kwargs)
    return trainer


def second_round(trainer: Any, num_rows: int = 60) -> Any:
    """Append draws from the posterior of the first round."""
    posterior = trainer.build_posterior().set_default_x(torch.zeros(1, 2))
    theta = posterior.sample((num_rows,), show_progress_bars=False).detach()
    trainer.append_simulations(theta, theta + 0.3 * torch.randn_like(theta), proposal=posterior)
    return trainer


def weights(trainer_or_net: Any) -> dict[str, Tensor]:
    """Return a copy of the weights."""
    net = getattr(trainer_or_net, "_neural_net", trainer_or_net)
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(first: Any, second: Any) -> bool:
    """Return whether two trainers, networks or state dicts have bitwise equal weights."""
    a, b = (w if isinstance(w, dict) else weights(w) for w in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def python_path() -> str:
    """Return this tree, and the folder of the sbi in use if PYTHONPATH has it."""
    folder = str(Path(str(sbi.__file__)).parents[1])
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path == folder]
    return os.pathsep.join([str(ROOT), *given])


def environment(**variables: str | None) -> dict[str, str]:
    """Return an environment with this tree importable, one thread, and none of our settings.

    A variable that is None is left out.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SBI_IGNITE", "PYTEST_"))}
    kept |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": python_path()}
    given = {**kept, **variables}
    return {name: value for name, value in given.items() if value is not None}


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run python in a process of its own; `tests.forking.run` does so in less time."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=200,
    )


class Watch:
    """An ignite handler, attached by `callbacks=`: what every epoch trained on and ended with."""

    def __init__(self) -> None:
        self.batches: list[list[Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []

    def attach(self, engine: Any) -> None:
        """Listen to ignite's own events."""
        from ignite.engine import Events

        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self.batches.append([]))
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep_batch)

    def _keep_batch(self, engine: Any) -> None:
        self.batches[-1].append(engine.state.batch[0].clone())

    def on_epoch_end(self, state: Any) -> None:
        """Keep the weights of the epoch."""
        self.weights.append(weights(state.model))


def standing_still(parameters: Any) -> torch.optim.Optimizer:
    """Return an optimizer that changes nothing."""
    return torch.optim.SGD(parameters, lr=0.0)
