"""Train one network with several processes: the script is the same as for one.

    python examples/distributed.py
    torchrun --standalone --nproc-per-node=2 examples/distributed.py
    srun --ntasks=2 python examples/distributed.py
    torchrun --standalone --nproc-per-node=2 examples/distributed.py --shards own

`batch_size` counts the rows of all processes together, so that every line gives the same training
up to rounding. With `--shards own`, each process simulates a part of the rows and no process ever
holds all of them.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_ignite import NPE, EarlyStopping, TrainConfig

RANK = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
SIZE = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)


def simulate(theta: Tensor) -> Tensor:
    """Return the two crescents of sbi's "two moons" task, shape (n, 2)."""
    angle = torch.pi * (torch.rand(len(theta)) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta))
    crescent = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], dim=1)
    first = -(theta[:, 0] + theta[:, 1]).abs() / 2**0.5
    second = (theta[:, 1] - theta[:, 0]) / 2**0.5
    return crescent + torch.stack([first, second], dim=1)


def main() -> None:
    """Simulate, train with all processes, and let the first one say what came of it."""
    options = argparse.ArgumentParser(description="Train with one process or several.")
    options.add_argument("--simulations", type=int, default=4_000)
    options.add_argument("--max-epochs", type=int, default=30)
    options.add_argument("--shards", choices=["same", "own"], default="same")
    options.add_argument("--picture", help="save the loss curves here")
    budget = options.parse_args()

    # The same seed gives all processes the same rows. Rows of their own need seeds of their own.
    own = budget.shards == "own"
    torch.manual_seed(RANK if own else 0)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((budget.simulations // (SIZE if own else 1),))
    x = simulate(theta)

    inference: Any = NPE(prior, show_progress_bars=False)
    inference.append_simulations(theta, x).train(
        TrainConfig(
            batch_size=200,
            learning_rate=2e-3,
            max_epochs=budget.max_epochs,
            shards=budget.shards,
        ),
        early_stopping=EarlyStopping.validation_loss(patience=8),
    )
    # All processes have the same network now, and draw the same random numbers again.
    samples = inference.build_posterior().sample(
        (1_000,), x=torch.zeros(2), show_progress_bars=False
    )
    if RANK == 0:
        print(inference.training_summary)
        print("posterior mean:", [round(value, 2) for value in samples.mean(dim=0).tolist()])
        if budget.picture:
            inference.training_summary.plot().savefig(budget.picture)


if __name__ == "__main__":
    main()
