"""What a type checker must make of the public interface; read by pyright, never run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from ignite.handlers import Timer
from sbi.neural_nets.estimators import (
    ConditionalDensityEstimator,
    ConditionalVectorFieldEstimator,
    UnconditionalDensityEstimator,
)
from sbi.neural_nets.ratio_estimators import RatioEstimator
from torch import Tensor, nn
from typing_extensions import assert_type

from sbi_ignite import (
    FMPE,
    NLE,
    NPE,
    NRE,
    Callback,
    EarlyStopping,
    LoggingConfig,
    LossArgsNPE,
    LossArgsNRE,
    LossArgsVF,
    LRSchedule,
    MarginalTrainer,
    TrainConfig,
    TrainingState,
    TrainingSummary,
    patch_sbi,
    run_training,
)
from sbi_ignite.inference import NPE_A


class Print(Callback):
    """A callback with two of the methods."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """Print."""
        assert_type(state.epoch, int)
        assert_type(state.validation_loss, float)
        state.stop("enough")

    def on_train_end(self, summary: TrainingSummary) -> None:
        """Print."""
        assert_type(summary.best_validation_loss, float)
        assert_type(summary.training_loss, tuple[float, ...])
        assert_type(summary.stop_reason, str)
        assert_type(summary.to_dict(), dict[str, Any])


config = TrainConfig(
    batch_size=100,
    learning_rate=1e-3,
    max_epochs=10,
    clip_max_norm=None,
    device="cuda:1",
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    lr_schedule=LRSchedule("plateau", factor=0.3),
    max_time=timedelta(hours=1),
    seed=1,
    dataloader_kwargs={"num_workers": 0},
)
TrainConfig(training_batch_size=5, max_num_epochs=3, max_time="01:00:00")

npe = NPE()
net = npe.train(
    config,
    LossArgsNPE(exclude_invalid_x=True),
    logging=[LoggingConfig(backend="stdout"), "jsonl"],
    early_stopping=[EarlyStopping.when(bool), EarlyStopping.lr_threshold(1e-5)],
    checkpoint="runs/a",
    callbacks=[Print(), Timer()],
)
assert_type(net, ConditionalDensityEstimator)
assert_type(npe.train(100, max_num_epochs=3), ConditionalDensityEstimator)
assert_type(npe.training_summary, TrainingSummary | None)
assert_type(NLE().train(config), ConditionalDensityEstimator)
assert_type(NRE().train(config, LossArgsNRE(num_atoms=3)), RatioEstimator)
assert_type(FMPE().train(config, LossArgsVF()), ConditionalVectorFieldEstimator)
assert_type(MarginalTrainer().train(config), UnconditionalDensityEstimator)
assert_type(NPE_A().train(), ConditionalDensityEstimator)


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Return losses of shape (batch,)."""
    return model(batch).square().mean(dim=1)


model, summary = run_training(
    config, nn.Linear(2, 1), loss, [torch.zeros(3, 2)], callbacks=[Print()], device="cpu"
)
assert_type(summary, TrainingSummary)
print(model)

with patch_sbi():
    pass

# Each of these must be an error; an ignore that silences none is one, too.
TrainConfig(batchsize=3)  # pyright: ignore[reportCallIssue]
TrainConfig(batch_size="3")  # pyright: ignore[reportArgumentType]
TrainConfig(optimizer="adamax")  # pyright: ignore[reportArgumentType]
EarlyStopping.validation_loss(patience="3")  # pyright: ignore[reportArgumentType]
LossArgsNRE(num_atom=3)  # pyright: ignore[reportCallIssue]
run_training(config, "mlp", loss, [])  # pyright: ignore[reportArgumentType]
print(npe.training_summary.epochs_trained)  # pyright: ignore[reportOptionalMemberAccess]
