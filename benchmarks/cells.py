"""Trainers and simulations whose epochs are timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sbi.inference
import torch
from sbi.neural_nets import classifier_nn, likelihood_nn, posterior_nn
from sbi.neural_nets.embedding_nets import CNNEmbedding
from sbi.utils import BoxUniform
from torch import Tensor

DIM = 5


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
        trainer: Name of the trainer in `sbi.inference`.
        arguments: Makes the constructor's arguments.
        image: Whether x is an image of 64 x 64 pixels.
        rounds: Rounds; the last one is timed.
        most_rows: Simulations of each of several rounds, at most.
        goal: Wanted ratios of sbi's time to that of the sbi form and of the typed form.
    """

    trainer: str
    arguments: Callable[[], dict[str, Any]] = dict
    image: bool = False
    rounds: int = 1
    most_rows: int = 2_000
    goal: tuple[float, float] | None = None

    def rows(self, asked: int) -> int:
        """Return how many rows the timed round trains on."""
        return 2 * min(asked, self.most_rows) if self.rounds > 1 else asked


def _npe(name: str, **kwargs: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"density_estimator": posterior_nn(name, **kwargs)}


def _embedded() -> dict[str, Any]:
    return _npe("maf", embedding_net=CNNEmbedding((64, 64), output_dim=20))()


CELLS = {
    "NPE maf": Cell("NPE", _npe("maf"), goal=(1.8, 2.2)),
    "NPE nsf": Cell("NPE", _npe("nsf"), goal=(1.03, 1.2)),
    "NPE mdn": Cell("NPE", _npe("mdn"), goal=(1.15, 1.3)),
    "NPE zuko_maf": Cell("NPE", _npe("zuko_maf"), goal=(1.8, 2.2)),
    "NPE zuko_nsf": Cell("NPE", _npe("zuko_nsf"), goal=(1.35, 1.5)),
    "NLE maf": Cell("NLE", lambda: {"density_estimator": likelihood_nn("maf")}, goal=(1.8, 2.2)),
    "NRE resnet": Cell("NRE", lambda: {"classifier": classifier_nn("resnet")}, goal=(1.2, 1.35)),
    "FMPE": Cell("FMPE", goal=(1.2, 1.8)),
    "NPSE": Cell("NPSE", goal=(1.05, 1.4)),
    "NPE, second round": Cell("NPE", _npe("maf"), rounds=2, goal=(1.8, 2.5)),
    "NPE, CNN on 64 x 64": Cell("NPE", _embedded, image=True),
    "NPE, CNN, second round": Cell("NPE", _embedded, image=True, rounds=2, most_rows=500),
}


def simulate(cell: Cell, theta: Tensor) -> Tensor:
    """Return data for parameters: noisy copies, or images of two noisy blobs."""
    if not cell.image:
        return theta + 0.3 * torch.randn_like(theta)
    axis = torch.linspace(-1, 1, 64)
    wide = (-((axis - theta[:, 0:1] / 3) ** 2) * 8).exp()
    high = (-((axis - theta[:, 1:2] / 3) ** 2) * 8).exp()
    return wide[:, None, :] * high[:, :, None] + 0.1 * torch.randn(len(theta), 64, 64)


def make_trainer(cell: Cell, inference: Any, rows: int, device: str) -> Any:
    """Return a trainer with its simulations, the same ones for every way."""
    torch.manual_seed(0)
    bound = 3 * torch.ones(DIM, device=device)
    prior = BoxUniform(-bound, bound)
    rows = min(rows, cell.most_rows) if cell.rounds > 1 else rows
    trainer = getattr(inference, cell.trainer)(
        prior, device=device, show_progress_bars=False, tracker=Nowhere(), **cell.arguments()
    )
    theta = prior.sample((rows,)).cpu()
    trainer.append_simulations(theta, simulate(cell, theta))
    for _ in range(cell.rounds - 1):
        # However the first round was trained, its network is the same in all ways.
        sbi_train = sbi.inference.NPE_C.train
        sbi_train(trainer, max_num_epochs=2 if cell.image else 20)
        x_o = simulate(cell, torch.zeros(1, DIM)) if cell.image else torch.zeros(1, DIM)
        posterior = trainer.build_posterior().set_default_x(x_o)
        theta = posterior.sample((rows,), show_progress_bars=False).cpu()
        trainer.append_simulations(theta, simulate(cell, theta), proposal=posterior)
    return trainer


class Nowhere:
    """A tracker of sbi that keeps nothing."""

    log_dir = None

    def log_metric(self, name: str, value: Any, step: int | None = None) -> None:
        """Keep nothing."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Keep nothing."""

    def log_params(self, params: Any) -> None:
        """Keep nothing."""

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        """Keep nothing."""

    def flush(self) -> None:
        """Have nothing to write."""
