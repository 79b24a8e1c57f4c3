"""Watch a posterior become calibrated while it is trained, and get a verdict at the end.

Coverage of held-out simulations is measured every few epochs, in the same training that would run
without it, and ends the training when it is good enough.

    python examples/check_while_training.py
    python examples/check_while_training.py --max-epochs 4 --num-simulations 500
"""

from __future__ import annotations

import argparse

import torch
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_ignite import NPE, Coverage, EarlyStopping, TrainConfig, TrainingState, check_posterior

options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
options.add_argument("--max-epochs", type=int, default=60)
options.add_argument("--num-simulations", type=int, default=2_000)
options.add_argument("--picture", default="check_while_training.png", help="the check goes here")
choice = options.parse_args()

NAMES = ("distance", "angle")


def simulate(theta: Tensor) -> Tensor:
    """Return noisy positions, shape (n, 2), of points given by distance and angle."""
    distance, angle = theta.T
    position = torch.stack([distance * angle.cos(), distance * angle.sin()], dim=1)
    return position + 0.2 * torch.randn_like(position)


def is_calibrated(state: TrainingState) -> bool:
    """Say whether no credible interval is off by more than 6 %, in this check and the last."""
    errors = list(state.history.metrics.get("coverage/error", {}).values())
    return len(errors) > 1 and max(errors[-2:]) < 0.06


torch.manual_seed(0)
prior = BoxUniform(torch.tensor([0.5, 0.0]), torch.tensor([2.0, 1.5]))
theta = prior.sample((choice.num_simulations,))
inference = NPE(prior, show_progress_bars=False)
inference.append_simulations(theta, simulate(theta))

theta_test = prior.sample((400,))
x_test = simulate(theta_test)
inference.train(
    TrainConfig(max_epochs=choice.max_epochs, learning_rate=2e-3),
    callbacks=Coverage(
        every=2, num_simulations=400, theta=theta_test, x=x_test, parameter_names=NAMES
    ),
    early_stopping=[EarlyStopping.when(is_calibrated), EarlyStopping.validation_loss()],
    logging="none",
)
summary = inference.training_summary
assert summary is not None  # train() has set it; said for type checkers
for name in ("coverage/50", "coverage/90", "coverage/error"):
    values = "  ".join(f"{value:.3f}" for _, value in summary.metrics[name])
    print(f"{name:15} {values}")
print(f"stopped by {summary.stop_reason} after {summary.epochs_trained} epochs\n")

theta_new = prior.sample((500,))  # the rule has looked at the others
check = check_posterior(inference, theta_new, simulate(theta_new), parameter_names=NAMES)
print(check)
check.plot().savefig(choice.picture, dpi=150)
