"""An ordinary training script: nothing in it knows about Slurm, checkpoints or time limits.

The job script sets SBI_IGNITE_CHECKPOINT__DIRECTORY; started again, the same script continues.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from sbi.utils import BoxUniform

from sbi_ignite import NPE


def main() -> None:
    """Simulate with a seed, train, and say what came of it."""
    torch.manual_seed(1)  # the same simulations after every requeue
    prior = BoxUniform(-2 * torch.ones(3), 2 * torch.ones(3))
    theta = prior.sample((int(os.environ.get("NUM_SIMULATIONS", "2000")),))
    x = theta + 0.1 * torch.randn_like(theta)

    inference: Any = NPE(prior)
    estimator = inference.append_simulations(theta, x).train(
        max_num_epochs=int(os.environ.get("MAX_EPOCHS", "200"))
    )
    posterior = inference.build_posterior(estimator)
    samples = posterior.sample((1000,), x=torch.zeros(3), show_progress_bars=False)
    print(inference.training_summary)
    print("posterior mean:", [round(value, 3) for value in samples.mean(dim=0).tolist()])


if __name__ == "__main__":
    main()
