"""Track a training in MLflow: one argument.

    python examples/track_mlflow.py
    mlflow ui --backend-store-uri sqlite:///mlflow.db

The same without touching a script of yours:

    SBI_IGNITE_LOGGING__BACKEND=mlflow python -m sbi_ignite your_script.py
"""

from __future__ import annotations

import argparse

import torch
from sbi.utils import BoxUniform

from sbi_ignite import NPE, EarlyStopping, LoggingConfig, TrainConfig


def main() -> None:
    """Infer two parameters with two learning rates and track both, to be compared in MLflow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tracking-uri", default="sqlite:///mlflow.db", help="store or server")
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--picture", help="save the figure that the tracker gets here, too")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    prior = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
    theta = prior.sample((arguments.simulations,))
    x = theta + 0.3 * torch.randn_like(theta)

    for learning_rate in (5e-4, 2e-3):
        inference = NPE(prior, show_progress_bars=False).append_simulations(theta, x)
        inference.train(
            TrainConfig(max_epochs=arguments.epochs, learning_rate=learning_rate, seed=0),
            logging=LoggingConfig(
                "mlflow",
                experiment_name="sbi-ignite-examples",
                tracking_uri=arguments.tracking_uri,
                run_name=f"rate-{learning_rate:g}",
            ),
            early_stopping=EarlyStopping.validation_loss(patience=10),
        )
        print(inference.training_summary)
        if arguments.picture and inference.training_summary:
            inference.training_summary.plot().savefig(arguments.picture)


if __name__ == "__main__":
    main()
