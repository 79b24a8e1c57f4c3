"""A user's script, with the mistakes that a type checker must name; read by tests, never run."""

from sbi_ignite import FMPE, NPE, NRE, EarlyStopping, LossArgsNPE, LossArgsVF, TrainConfig
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
NPE_PFN().train()

npe.train(learning_rat=3)  # wrong
npe.train(learning_rate="3")  # wrong
npe.train(TrainConfig(), LossArgsVF())  # wrong
npe.train(TrainConfig(), 100)  # wrong
NPE_A().train(num_atoms=3)  # wrong
NRE().train(gamma=1.0)  # wrong
MarginalTrainer().train(resume_training=True)  # wrong
NPE_PFN().train(TrainConfig())  # wrong
