"""Simulate into a file, train on it without loading it, and go on after an interruption.

    python examples/larger_than_memory.py
    python examples/larger_than_memory.py --simulations 500 --max-epochs 2

The simulator makes 1,000 numbers per simulation; the file could be of any size. Run it twice: the
second call finds the file and the run, and only reads what the first one has left.
"""

from __future__ import annotations

import argparse
import os

import matplotlib.pyplot as plt
import torch
from sbi.analysis import pairplot
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from torch import Tensor, nn

from sbi_ignite import NPE, TrainConfig, open_simulations, simulate_to_file

LENGTH = 1_000


def simulate(theta: Tensor) -> Tensor:
    """Return oscillations of frequency and damping theta (n, 2), shape (n, 1000)."""
    time = torch.linspace(0, 1, LENGTH)
    frequency, damping = 5 + 5 * theta[:, :1], 1 + theta[:, 1:]
    return (-damping * time).exp() * (frequency * time).sin() + 0.1 * torch.randn(
        len(theta), LENGTH
    )


def with_noise(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a batch with fresh noise of the instrument."""
    return theta, x + 0.1 * torch.randn_like(x)


def main() -> None:
    """Simulate, train, and sample."""
    options = argparse.ArgumentParser(description="Train on simulations in a file.")
    options.add_argument("--simulations", type=int, default=5_000)
    options.add_argument("--max-epochs", type=int, default=10)
    options.add_argument("--file", default="oscillations.h5")
    options.add_argument("--run", default="oscillations-run")
    options.add_argument("--picture", help="save a plot of the posterior here")
    budget = options.parse_args()
    torch.set_num_threads(1)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))

    workers = min(2, os.cpu_count() or 1) if budget.simulations > 1_000 else 1
    simulate_to_file(
        simulate, prior, budget.file, budget.simulations, num_workers=workers, seed=1
    ).close()
    simulations = open_simulations(budget.file)
    print(simulations)

    embedding = nn.Sequential(nn.Linear(LENGTH, 64), nn.ReLU(), nn.Linear(64, 16))
    builder = posterior_nn("maf", embedding_net=embedding, z_score_x="structured")
    inference = NPE(prior, density_estimator=builder, show_progress_bars=False)
    inference.append_simulations_from(simulations, transform=with_noise)
    config = TrainConfig(max_epochs=budget.max_epochs, seed=0)
    estimator = inference.train(config, checkpoint=budget.run)
    summary = inference.training_summary
    assert summary is not None  # train() has set it; said for type checkers
    print(
        f"epochs {summary.epochs_trained}, of which {summary.resumed_from_epoch} from an earlier "
        f"call; validation loss {summary.best_validation_loss:.3f}"
    )

    truth = torch.tensor([[0.3, -0.2]])
    samples = inference.build_posterior(estimator).sample(
        (1_000,), x=simulate(truth), show_progress_bars=False
    )
    print(f"true parameters {truth[0].tolist()}, posterior mean {samples.mean(dim=0).tolist()}")
    if budget.picture:
        limits = [[-1.0, 1.0], [-1.0, 1.0]]
        names = ["frequency", "damping"]
        pairplot(samples, points=truth, limits=limits, labels=names, figsize=(5, 5))
        plt.savefig(budget.picture, bbox_inches="tight")


if __name__ == "__main__":
    main()
