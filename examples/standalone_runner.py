"""run_training() on one page: train a plain torch module, without any sbi object.

A network is fitted to noisy samples of a sine, and its loss curves are plotted.

    python examples/standalone_runner.py --max-epochs 200
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sbi_ignite import EarlyStopping, LRSchedule, TrainConfig, run_training

options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
options.add_argument("--max-epochs", type=int, default=300)
options.add_argument("--picture", default="standalone_runner.png", help="loss curves go here")
choice = options.parse_args()

torch.manual_seed(0)
inputs = torch.linspace(-3, 3, 600)[torch.randperm(600)].unsqueeze(1)
targets = torch.sin(inputs) + 0.1 * torch.randn_like(inputs)
train_loader = DataLoader(TensorDataset(inputs[:500], targets[:500]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(inputs[500:], targets[500:]), batch_size=50)


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the loss of every row, shape (batch,)."""
    x, y = batch
    return (model(x) - y).square().mean(dim=1)


model, summary = run_training(
    TrainConfig(
        learning_rate=0.01,
        max_epochs=choice.max_epochs,
        lr_schedule=LRSchedule("plateau", patience=5),
    ),
    nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1)),
    squared_error,
    train_loader,
    val_loader,
    early_stopping=[EarlyStopping.validation_loss(patience=30), EarlyStopping.lr_threshold(1e-5)],
)
print(summary)
print(f"root mean squared error: {summary.best_validation_loss**0.5:.3f} (noise: 0.1)")
summary.plot().savefig(choice.picture)
