"""Optuna hears of every epoch, and what it prunes is pruned, not failed, everywhere."""

from __future__ import annotations

import json
import sys
import time
import warnings

import optuna
import pytest
import torch

from sbi_ignite import (
    ArgumentError,
    LoggingConfig,
    MissingPackageError,
    OptunaPruning,
    TrainConfig,
    load_estimator,
    load_run,
    run_training,
)
from sbi_ignite.loggers.memory import Memory
from sbi_ignite.runs.requeue import decide
from tests import forking
from tests.examples.test_tune_optuna import output, start
from tests.loggers import read
from tests.small import ROOT, ready, same, train

optuna.logging.set_verbosity(optuna.logging.WARNING)


class PruneAfter(optuna.pruners.BasePruner):
    """Prunes every trial after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def prune(self, study, trial) -> bool:
        return len(trial.intermediate_values) >= self.epochs


def study(prune_after: int = 10**9, **kwargs):
    return optuna.create_study(pruner=PruneAfter(prune_after), **kwargs)


def objective(trainers, epochs: int = 4, **kwargs):
    def run(trial) -> float:
        trainer = ready()
        trainers.append(trainer)
        torch.manual_seed(2)
        config = TrainConfig(max_epochs=epochs)
        trainer.train(config, callbacks=[OptunaPruning(trial)], **kwargs)
        return trainer.training_summary.best_validation_loss

    return run


def test_every_epochs_validation_loss_is_reported():
    trainers, found = [], study()
    found.optimize(objective(trainers), n_trials=1)
    (trial,) = found.trials
    summary = trainers[0].training_summary
    assert trial.state.name == "COMPLETE"
    assert trial.intermediate_values == dict(enumerate(summary.validation_loss, start=1))
    assert trial.value == min(summary.validation_loss)


def test_a_training_without_a_pruner_is_not_changed_by_the_callback():
    trainers = []
    study().optimize(objective(trainers), n_trials=1)
    assert same(trainers[0], train(ready(), TrainConfig(max_epochs=4)))


def test_a_pruned_run_is_saved_and_called_pruned(tmp_path):
    trainers, found = [], study(prune_after=2)
    found.optimize(objective(trainers, checkpoint=tmp_path), n_trials=1)
    assert [trial.state.name for trial in found.trials] == ["PRUNED"]
    run = load_run(tmp_path)
    assert run.status == "pruned"
    assert json.loads((tmp_path / "run.json").read_text())["stop_reason"] == "pruned"
    assert run.summary is not None
    assert (run.summary.status, run.summary.epochs_trained) == ("pruned", 2)
    assert same(load_estimator(tmp_path), trainers[0])
    # It excuses no error, as an interrupted one would, and it is no step that is still to come.
    assert [decide(tmp_path, "1", code, 60.0).requeue for code in (0, 1)] == [False, False]
    answers = [decide(tmp_path, "1", 138, 60.0).requeue for _ in range(4)]
    assert answers == [True, True, True, False]
    assert json.loads((tmp_path / "requeue.json").read_text())["progress"] == {".": "complete"}


def test_a_pruned_run_that_is_called_again_is_pruned_again(tmp_path):
    for _ in range(2):
        found = study(prune_after=2)
        found.optimize(objective([], checkpoint=tmp_path), n_trials=1)
        assert [trial.state.name for trial in found.trials] == ["PRUNED"]
        assert found.trials[0].intermediate_values.keys() == {1, 2}
    assert load_run(tmp_path).status == "pruned"


def test_a_resumed_training_reports_the_epochs_behind_it(tmp_path):
    """And a trial that has inherited their values is not disturbed by hearing them again."""
    train(ready(), TrainConfig(max_epochs=2), checkpoint=tmp_path)
    found = study()
    found.optimize(objective([], checkpoint=tmp_path), n_trials=1)
    assert list(found.trials[0].intermediate_values) == [1, 2, 3, 4]

    trial = found.ask()
    trial.report(1.0, step=1)
    callback = OptunaPruning(trial)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback._report(2.0, 1)
    assert found.trials[-1].intermediate_values == {1: 1.0}


@pytest.mark.slow
def test_a_trial_that_takes_up_a_killed_one_ends_as_if_undisturbed(tmp_path):
    budget = {"NUM_TRIALS": "1", "MAX_EPOCHS": "40", "MEMBERS": "0", "NUM_SIMULATIONS": "2000"}
    asked = {**budget, "HEARTBEAT": "1"}
    first = start(tmp_path, **asked)
    metrics = tmp_path / "runs" / "tune" / "trial-0" / "metrics.jsonl"
    limit = time.monotonic() + 200
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
        assert time.monotonic() < limit
        time.sleep(0.02)
    first.kill()
    first.communicate()
    time.sleep(5)  # more than its heartbeat may be late
    output(start(tmp_path, **asked))
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'tune.db'}")
    dead, heir = study.trials
    assert heir.params == dead.params
    summary = load_run(metrics.parent).summary
    assert summary is not None
    assert 0 < summary.resumed_from_epoch < summary.epochs_trained

    script = CALM.format(examples=str(ROOT / "examples"), params=heir.params)
    calm = forking.run("-c", script, cwd=tmp_path, **budget)
    assert calm.returncode == 0, calm.stderr
    losses = json.loads(calm.stdout.splitlines()[-1])
    assert list(summary.validation_loss) == losses
    assert heir.intermediate_values == dict(enumerate(losses, start=1))
    assert heir.value == min(losses)


CALM = """
import json, sys
sys.path.insert(0, "{examples}")
import torch, tune_optuna
torch.set_num_threads(1)
torch.manual_seed(0)
theta = tune_optuna.PRIOR.sample((2000,))
trainer = tune_optuna.make_trainer({params}, theta, tune_optuna.simulate(theta))
trainer.train(tune_optuna.config_of({params}))
print(json.dumps(list(trainer.training_summary.validation_loss)))
"""


def test_trackers_say_pruned(tmp_path):
    memory = Memory()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    logging = [
        memory,
        LoggingConfig("jsonl", log_dir=tmp_path / "lines"),
        LoggingConfig("tensorboard", log_dir=tmp_path / "board"),
        LoggingConfig("mlflow", tracking_uri=uri),
    ]
    found = study(prune_after=2)
    found.optimize(objective([], logging=logging), n_trials=1)
    assert memory.status == "pruned"
    last = (tmp_path / "lines" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["status"] == "pruned"
    states = read.sqlite(uri, "select status from runs")
    assert [state for (state,) in states] == ["FINISHED"]
    tags = dict(read.sqlite(uri, "select key, value from tags"))
    assert (tags["status"], tags["stop_reason"]) == ("pruned", "pruned")


def test_wandb_says_pruned(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logging = LoggingConfig("wandb", mode="offline")
    found = study(prune_after=2)
    found.optimize(objective([], logging=logging), n_trials=1)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b'"pruned"' in file.read_bytes()


def test_the_standalone_runner_is_pruned_too():
    def squared_error(model, batch):
        x, y = batch
        return (model(x) - y).square().mean(dim=1)

    batches = [(torch.randn(8, 2), torch.randn(8, 1)) for _ in range(2)]
    found = study(prune_after=3)

    def run(trial):
        callbacks = OptunaPruning(trial)
        run_training(
            TrainConfig(max_epochs=9),
            torch.nn.Linear(2, 1),
            squared_error,
            batches,
            callbacks=callbacks,
        )

    found.optimize(run, n_trials=1)
    (trial,) = found.trials
    assert (trial.state.name, len(trial.intermediate_values)) == ("PRUNED", 3)


@pytest.mark.parametrize(
    ("directions", "words"),
    [
        (["minimize", "minimize"], "which Optuna can prune, got one of 2"),
        (["maximize"], "minimize"),
    ],
)
def test_studies_that_cannot_prune_a_loss_are_refused(directions, words):
    trial = optuna.create_study(directions=directions).ask()
    with pytest.raises(ArgumentError, match=words):
        OptunaPruning(trial)


def test_something_else_than_a_trial_is_refused():
    with pytest.raises(ArgumentError, match=r"expected the trial .* got Study"):
        OptunaPruning(study())


def test_without_optuna_the_line_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingPackageError, match=r'pip install "sbi-ignite\[tune\]"'):
        OptunaPruning(object())
