"""A user's script, with the mistakes that a type checker must name; read by tests, never run."""

import numpy as np
import torch
from torch import Tensor, nn

from sbi_ignite import (
    FMPE,
    NPE,
    NRE,
    Callback,
    CheckpointConfig,
    EarlyStopping,
    LoggingConfig,
    LossArgsMarginal,
    LossArgsNPE,
    LossArgsVF,
    LRSchedule,
    Stage,
    TrainConfig,
    TrainingState,
    find_learning_rate,
    load_estimator,
    load_run,
    patch_sbi,
    run_training,
)
from sbi_ignite.inference import NPE_A, NPE_PFN, MarginalTrainer

npe = NPE()
npe.train(TrainConfig(max_epochs=3), LossArgsNPE(), checkpoint="runs/a", callbacks=[print])
npe.train(TrainConfig(), early_stopping=EarlyStopping.never(), num_atoms=5, logging="jsonl")
npe.train(100)
npe.train(10, 200, 1e-3, max_num_epochs=3, loss_args=LossArgsNPE())
npe.train(learning_rate=1e-3, exclude_invalid_x=True, clip_max_norm=None, checkpoint=False)
NRE().train(num_atoms=3, dataloader_kwargs={"num_workers": 2})
FMPE().train(TrainConfig(), LossArgsVF(), validation_times=5)
NPE_A().train(training_batch_size=100)
MarginalTrainer().train(None, max_num_epochs=3)
marginal = MarginalTrainer().append_samples(torch.zeros(3, 2))
marginal.append_samples(np.zeros((3, 2))).train(TrainConfig(max_epochs=3), LossArgsMarginal())
print(marginal.training_summary)
inference = NPE().append_simulations(torch.zeros(3, 2), torch.zeros(3, 2))
inference.append_simulations_from("simulations.h5").train(TrainConfig())
found = find_learning_rate(inference)
inference.train(TrainConfig(learning_rate=found.suggestion, max_epochs=3))
NPE_PFN().train()


class Print(Callback):
    """Print the loss of every epoch."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """Print."""
        print(state.epoch + 1, state.validation_loss + 1.0)


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Return losses of shape (batch,)."""
    return model(batch).square().mean(dim=1)


config = TrainConfig(stages=[Stage(patience=3)], max_time="01:00:00")
model, summary = run_training(
    config, nn.Linear(2, 1), loss, [torch.zeros(3, 2)], callbacks=[Print()]
)
print(
    summary.best_validation_loss + 1.0, load_run("runs/a").metrics, load_estimator("runs/a").eval()
)
npe.train(logging=LoggingConfig("wandb", mode="offline"), checkpoint=CheckpointConfig("runs/a"))
print(find_learning_rate(npe).rates[0] + 1.0)
with patch_sbi():
    pass

TrainConfig(batchsize=3)  # wrong
TrainConfig(optimizer="adamax")  # wrong
EarlyStopping.validation_loss(patience="3")  # wrong
LoggingConfig(backend="wand")  # wrong
LRSchedule("cosin")  # wrong
CheckpointConfig(3)  # wrong
run_training(config, "mlp", loss, [])  # wrong
load_run(3)  # wrong
npe.training_summary.plot()  # wrong
npe.train(learning_rat=3)  # wrong
npe.train(learning_rate="3")  # wrong
npe.train(TrainConfig(), LossArgsVF())  # wrong
npe.train(TrainConfig(), 100)  # wrong
NPE_A().train(num_atoms=3)  # wrong
NRE().train(gamma=1.0)  # wrong
MarginalTrainer().train(resume_training=True)  # wrong
NPE_PFN().train(TrainConfig())  # wrong
