"""Tune network, widths, rate and batch size with Optuna, and retrain the best trial as an ensemble.

    python examples/tune_optuna.py
    NUM_TRIALS=2 NUM_SIMULATIONS=300 MAX_EPOCHS=2 MEMBERS=2 python examples/tune_optuna.py

Every trial is a run directory, so that their losses can be seen side by side afterwards:

    sbi-ignite show runs/tune/trial-* --plot tune.png

Everything else is said by variables, too, so that a Slurm array shares one study without another
line of Python:

    export STUDY=sqlite:////scratch/me/tune.db SBI_IGNITE_CHECKPOINT__DIRECTORY=/scratch/me/runs
    SCRIPT=../tune_optuna.py MEMBERS=0 sbatch --array=0-9 examples/slurm/job.sh

A trial whose process dies is noticed by its missing heartbeat, and the next one takes it up: it
finds the run directory of the dead one and continues there, in the middle of an epoch if need be.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from torch import Tensor

from sbi_ignite import NPE, OptunaPruning, TrainConfig, train_ensemble

ROOT = Path(os.environ.get("SBI_IGNITE_CHECKPOINT__DIRECTORY", "runs/tune"))
MAX_EPOCHS = int(os.environ.get("MAX_EPOCHS", "100"))
PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))


def simulate(theta: Tensor) -> Tensor:
    """Return a point on one of two crescents, shape (n, 2), for parameters of shape (n, 2)."""
    angle = math.pi * (torch.rand(len(theta)) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta))
    crescent = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], dim=1)
    sums = torch.stack([-theta.sum(1).abs(), theta[:, 1] - theta[:, 0]], dim=1)
    return crescent + sums / math.sqrt(2)


def make_trainer(params: dict[str, Any], theta: Tensor, x: Tensor) -> Any:
    """Return a trainer with the network that a trial asks for."""
    build = posterior_nn(
        params["network"],
        hidden_features=params["hidden_features"],
        num_transforms=params["num_transforms"],
    )
    return NPE(PRIOR, build, show_progress_bars=False).append_simulations(theta, x)


def config_of(params: dict[str, Any]) -> TrainConfig:
    """Return the settings that a trial asks for."""
    return TrainConfig(
        learning_rate=params["learning_rate"],
        batch_size=params["batch_size"],
        max_epochs=MAX_EPOCHS,
        seed=1,  # so that trials differ in their settings alone
    )


def main() -> None:
    """Tune, show what matters, and train the ensemble."""
    torch.set_num_threads(1)
    torch.manual_seed(0)  # every process must have the same simulations
    theta = PRIOR.sample((int(os.environ.get("NUM_SIMULATIONS", "2000")),))
    x = simulate(theta)

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("network", ["maf", "nsf"])
        trial.suggest_int("hidden_features", 16, 64, log=True)
        trial.suggest_int("num_transforms", 2, 6)
        trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        trial.suggest_categorical("batch_size", [50, 100, 200])
        # A trial that takes up a dead one inherits this attribute, and with it the training.
        run = trial.user_attrs.get("run", str((ROOT / f"trial-{trial.number}").absolute()))
        trial.set_user_attr("run", run)
        inference = make_trainer(trial.params, theta, x)
        callbacks = [OptunaPruning(trial)]
        inference.train(config_of(trial.params), checkpoint=run, callbacks=callbacks)
        return inference.training_summary.best_validation_loss

    heartbeat = int(os.environ.get("HEARTBEAT", "60"))
    storage = RDBStorage(
        os.environ.get("STUDY", "sqlite:///tune.db"),
        engine_kwargs={"connect_args": {"timeout": 60}},
        heartbeat_interval=heartbeat,
        grace_period=3 * heartbeat,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(
            max_retry=5, inherit_intermediate_values=True
        ),
    )
    study = optuna.create_study(
        study_name="two moons",
        storage=storage,
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(),
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=10),
    )
    study.optimize(objective, n_trials=int(os.environ.get("NUM_TRIALS", "20")))
    for trial in study.trials:
        print(f"trial {trial.number}: {trial.state.name.lower()} {trial.value} {trial.params}")

    members = int(os.environ.get("MEMBERS", "5"))
    if members:
        best = study.best_trial
        ensemble = train_ensemble(
            lambda: make_trainer(best.params, theta, x),
            members,
            config_of(best.params),
            checkpoint=ROOT / f"best-{best.number}",
        )
        print(ensemble.summary)
        print(ensemble.spread(x[:1]))


if __name__ == "__main__":
    main()
