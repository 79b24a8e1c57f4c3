"""Track a training in Weights & Biases: one argument.

    python examples/track_wandb.py               # offline: `wandb sync wandb/offline-run-*` later
    python examples/track_wandb.py --online      # after `wandb login`

The same without touching a script of yours:

    SBI_IGNITE_LOGGING__BACKEND=wandb python -m sbi_ignite your_script.py
"""

from __future__ import annotations

import argparse

import torch
from sbi.utils import BoxUniform

from sbi_ignite import NPE, EarlyStopping, LoggingConfig, TrainConfig


def main() -> None:
    """Infer two parameters from noisy data and track the training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--online", action="store_true", help="send to the server while training")
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--picture", help="save the figure that the tracker gets here, too")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    prior = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
    theta = prior.sample((arguments.simulations,))
    x = theta + 0.3 * torch.randn_like(theta)

    inference = NPE(prior, show_progress_bars=False).append_simulations(theta, x)
    inference.train(
        TrainConfig(max_epochs=arguments.epochs, learning_rate=1e-3),
        logging=LoggingConfig(
            "wandb",
            project="sbi-ignite-examples",
            mode="online" if arguments.online else "offline",
            tags=["example"],
        ),
        early_stopping=EarlyStopping.validation_loss(patience=10),
    )
    print(inference.training_summary)
    if arguments.picture and inference.training_summary:
        inference.training_summary.plot().savefig(arguments.picture)


if __name__ == "__main__":
    main()
