"""Two moons, learned twice: with sbi's default training, and with the recipe of this package.

    python examples/fast_recipe.py
    python examples/fast_recipe.py --simulations 500 --max-epochs 2

Both see the same simulations. Printed are CPU seconds, epochs and the mean negative log-probability
of 5,000 fresh pairs (lower is better), and the values that the recipe has filled in.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from matplotlib.figure import Figure
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_ignite import NPE, Callback, TrainConfig, TrainingState


def simulate(theta: Tensor) -> Tensor:
    """Return a point on one of two crescents, shape (n, 2), for parameters of shape (n, 2)."""
    angle = math.pi * (torch.rand(len(theta)) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta))
    crescent = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], dim=1)
    sums = torch.stack([-theta.sum(1).abs(), theta[:, 1] - theta[:, 0]], dim=1)
    return crescent + sums / math.sqrt(2)


class Clock(Callback):
    """Note the CPU time at the end of every epoch, which other programs do not lengthen."""

    def __init__(self) -> None:
        self.began = time.process_time()
        self.seconds: list[float] = []

    def on_epoch_end(self, state: TrainingState) -> None:
        """Look at the clock."""
        self.seconds.append(time.process_time() - self.began)


def main() -> None:
    """Train both ways and compare."""
    options = argparse.ArgumentParser(description="Train with the recipe and with sbi's defaults.")
    options.add_argument("--simulations", type=int, default=2_000)
    options.add_argument("--max-epochs", type=int, default=2_000)
    options.add_argument("--picture", help="save the losses over time here")
    budget = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta, fresh = prior.sample((budget.simulations,)), prior.sample((5_000,))
    x, fresh_x = simulate(theta), simulate(fresh)

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for name in ("sbi's defaults", "recipe"):
        torch.manual_seed(1)
        inference = NPE(prior, show_progress_bars=False).append_simulations(theta, x)
        clock = Clock()
        if name == "recipe":
            estimator = inference.train(
                TrainConfig.fast(max_epochs=budget.max_epochs), callbacks=[clock]
            )
        else:
            estimator = inference.train(max_num_epochs=budget.max_epochs, callbacks=[clock])
        with torch.no_grad():
            loss = -estimator.log_prob(fresh[None], condition=fresh_x).mean()
        summary = inference.training_summary
        assert summary is not None  # train() has set it; said for type checkers
        epochs = summary.epochs_trained
        print(
            f"\n{name:15} {clock.seconds[-1]:6.1f} s {epochs:5} epochs   held-out loss {loss:.3f}"
        )
        chosen = {n: s for n, s in summary.config["train"].items() if s["origin"] == "recipe"}
        for field, setting in chosen.items():
            print(f"{'':15} {field:15} {setting['value']}")
        axes.plot(clock.seconds, summary.validation_loss, label=f"{name}, held-out loss {loss:.2f}")
    axes.set(xlabel="CPU seconds", ylabel="validation loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    if budget.picture:
        figure.savefig(budget.picture)


if __name__ == "__main__":
    main()
