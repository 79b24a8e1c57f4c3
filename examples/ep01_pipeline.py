"""The complete training pipeline of sbi's enhancement proposal EP-01, as it stands there.

It goes from a prior and a simulator to a posterior. Three things are added to the proposal's text:
`import torch`, `simulate_for_sbi` from where sbi has it, and a picture on request. Progress is
printed instead of sent to wandb, so that the example needs no account.

    python examples/ep01_pipeline.py
    python examples/ep01_pipeline.py --num-simulations 500 --max-epochs 5

With the imports of the proposal, `from sbi.inference import NPE` and `from sbi.training import
TrainConfig, ...`, the same lines run under `python -m sbi_ignite`.
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
import torch
from sbi import utils
from sbi.analysis import pairplot

from sbi_ignite import EarlyStopping, LoggingConfig, LossArgsNPE, TrainConfig
from sbi_ignite.inference import NPE, simulate_for_sbi

options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
options.add_argument("--num-simulations", type=int, default=10_000)
options.add_argument("--max-epochs", type=int, default=1000)
options.add_argument("--picture", help="save a plot of the posterior here")
budget = options.parse_args()


def simulator(theta: torch.Tensor) -> torch.Tensor:
    """Return noisy observations of parameters, shape (num_simulations, 2)."""
    return theta + 0.1 * torch.randn_like(theta)


# Setup simulation
prior = utils.BoxUniform(low=-2 * torch.ones(2), high=2 * torch.ones(2))

# Configure training with type safety and autocomplete
config = TrainConfig(batch_size=100, learning_rate=1e-3, max_epochs=budget.max_epochs)

# Setup logging and early stopping
logging = LoggingConfig(backend="stdout")
early_stop = EarlyStopping.validation_loss(patience=20)

# Train with new features
inference = NPE(prior=prior)
theta, x = simulate_for_sbi(simulator, prior, num_simulations=budget.num_simulations)
inference.append_simulations(theta, x)

neural_net = inference.train(
    config,
    LossArgsNPE(exclude_invalid_x=True),
    logging=logging,
    early_stopping=early_stop,
)

print(inference.training_summary)
posterior = inference.build_posterior(neural_net)
samples = posterior.sample((1000,), x=torch.zeros(1, 2), show_progress_bars=False)
print(f"posterior given x = (0, 0): mean {samples.mean(0)}, spread {samples.std(0)}")
if budget.picture:
    pairplot(samples, limits=[[-0.5, 0.5]] * 2, figsize=(4, 4), labels=["a", "b"])
    plt.savefig(budget.picture, bbox_inches="tight")
