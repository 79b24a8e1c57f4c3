"""Small programs that only use sbi's public interface, each run with sbi and with sbi_ignite.

A scenario gets the module whose trainers it is to use (`sbi.inference` or
`sbi_ignite.inference`) and a dictionary for whatever else it wants compared, and returns the
trainers it trained. This file must not import sbi_ignite: plain sbi runs it too.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import pickle
import random
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import numpy as np
import sbi.inference
import torch
from sbi.inference.trainers._contracts import LossArgsNRE_A
from sbi.inference.trainers._contracts import TrainConfig as SbiTrainConfig
from sbi.neural_nets import (
    classifier_nn,
    likelihood_nn,
    posterior_flow_nn,
    posterior_nn,
    posterior_score_nn,
)
from sbi.utils import BoxUniform
from sbi.utils.user_input_checks_utils import MultipleIndependent
from torch import Tensor, nn
from torch.distributions import Bernoulli, MultivariateNormal
from torch.utils import data

from .observe import CALLS, Recorder, random_state, snapshot

Notes = dict[str, Any]
Program = Callable[[ModuleType, Notes], Any]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One program with what the suite needs to know about it.

    Attributes:
        name: its name, and the name of its test.
        program: the function.
        seeded_as: the name of the scenario whose seed it uses.
        patched: run through `patch_sbi()`.
        renamed: run with the trainers of `sbi_ignite.inference`.
    """

    name: str
    program: Program
    seeded_as: str
    patched: bool = False
    renamed: bool = True

    def run(self, inference: ModuleType, notes: Notes) -> list[Any]:
        """Run the program and return its trainers."""
        trainers = self.program(inference, notes)
        return list(trainers) if isinstance(trainers, list | tuple) else [trainers]


SCENARIOS: dict[str, Scenario] = {}
CONTROLS: dict[str, Scenario] = {}
"""Programs that differ from a scenario in one small thing, which the comparison must notice."""


def scenario(*, patched: bool = False, renamed: bool = True) -> Callable[[Program], Program]:
    """Register a program under its function's name."""

    def register(program: Program) -> Program:
        name = program.__name__
        SCENARIOS[name] = Scenario(name, program, name, patched, renamed)
        return program

    return register


def variants(
    *, patched: tuple[Any, ...] = (), **choices: tuple[Any, ...]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a program once for each value of its one extra keyword."""
    ((keyword, values),) = choices.items()

    def register(program: Callable[..., Any]) -> Callable[..., Any]:
        for value in values:
            name = f"{program.__name__}_{value}"
            run = functools.partial(program, **{keyword: value})
            SCENARIOS[name] = Scenario(name, run, name, patched=value in patched)
        return program

    return register


def control(of: str) -> Callable[[Program], Program]:
    """Register a disturbed version of the scenario `of`, run with the seed of the original."""

    def register(program: Program) -> Program:
        name = program.__name__
        CONTROLS[name] = Scenario(name, program, seeded_as=of)
        return program

    return register


# ---------------------------------------------------------------------------------------------
# A small problem: two parameters, three numbers observed.

X_O = torch.tensor([[0.4, -0.6, -0.2]])


def box() -> BoxUniform:
    """Return the prior."""
    return BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))


def normal() -> MultivariateNormal:
    """Return a prior with full support, which sampling never has to reject."""
    return MultivariateNormal(torch.zeros(2), torch.eye(2))


def simulate(theta: Tensor) -> Tensor:
    """Return noisy functions of the parameters."""
    mean = torch.cat([theta, theta.prod(dim=1, keepdim=True)], dim=1)
    return mean + 0.3 * torch.randn_like(mean)


def draw(n: int = 200, prior: Any = None) -> tuple[Tensor, Tensor]:
    """Return n simulations."""
    theta = (prior or box()).sample((n,))
    return theta, simulate(theta)


def small(model: str = "maf", **kwargs: Any) -> Callable[..., Any]:
    """Return a builder of a small network for the posterior."""
    sizes = {"mdn": {"num_components": 3}}.get(model, {"num_transforms": 2})
    return posterior_nn(model, hidden_features=12, **{**sizes, **kwargs})


def make(trainer_class: Any, **kwargs: Any) -> Any:
    """Return a trainer whose tracker records, with the box as prior."""
    return trainer_class(**{"prior": box(), "tracker": Recorder(), **kwargs})


def small_npe(inference: ModuleType, n: int = 200, **kwargs: Any) -> Any:
    """Return an NPE trainer with a small network and n simulations."""
    kwargs = {"density_estimator": small(), **kwargs}
    return make(inference.NPE_C, **kwargs).append_simulations(*draw(n))


def sample(posterior: Any, n: int) -> Tensor:
    """Draw parameters from a posterior without its progress bar, which shows times."""
    return posterior.sample((n,), show_progress_bars=False)


SHORT = {"training_batch_size": 50, "max_num_epochs": 3}


def two_rounds(trainer: Any, second: dict[str, Any] | None = None, first_from: Any = None) -> Any:
    """Train on the prior, then once more on draws from the first posterior."""
    trainer.append_simulations(*draw(150, trainer._prior), proposal=first_from)
    trainer.train(**SHORT)
    posterior = trainer.build_posterior().set_default_x(X_O)
    theta = sample(posterior, 120)
    trainer.append_simulations(theta, simulate(theta), proposal=posterior)
    trainer.train(**{**SHORT, **(second or {})})
    return trainer


# ---------------------------------------------------------------------------------------------
# Every method


@variants(model=("maf", "nsf", "mdn", "made", "zuko_maf", "zuko_nsf"), patched=("maf",))
def npe_c(inference: ModuleType, notes: Notes, model: str):
    trainer = small_npe(inference, density_estimator=small(model))
    trainer.train(**SHORT)
    return trainer


@scenario()
def npe_c_default_network(inference: ModuleType, notes: Notes):
    trainer = make(inference.NPE, density_estimator="maf").append_simulations(*draw())
    trainer.train(max_num_epochs=2)
    return trainer


@scenario(patched=True)
def npe_a_two_rounds(inference: ModuleType, notes: Notes):
    return two_rounds(make(inference.NPE_A, prior=normal(), num_components=2))


@scenario()
def npe_b_one_round(inference: ModuleType, notes: Notes):
    trainer = make(inference.NPE_B, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario(patched=True)
def npe_b_two_rounds(inference: ModuleType, notes: Notes):
    prior = normal()
    trainer = make(inference.NPE_B, prior=prior, density_estimator=small())
    return two_rounds(trainer, first_from=prior)


@scenario(patched=True)
def npe_c_two_rounds_atomic(inference: ModuleType, notes: Notes):
    trainer = make(inference.NPE_C, density_estimator=small())
    return two_rounds(trainer, {"num_atoms": 5})


@scenario()
def npe_c_two_rounds_combined_loss(inference: ModuleType, notes: Notes):
    trainer = make(inference.NPE_C, density_estimator=small())
    return two_rounds(trainer, {"use_combined_loss": True})


@scenario()
def npe_c_two_rounds_non_atomic(inference: ModuleType, notes: Notes):
    trainer = make(inference.NPE_C, prior=normal(), density_estimator=small("mdn"))
    return two_rounds(trainer)


@scenario()
def npe_c_three_rounds(inference: ModuleType, notes: Notes):
    trainer = two_rounds(make(inference.NPE_C, density_estimator=small("mdn")))
    posterior = trainer.build_posterior().set_default_x(X_O)
    theta = sample(posterior, 100)
    trainer.append_simulations(theta, simulate(theta), proposal=posterior).train(**SHORT)
    return trainer


@scenario(patched=True)
def mnpe(inference: ModuleType, notes: Notes):
    prior = MultipleIndependent(
        [BoxUniform(-torch.ones(2), torch.ones(2)), Bernoulli(torch.ones(1) * 0.7)]
    )
    theta = prior.sample((200,))
    chosen = torch.where(theta[:, -1] == 0, theta[:, 0], theta[:, 1])
    x = (chosen + 0.3 * torch.randn(200)).reshape(-1, 1)
    trainer = make(inference.MNPE, prior=prior).append_simulations(theta, x)
    trainer.train(**SHORT)
    return trainer


@scenario(patched=True)
def mnle(inference: ModuleType, notes: Notes):
    theta = box().sample((200,))
    times = theta[:, :1] + 0.3 * torch.randn(200, 1)
    choices = torch.bernoulli(torch.sigmoid(theta[:, 1:]))
    trainer = make(inference.MNLE).append_simulations(theta, torch.cat([times, choices], dim=1))
    trainer.train(**SHORT)
    return trainer


@scenario(patched=True)
def nle_a(inference: ModuleType, notes: Notes):
    builder = likelihood_nn("maf", hidden_features=12, num_transforms=2)
    trainer = make(inference.NLE_A, density_estimator=builder).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def nle_a_two_rounds(inference: ModuleType, notes: Notes):
    builder = likelihood_nn("nsf", hidden_features=12, num_transforms=2)
    trainer = make(inference.NLE, density_estimator=builder).append_simulations(*draw())
    trainer.train(**SHORT)
    trainer.append_simulations(*draw(120), from_round=1).train(**SHORT)
    return trainer


def small_ratio(inference: ModuleType, name: str, n: int = 200) -> Any:
    """Return a trainer of the NRE family with a small network and n simulations."""
    builder = classifier_nn("resnet", hidden_features=12)
    return make(getattr(inference, name), classifier=builder).append_simulations(*draw(n))


@variants(method=("NRE_A", "NRE_B", "NRE_C", "BNRE"), patched=("NRE_A", "NRE_B", "NRE_C", "BNRE"))
def nre(inference: ModuleType, notes: Notes, method: str):
    trainer = small_ratio(inference, method)
    trainer.train(**SHORT)
    return trainer


@scenario()
def nre_b_two_rounds_with_fewer_atoms(inference: ModuleType, notes: Notes):
    trainer = small_ratio(inference, "NRE")
    trainer.train(**SHORT, num_atoms=30)
    trainer.append_simulations(*draw(100), from_round=1).train(**SHORT, num_atoms=4)
    return trainer


@scenario()
def nre_c_with_its_own_arguments(inference: ModuleType, notes: Notes):
    trainer = small_ratio(inference, "NRE_C")
    trainer.train(**SHORT, num_classes=3, gamma=2.5)
    return trainer


@scenario(patched=True)
def fmpe(inference: ModuleType, notes: Notes):
    trainer = make(inference.FMPE, vf_estimator=posterior_flow_nn("mlp", hidden_features=16))
    trainer.append_simulations(*draw()).train(**SHORT)
    return trainer


@variants(sde_type=("ve", "vp", "subvp"), patched=("ve",))
def npse(inference: ModuleType, notes: Notes, sde_type: str):
    builder = posterior_score_nn("mlp", sde_type=sde_type, hidden_features=16)
    trainer = make(inference.NPSE, vf_estimator=builder)
    trainer.append_simulations(*draw()).train(**SHORT)
    return trainer


def small_flow_matching(inference: ModuleType, n: int = 200) -> Any:
    """Return an FMPE trainer with a small network and n simulations."""
    builder = posterior_flow_nn("mlp", hidden_features=16)
    return make(inference.FMPE, vf_estimator=builder).append_simulations(*draw(n))


@scenario()
def fmpe_with_its_own_arguments(inference: ModuleType, notes: Notes):
    trainer = small_flow_matching(inference)
    times = torch.tensor([0.2, 0.5, 0.9])
    trainer.train(**SHORT, ema_loss_decay=0.3, validation_times=times)
    trainer.append_simulations(*draw(60))
    trainer.train(
        **SHORT, validation_times=3, validation_times_nugget=0.1, force_first_round_loss=True
    )
    return trainer


@scenario()
def fmpe_with_kernel(inference: ModuleType, notes: Notes):
    trainer = small_flow_matching(inference)
    trainer.train(**SHORT, calibration_kernel=kernel)
    return trainer


def small_marginal(inference: ModuleType, n: int = 200) -> Any:
    """Return a trainer of a marginal density with n numbers to learn from."""
    trainer = inference.MarginalTrainer(density_estimator="nsf", tracker=Recorder())
    return trainer.append_samples(simulate(box().sample((n,))))


@scenario(patched=True)
def marginal(inference: ModuleType, notes: Notes):
    trainer = small_marginal(inference)
    trainer.train(**SHORT)
    return trainer


@scenario()
def marginal_trained_twice_without_clipping(inference: ModuleType, notes: Notes):
    trainer = small_marginal(inference)
    trainer.train(**SHORT, clip_max_norm=None)
    trainer.train(training_batch_size=60, max_num_epochs=2, validation_fraction=0.3)
    return trainer


@scenario()
def marginal_stops_by_patience(inference: ModuleType, notes: Notes):
    trainer = small_marginal(inference, 100)
    trainer.train(training_batch_size=30, learning_rate=0.02, stop_after_epochs=2)
    return trainer


@scenario()
def marginal_with_overridden_parts(inference: ModuleType, notes: Notes):
    class Mine(inference.MarginalTrainer):
        def loss(self, x: Tensor) -> Tensor:
            return super().loss(x) * 1.5

        def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
            return super()._converged(epoch, stop_after_epochs) or epoch >= 3

    trainer = Mine("maf", tracker=Recorder()).append_samples(draw()[1])
    trainer.train(training_batch_size=50)
    require(trainer.epoch == 3)
    return trainer


@scenario()
def marginal_with_collate_fn(inference: ModuleType, notes: Notes):
    def collate(rows: list[Any]) -> list[Tensor]:
        x = torch.stack([row[0] for row in rows])
        return [x + 0.1 * torch.randn_like(x)]

    trainer = small_marginal(inference)
    trainer.train(**SHORT, dataloader_kwargs={"collate_fn": collate, "drop_last": False})
    return trainer


@scenario()
def marginal_with_loaders_of_ones_own(inference: ModuleType, notes: Notes):
    class Mine(inference.MarginalTrainer):
        def get_dataloaders(self, *args: Any, **kwargs: Any) -> Any:
            train_loader, val_loader = super().get_dataloaders(*args, **kwargs)
            halves = data.Subset(train_loader.dataset, self.train_indices.tolist()[::2])
            return data.DataLoader(halves, batch_size=20, shuffle=True), val_loader

    trainer = Mine("maf", tracker=Recorder()).append_samples(draw()[1])
    trainer.train(**SHORT)
    return trainer


# ---------------------------------------------------------------------------------------------
# When training stops, and how it goes on


def require(condition: bool) -> None:
    """Fail a scenario that no longer does what its name says."""
    if not condition:
        raise RuntimeError("the scenario does not do what its name says")


@scenario(patched=True)
def stops_by_patience(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference, 120)
    trainer.train(training_batch_size=30, learning_rate=0.02, stop_after_epochs=2)
    require(trainer._epochs_since_last_improvement == 2)
    return trainer


@scenario()
def stops_by_patience_at_the_last_epoch_of_the_budget(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference, 120)
    losses = iter([3.0, 2.0, 2.5, 2.5, 2.5])
    trainer._validate_epoch = lambda *_: next(losses)
    trainer.train(training_batch_size=30, stop_after_epochs=3, max_num_epochs=4)
    return trainer


@scenario()
def fmpe_stops_by_its_rule(inference: ModuleType, notes: Notes):
    trainer = small_flow_matching(inference)
    losses = iter([1.0, 0.9, 0.5, 0.6, 2.0, 9.0, 30.0, 90.0, 200.0, 500.0, 900.0, 2000.0])
    trainer._validate_epoch = lambda *_: next(losses)
    trainer.train(training_batch_size=50, stop_after_epochs=2, ema_loss_decay=0.9)
    require(2 < trainer.epoch < 12)
    return trainer


@scenario()
def npse_stops_by_its_rule(inference: ModuleType, notes: Notes):
    trainer = make(inference.NPSE, vf_estimator=posterior_score_nn("mlp", hidden_features=16))
    trainer.append_simulations(*draw(100))
    trainer.train(
        training_batch_size=30, learning_rate=0.02, stop_after_epochs=2, max_num_epochs=150
    )
    return trainer


@scenario(patched=True)
def resume(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    notes["after the first leg"] = snapshot(trainer)
    trainer.train(training_batch_size=50, max_num_epochs=6, resume_training=True)
    return trainer


@scenario()
def resume_three_legs_with_other_settings(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    trainer.train(max_num_epochs=5, training_batch_size=30, learning_rate=0.1, resume_training=True)
    trainer.train(max_num_epochs=7, training_batch_size=70, clip_max_norm=0.1, resume_training=True)
    return trainer


@scenario()
def resume_after_convergence(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference, 120)
    settings = {"training_batch_size": 30, "learning_rate": 0.02, "stop_after_epochs": 2}
    trainer.train(**settings)
    epochs = trainer.epoch
    trainer.train(**settings, resume_training=True)
    require(trainer.epoch == epochs)
    trainer.train(**{**settings, "stop_after_epochs": 6}, resume_training=True)
    return trainer


@scenario()
def resume_with_the_budget_already_spent(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    trainer.train(**SHORT, resume_training=True)
    return trainer


@scenario(patched=True)
def resume_after_pickling(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    loaded = pickle.loads(pickle.dumps(trainer))
    loaded._tracker = Recorder()
    loaded.train(training_batch_size=50, max_num_epochs=6, resume_training=True)
    notes["next number"] = torch.rand(1)
    trainer.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    return trainer, loaded


@scenario()
def resume_after_pickling_with_the_tracker_it_comes_with(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    loaded = pickle.loads(pickle.dumps(trainer))
    loaded.train(training_batch_size=50, max_num_epochs=6, resume_training=True)
    notes[CALLS] = scalars()
    return loaded


@scenario()
def resume_a_deep_copy(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    twin = copy.deepcopy(trainer)
    twin.train(training_batch_size=50, max_num_epochs=6, resume_training=True)
    return trainer, twin


@variants(method=("NRE_B", "NRE_C"))
def resume_nre(inference: ModuleType, notes: Notes, method: str):
    trainer = small_ratio(inference, method)
    trainer.train(**SHORT)
    trainer.train(training_batch_size=50, max_num_epochs=6, resume_training=True)
    return trainer


@scenario()
def resume_fmpe(inference: ModuleType, notes: Notes):
    trainer = small_flow_matching(inference)
    trainer.train(**SHORT)
    trainer.train(training_batch_size=50, max_num_epochs=6, resume_training=True)
    return trainer


@scenario()
def resume_in_the_second_round(inference: ModuleType, notes: Notes):
    trainer = two_rounds(make(inference.NPE_C, density_estimator=small()))
    trainer.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    return trainer


@scenario()
def resume_with_an_optimizer_of_ones_own(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    trainer.optimizer = torch.optim.SGD(
        trainer._neural_net.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.01
    )
    trainer.train(training_batch_size=50, max_num_epochs=6, resume_training=True)
    return trainer


@scenario()
def resume_after_setting_the_counters(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    trainer.train_indices, trainer.val_indices = torch.arange(150), torch.arange(150, 200)
    trainer.epoch = 0
    trainer._epochs_since_last_improvement = 0
    trainer._best_val_loss = trainer._val_loss = float("inf")
    for group in trainer.optimizer.param_groups:
        group["lr"] = 2e-3
    trainer.train(**SHORT, resume_training=True)
    return trainer


@scenario()
def resume_with_another_validation_fraction(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, validation_fraction=0.3)
    trainer.train(
        training_batch_size=50, max_num_epochs=6, validation_fraction=0.1, resume_training=True
    )
    return trainer


def interrupting(at: int, raised: Callable[[], BaseException]) -> Callable[[Any], Any]:
    """Return a collate_fn that raises at its n-th call, once."""
    calls = 0

    def collate(rows: list[Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise raised()
        return data.default_collate(rows)

    return collate


def train_until_raised(trainer: Any, notes: Notes, expected: type, **settings: Any) -> None:
    """Train, expect an exception, and note what it left behind."""
    try:
        trainer.train(**settings)
    except expected as error:
        notes["raised"] = f"{type(error).__name__}: {error}"
    notes["at the interruption"] = snapshot(trainer)
    notes["random state at the interruption"] = random_state()
    require("raised" in notes)


@scenario(patched=True)
def interrupted_then_resumed(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    # Three training batches and one of validation make an epoch: this is in the third.
    loader = {"collate_fn": interrupting(10, KeyboardInterrupt)}
    train_until_raised(trainer, notes, KeyboardInterrupt, **SHORT, dataloader_kwargs=loader)
    require(trainer.epoch == 2)
    trainer.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    return trainer


@scenario()
def interrupted_in_validation_then_resumed(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    loader = {"collate_fn": interrupting(8, KeyboardInterrupt)}
    train_until_raised(trainer, notes, KeyboardInterrupt, **SHORT, dataloader_kwargs=loader)
    require(not trainer._neural_net.training)
    trainer.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    return trainer


@scenario()
def interrupted_in_the_loss_then_resumed(inference: ModuleType, notes: Notes):
    calls = 0

    def calibrate(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return torch.ones(len(x))

    trainer = small_npe(inference)
    settings = {**SHORT, "calibration_kernel": calibrate}
    train_until_raised(trainer, notes, KeyboardInterrupt, **settings)
    trainer.train(**settings, resume_training=True)
    return trainer


@scenario()
def interrupted_fmpe_then_resumed(inference: ModuleType, notes: Notes):
    trainer = small_flow_matching(inference)
    loader = {"collate_fn": interrupting(6, KeyboardInterrupt)}
    train_until_raised(trainer, notes, KeyboardInterrupt, **SHORT, dataloader_kwargs=loader)
    trainer.train(training_batch_size=50, max_num_epochs=4, resume_training=True)
    return trainer


@scenario()
def interrupted_marginal_then_trained_again(inference: ModuleType, notes: Notes):
    trainer = small_marginal(inference)
    loader = {"collate_fn": interrupting(6, KeyboardInterrupt)}
    train_until_raised(trainer, notes, KeyboardInterrupt, **SHORT, dataloader_kwargs=loader)
    trainer.train(**SHORT)
    return trainer


@scenario()
def interrupted_by_ctrl_c_then_resumed(inference: ModuleType, notes: Notes):
    signalled = iter([False] * 5 + [True])

    def collate(rows: list[Any]) -> Any:
        if next(signalled, False):
            os.kill(os.getpid(), signal.SIGINT)
        return data.default_collate(rows)

    trainer = small_npe(inference)
    loader = {"collate_fn": collate}
    train_until_raised(trainer, notes, KeyboardInterrupt, **SHORT, dataloader_kwargs=loader)
    trainer.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    return trainer


@scenario()
def failed_in_the_users_code_then_resumed(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    loader = {"collate_fn": interrupting(6, lambda: LookupError("from the user"))}
    train_until_raised(trainer, notes, LookupError, **SHORT, dataloader_kwargs=loader)
    trainer.train(training_batch_size=50, max_num_epochs=4, resume_training=True)
    return trainer


@scenario()
def two_trainers_in_turn(inference: ModuleType, notes: Notes):
    one, other = small_npe(inference), small_ratio(inference, "NRE_B")
    one.train(**SHORT)
    other.train(**SHORT)
    one.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    other.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    return one, other


# ---------------------------------------------------------------------------------------------
# Every keyword


@scenario()
def without_clipping(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, learning_rate=5e-3, clip_max_norm=None)
    return trainer


@scenario()
def with_tight_clipping(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, clip_max_norm=0.05)
    return trainer


@scenario()
def sizes_that_divide_nothing(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference, 157)
    trainer.train(training_batch_size=31, validation_fraction=0.37, max_num_epochs=3)
    return trainer


@scenario()
def batch_larger_than_the_data(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference, 60)
    trainer.train(max_num_epochs=3)
    return trainer


@scenario()
def retrain_from_scratch(inference: ModuleType, notes: Notes):
    trainer = make(inference.NPE_C, density_estimator=small())
    return two_rounds(trainer, {"retrain_from_scratch": True})


@scenario()
def nle_retrain_from_scratch_and_discard(inference: ModuleType, notes: Notes):
    builder = likelihood_nn("maf", hidden_features=12, num_transforms=2)
    trainer = make(inference.NLE_A, density_estimator=builder).append_simulations(*draw())
    trainer.train(**SHORT)
    trainer.append_simulations(*draw(120), from_round=1)
    trainer.train(**SHORT, retrain_from_scratch=True, discard_prior_samples=True)
    return trainer


@scenario()
def discard_prior_samples(inference: ModuleType, notes: Notes):
    trainer = make(inference.NPE_C, density_estimator=small())
    return two_rounds(trainer, {"discard_prior_samples": True})


@scenario()
def nre_discard_prior_samples(inference: ModuleType, notes: Notes):
    trainer = small_ratio(inference, "NRE_A")
    trainer.train(**SHORT)
    trainer.append_simulations(*draw(120), from_round=1)
    trainer.train(**SHORT, discard_prior_samples=True)
    return trainer


@scenario()
def force_first_round_loss_with_more_simulations(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT)
    trainer.append_simulations(*draw(90)).train(**SHORT, force_first_round_loss=True)
    return trainer


@scenario()
def force_first_round_loss_in_the_second_round(inference: ModuleType, notes: Notes):
    trainer = make(inference.NPE_C, density_estimator=small())
    return two_rounds(trainer, {"force_first_round_loss": True})


def kernel(x: Tensor) -> Tensor:
    """Weigh simulations by their distance to the observation."""
    return torch.exp(-0.1 * (x - X_O).square().sum(dim=1))


@scenario()
def calibration_kernel(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, calibration_kernel=kernel)
    return trainer


@scenario()
def calibration_kernel_in_the_second_round(inference: ModuleType, notes: Notes):
    trainer = make(inference.NPE_C, density_estimator=small())
    return two_rounds(trainer, {"calibration_kernel": kernel})


@scenario()
def calibration_kernel_that_draws(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, calibration_kernel=lambda x: torch.rand(len(x)) + np.random.rand())
    return trainer


class CountingKernel:
    """A kernel with memory. sbi calls a fresh copy of it for every batch."""

    def __init__(self) -> None:
        self.calls = 0
        self.scale = torch.ones(1)

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.scale *= 0.5
        return self.scale * torch.ones(len(x))


@scenario()
def calibration_kernel_with_memory(inference: ModuleType, notes: Notes):
    trainer, counting = small_npe(inference), CountingKernel()
    trainer.train(**SHORT, calibration_kernel=counting)
    notes["calls"], notes["scale"] = counting.calls, counting.scale
    return trainer


@scenario(patched=True)
def show_train_summary(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference, 120)
    trainer.train(
        training_batch_size=30, learning_rate=0.02, stop_after_epochs=2, show_train_summary=True
    )
    return trainer


@scenario()
def without_progress_bars(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference, show_progress_bars=False)
    trainer.train(**SHORT)
    return trainer


@scenario()
def simulations_with_nan(inference: ModuleType, notes: Notes):
    theta, x = draw()
    x[3, 1], x[9, 0] = float("nan"), float("inf")
    trainer = make(inference.NPE_C, density_estimator=small()).append_simulations(theta, x)
    trainer.train(**SHORT)
    return trainer


@scenario()
def whole_numbers_for_fractions(inference: ModuleType, notes: Notes):
    one, other = small_ratio(inference, "BNRE"), small_ratio(inference, "NRE_C")
    one.train(**SHORT, regularization_strength=20, clip_max_norm=1)
    other.train(**SHORT, gamma=2, learning_rate=1)
    return one, other


@scenario()
def nre_a_with_loss_arguments_of_sbi(inference: ModuleType, notes: Notes):
    trainer = small_ratio(inference, "NRE_A")
    trainer.train(**SHORT, loss_kwargs=LossArgsNRE_A())
    return trainer


FIVE = (50, 0.01, 0.2, 2, 3)
"""Batch size, rate, validation fraction, patience and epochs, as every method orders them."""

FIRST = {"NPE_C": (5,), "NRE_B": (4,), "NRE_C": (3, 2.0), "BNRE": (50.0,)}
"""What some methods take before them."""


@variants(method=("NPE_C", "NPE_A", "NLE_A", "NRE_A", "NRE_B", "NRE_C", "BNRE", "FMPE"))
def positional(inference: ModuleType, notes: Notes, method: str):
    trainer = make(getattr(inference, method)).append_simulations(*draw())
    trainer.train(*FIRST.get(method, ()), *FIVE)
    return trainer


@scenario()
def positional_batch_size_alone(inference: ModuleType, notes: Notes):
    builder = likelihood_nn("maf", hidden_features=12, num_transforms=2)
    trainer = make(inference.NLE_A, density_estimator=builder).append_simulations(*draw(100))
    trainer.train(50, max_num_epochs=3)
    return trainer


# ---------------------------------------------------------------------------------------------
# Data loaders


def halving(rows: list[Any]) -> list[Tensor]:
    """Collate, and keep half of the batch."""
    return [part[: len(rows) // 2] for part in data.default_collate(rows)]


def jittering(rows: list[Any]) -> list[Tensor]:
    """Collate, and add noise from each of the three global generators."""
    theta, x, masks = data.default_collate(rows)
    noise = torch.randn_like(x) * np.random.rand() * random.random()
    return [theta, x + 0.1 * noise, masks]


@scenario(patched=True)
def collate_fn(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, dataloader_kwargs={"collate_fn": halving})
    return trainer


@scenario(patched=True)
def collate_fn_that_draws(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, dataloader_kwargs={"collate_fn": jittering})
    return trainer


@scenario()
def fmpe_collate_fn_that_draws(inference: ModuleType, notes: Notes):
    trainer = small_flow_matching(inference)
    trainer.train(**SHORT, dataloader_kwargs={"collate_fn": jittering})
    return trainer


@scenario()
def workers(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, dataloader_kwargs={"num_workers": 2})
    return trainer


@scenario()
def workers_that_persist_and_draw(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    loader = {"num_workers": 2, "persistent_workers": True, "collate_fn": jittering}
    trainer.train(**SHORT, dataloader_kwargs=loader)
    return trainer


@scenario()
def keep_the_last_batch(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, dataloader_kwargs={"drop_last": False})
    return trainer


@scenario()
def batch_size_through_the_loader(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, dataloader_kwargs={"batch_size": 15})
    return trainer


@scenario()
def generator_of_the_loader(inference: ModuleType, notes: Notes):
    trainer, generator = small_npe(inference), torch.Generator().manual_seed(3)
    trainer.train(**SHORT, dataloader_kwargs={"generator": generator})
    notes["generator"] = generator.get_state()
    return trainer


@scenario()
def sampler_of_ones_own(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    sampler = data.WeightedRandomSampler(torch.arange(200.0), 100)
    trainer.train(**SHORT, dataloader_kwargs={"sampler": sampler})
    return trainer


@scenario()
def pinned_memory_and_other_loader_settings(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    loader = {"timeout": 0, "worker_init_fn": None, "in_order": True}
    trainer.train(**SHORT, dataloader_kwargs=loader)
    return trainer


@scenario()
def loaders_called_for_by_the_user(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    train_loader, val_loader = trainer.get_dataloaders(0, 40, 0.2)
    for name, loader in {"train": train_loader, "val": val_loader}.items():
        notes[name] = {
            "length": len(loader),
            "batch size": loader.batch_size,
            "rows of the data set": len(loader.dataset),
            "a row": list(loader.dataset[3]),
            "is a DataLoader": isinstance(loader, data.DataLoader),
            "drops the last": loader.drop_last,
            "workers": loader.num_workers,
            "sampler's length": len(loader.sampler),
            "first pass": [list(batch) for batch in loader],
            "second pass": [list(batch) for batch in loader],
            "kinds": sorted({type(batch).__name__ for batch in loader}),
        }
    notes["split"] = [trainer.train_indices, trainer.val_indices]
    trainer.train(**SHORT)
    return trainer


class Rows:
    """Batches of fixed rows: iterable, with a length and a batch size, and nothing else."""

    def __init__(self, tensors: tuple[Tensor, ...], first: int, last: int, batch_size: int) -> None:
        self.tensors, self.first, self.last = tensors, first, last
        self.batch_size = batch_size

    def __len__(self) -> int:
        return (self.last - self.first) // self.batch_size

    def __iter__(self) -> Any:
        for start in range(self.first, self.last, self.batch_size):
            yield tuple(t[start : start + self.batch_size] for t in self.tensors)


@scenario()
def loaders_that_are_no_dataloaders(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def get_dataloaders(self, starting_round: int = 0, *args: Any, **kwargs: Any) -> Any:
            tensors = self.get_simulations(starting_round)
            self.train_indices, self.val_indices = torch.arange(160), torch.arange(160, 200)
            return Rows(tensors, 0, 160, 40), Rows(tensors, 160, 200, 20)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


# ---------------------------------------------------------------------------------------------
# Networks as users have them


class Counting(nn.Module):
    """An embedding net with dropout and batch normalisation that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4)
        )
        self.calls = {"training": 0, "evaluation": 0}
        # sbi asks a new network for its output size with one row, which batch norm only takes so.
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Embed a batch."""
        self.calls["training" if self.training else "evaluation"] += 1
        return self.layers(x)


@scenario(patched=True)
def embedding_net(inference: ModuleType, notes: Notes):
    embedding = Counting()
    trainer = small_npe(inference, density_estimator=small(embedding_net=embedding))
    trainer.train(**SHORT)
    notes["calls"] = next(m for m in trainer._neural_net.modules() if isinstance(m, Counting)).calls
    return trainer


@scenario()
def embedding_net_in_nre(inference: ModuleType, notes: Notes):
    builder = classifier_nn("mlp", hidden_features=12, embedding_net_x=Counting())
    trainer = make(inference.NRE_B, classifier=builder).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def embedding_net_in_fmpe(inference: ModuleType, notes: Notes):
    builder = posterior_flow_nn("mlp", hidden_features=16, embedding_net=Counting())
    trainer = make(inference.FMPE, vf_estimator=builder).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def embedding_net_of_pictures(inference: ModuleType, notes: Notes):
    theta = box().sample((150,))
    pictures = theta[:, :1, None] + 0.3 * torch.randn(150, 4, 5)
    embedding = nn.Sequential(
        nn.Unflatten(1, (1, 4)), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(12, 3)
    )
    trainer = make(inference.NPE_C, density_estimator=small("mdn", embedding_net=embedding))
    trainer.append_simulations(theta, pictures).train(**SHORT)
    return trainer


@scenario()
def embedding_net_in_part_frozen(inference: ModuleType, notes: Notes):
    embedding = Counting()
    embedding.layers[0].requires_grad_(False)
    trainer = small_npe(inference, density_estimator=small(embedding_net=embedding))
    trainer.train(**SHORT)
    return trainer


@scenario()
def network_builder_of_ones_own(inference: ModuleType, notes: Notes):
    seen = []

    def build(theta: Tensor, x: Tensor) -> nn.Module:
        seen.append([theta, x])
        net = small("maf")(theta, x)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.1)
        return net

    trainer = small_npe(inference, density_estimator=build)
    trainer.train(**SHORT)
    notes["seen"] = seen
    return trainer


@scenario()
def ensemble(inference: ModuleType, notes: Notes):
    trainers = [small_npe(inference) for _ in range(2)]
    posteriors = []
    for trainer in trainers:
        trainer.train(**SHORT)
        posteriors.append(trainer.build_posterior())
    together = inference.EnsemblePosterior(posteriors).set_default_x(X_O)
    notes["samples"] = together.sample((20,), show_progress_bars=False)
    return trainers


@scenario(patched=True)
def infer_in_one_line(inference: ModuleType, notes: Notes):
    # sbi attributes this warning to the caller of its function, which may be a wrapper here.
    warnings.filterwarnings("ignore", "We discourage the use the simple interface")
    posterior = inference.infer(
        simulate,
        box(),
        "npe_c",
        num_simulations=120,
        init_kwargs={"density_estimator": small()},
        train_kwargs={"max_num_epochs": 2, "training_batch_size": 50},
    )
    notes["weights"] = posterior.posterior_estimator.state_dict()
    return []


# ---------------------------------------------------------------------------------------------
# Trainers as users have them


@scenario(patched=True)
def validate_epoch_replaced_on_the_instance(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    losses = iter([10.0, 9.0, 8.0, 8.5, 7.0, 7.5])
    trainer._validate_epoch = lambda *_a, **_kw: next(losses)
    trainer.train(training_batch_size=50, max_num_epochs=5)
    return trainer


@scenario()
def parts_replaced_on_the_instance(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    shown: list[Any] = []
    trainer._maybe_show_progress = lambda show, epoch: shown.append([show, epoch])
    trainer._converged = lambda epoch, stop_after_epochs: epoch >= 3
    original = trainer._get_losses
    trainer._get_losses = lambda batch, loss_args: 2 * original(batch=batch, loss_args=loss_args)
    trainer.train(training_batch_size=50)
    notes["shown"] = shown
    return trainer


@scenario(patched=True)
def train_epoch_of_ones_own(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def _train_epoch(self, train_loader: Any, clip_max_norm: Any, loss_args: Any) -> float:
            total = 0.0
            for batch in train_loader:
                self.optimizer.zero_grad()
                losses = self._get_losses(batch=batch, loss_args=loss_args)
                (losses.mean() + 0.01 * losses.var()).backward()
                self.optimizer.step()
                total += losses.sum().item()
            return total / (len(train_loader) * train_loader.batch_size)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def epochs_that_call_super(inference: ModuleType, notes: Notes):
    notes["seen"] = seen = []

    class Mine(inference.NPE_C):
        def _train_epoch(self, train_loader: Any, clip_max_norm: Any, loss_args: Any) -> float:
            loss = super()._train_epoch(train_loader, clip_max_norm, loss_args)
            seen.append([self.epoch, loss, self._neural_net.training])
            return loss + 1

        def _validate_epoch(self, val_loader: Any, loss_args: Any) -> float:
            loss = super()._validate_epoch(val_loader, loss_args)
            seen.append([self.epoch, loss, self._neural_net.training])
            return round(loss, 1)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(training_batch_size=50, stop_after_epochs=2, max_num_epochs=6)
    return trainer


@scenario()
def fmpe_epochs_that_call_super(inference: ModuleType, notes: Notes):
    notes["seen"] = seen = []

    class Mine(inference.FMPE):
        def _train_epoch(self, train_loader: Any, clip_max_norm: Any, loss_args: Any) -> float:
            loss = super()._train_epoch(train_loader, clip_max_norm, loss_args)
            seen.append([loss, loss_args.times])
            return loss

        def _validate_epoch(self, val_loader: Any, loss_args: Any) -> float:
            loss = super()._validate_epoch(val_loader, loss_args)
            seen.append([loss, loss_args.times])
            return loss

    trainer = make(Mine, vf_estimator=posterior_flow_nn("mlp", hidden_features=16))
    trainer.append_simulations(*draw()).train(**SHORT)
    return trainer


@scenario()
def converged_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.NRE_B):
        def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
            asked.append([epoch, stop_after_epochs, self._val_loss])
            return super()._converged(epoch, stop_after_epochs) or epoch >= 4

    notes["asked"] = asked = []
    trainer = make(Mine, classifier=classifier_nn("mlp", hidden_features=12))
    trainer.append_simulations(*draw()).train(training_batch_size=50, stop_after_epochs=7)
    require(trainer.epoch == 4)
    return trainer


@scenario()
def losses_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def _get_losses(self, batch: Any, loss_args: Any) -> Tensor:
            losses = super()._get_losses(batch=batch, loss_args=loss_args)
            return losses + 0.1 * torch.rand_like(losses)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def loss_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.NLE_A):
        def _loss(self, theta: Tensor, x: Tensor) -> Tensor:
            return super()._loss(theta, x) + 1e-3 * theta.square().sum(dim=1)

    builder = likelihood_nn("maf", hidden_features=12, num_transforms=2)
    trainer = make(Mine, density_estimator=builder).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def loss_of_npe_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def _loss(self, theta: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            kinds.append(sorted(kwargs))
            return super()._loss(theta, x, *args, **kwargs) * 1.1

    notes["kinds"] = kinds = []
    return two_rounds(make(Mine, density_estimator=small()))


@scenario()
def loss_of_nre_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.BNRE):
        def _loss(self, theta: Tensor, x: Tensor, **kwargs: Any) -> Tensor:
            kinds.append(sorted(kwargs.items()))
            return super()._loss(theta, x, **kwargs) * 1.1

    notes["kinds"] = kinds = []
    trainer = make(Mine, classifier=classifier_nn("mlp", hidden_features=12))
    trainer.append_simulations(*draw()).train(**SHORT)
    return trainer


@scenario()
def summaries_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def _summarize_epoch(
            self, train_loss: float, val_loss: float, epoch_start_time: float, kwargs: Any
        ) -> None:
            super()._summarize_epoch(train_loss, val_loss, epoch_start_time, kwargs)
            self._summary.setdefault("gap", []).append(val_loss - train_loss)

        def _summarize(self, round_: int) -> None:
            super()._summarize(round_)
            self._tracker.log_metric("gap", self._summary["gap"][-1], round_)

        def _report_convergence_at_end(self, epoch: int, max_num_epochs: int) -> None:
            print(f"{epoch} of {max_num_epochs} epochs")

        @staticmethod
        def _describe_round(round_: int, summary: dict[str, list[Any]]) -> str:
            return f"round {round_}: {summary['gap'][-1]}"

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT, show_train_summary=True)
    return trainer


@scenario(patched=True)
def loaders_of_ones_own(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def get_dataloaders(self, *args: Any, **kwargs: Any) -> Any:
            given.append([len(args), sorted(kwargs)])
            train_loader, val_loader = super().get_dataloaders(*args, **kwargs)
            weights = torch.zeros(len(train_loader.dataset))
            weights[self.train_indices] = torch.rand(len(self.train_indices))
            sampler = data.WeightedRandomSampler(weights.tolist(), 90)
            return data.DataLoader(train_loader.dataset, 30, sampler=sampler), val_loader

    notes["given"] = given = []
    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def loaders_rebuilt_from_those_of_super(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def get_dataloaders(self, *args: Any, **kwargs: Any) -> Any:
            loaders = super().get_dataloaders(*args, **kwargs)
            kinds.append([isinstance(loader, data.DataLoader) for loader in loaders])
            return [
                data.DataLoader(
                    loader.dataset,
                    batch_size=loader.batch_size,
                    sampler=loader.sampler,
                    drop_last=loader.drop_last,
                    num_workers=loader.num_workers,
                    collate_fn=jittering,
                )
                for loader in loaders
            ]

    notes["kinds"] = kinds = []
    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def loaders_looked_into_by_an_epoch(inference: ModuleType, notes: Notes):
    notes["seen"] = seen = []

    class Mine(inference.NPE_C):
        def _train_epoch(self, train_loader: Any, clip_max_norm: Any, loss_args: Any) -> float:
            seen.append([len(train_loader.dataset), len(train_loader.sampler)])
            return super()._train_epoch(train_loader, clip_max_norm, loss_args)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def loaders_without_super(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def get_dataloaders(self, starting_round: int = 0, *args: Any, **kwargs: Any) -> Any:
            rows = data.TensorDataset(*self.get_simulations(starting_round))
            self.train_indices, self.val_indices = torch.arange(160), torch.arange(160, 200)
            parts = [data.Subset(rows, range(160)), data.Subset(rows, range(160, 200))]
            return [data.DataLoader(p, batch_size=40, shuffle=True) for p in parts]

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def train_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def train(self, *args: Any, patient: bool = False, **kwargs: Any) -> nn.Module:
            kwargs.setdefault("stop_after_epochs", 9 if patient else 2)
            return super().train(*args, **kwargs)

        def _run_training_loop(self, *args: Any, **kwargs: Any) -> Any:
            loops.append([len(args), sorted(kwargs)])
            return super()._run_training_loop(*args, **kwargs)

    notes["loops"] = loops = []
    trainer = make(Mine, density_estimator=small()).append_simulations(*draw(120))
    trainer.train(patient=True, **SHORT)
    trainer.train(5, **SHORT, resume_training=True)
    return trainer


@scenario()
def network_built_in_a_subclass(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def _initialize_neural_network(self, retrain_from_scratch: bool, start_idx: int) -> None:
            super()._initialize_neural_network(retrain_from_scratch, start_idx)
            for parameter in self._neural_net.parameters():
                parameter.data.mul_(0.9)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def method_replaced_on_the_class(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    seen: list[float] = []

    def validate(self: Any, val_loader: Any, loss_args: Any) -> float:
        seen.append(float(len(val_loader)))
        return 5.0 - len(seen)

    trainer._validate_epoch = MethodType(validate, trainer)
    trainer.train(**SHORT)
    notes["seen"] = seen
    return trainer


def timed(method: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """Wrap a method so that it keeps the name and the module of the original."""

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(method.__name__)
        return method(self, *args, **kwargs)

    return wrapper


@scenario(patched=True)
def methods_wrapped_under_their_own_name(inference: ModuleType, notes: Notes):
    notes["calls"] = calls = []

    class Mine(inference.NPE_C):
        _train_epoch = timed(inference.NPE_C._train_epoch, calls)
        _validate_epoch = timed(inference.NPE_C._validate_epoch, calls)
        _report_convergence_at_end = timed(inference.NPE_C._report_convergence_at_end, calls)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def losses_wrapped_under_their_own_name(inference: ModuleType, notes: Notes):
    notes["calls"] = calls = []

    class Mine(inference.NPE_C):
        _get_losses = timed(inference.NPE_C._get_losses, calls)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario(patched=True)
def train_of_ones_own(inference: ModuleType, notes: Notes):
    class Mine(inference.NLE_A):
        def train(self, epochs: int = 3) -> nn.Module:
            self._round = max(self._data_round_index)
            loaders = self.get_dataloaders(0, 50, 0.2, False, dataloader_kwargs=None)
            self._initialize_neural_network(False, 0)
            config = SbiTrainConfig(
                training_batch_size=50,
                learning_rate=1e-3,
                validation_fraction=0.2,
                stop_after_epochs=20,
                max_num_epochs=epochs,
                resume_training=False,
                retrain_from_scratch=False,
                show_train_summary=True,
                clip_max_norm=None,
            )
            return self._run_training_loop(*loaders, config)

    builder = likelihood_nn("maf", hidden_features=12, num_transforms=2)
    trainer = make(Mine, density_estimator=builder).append_simulations(*draw())
    trainer.train(epochs=2)
    return trainer


@scenario()
def rate_lowered_from_a_hook(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def _summarize_epoch(self, *args: Any, **kwargs: Any) -> None:
            super()._summarize_epoch(*args, **kwargs)
            for group in self.optimizer.param_groups:
                group["lr"] *= 0.5

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def optimizer_replaced_in_an_overridden_epoch(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C):
        def _train_epoch(self, *args: Any, **kwargs: Any) -> float:
            if self.epoch == 0:
                self.optimizer = torch.optim.SGD(self._neural_net.parameters(), lr=1e-3)
            return super()._train_epoch(*args, **kwargs)

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    trainer.train(training_batch_size=50, max_num_epochs=5, resume_training=True)
    return trainer


@scenario()
def validation_loss_that_is_nan(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    losses = iter([3.0, float("nan"), 2.0, float("nan"), float("nan"), 1.0])
    trainer._validate_epoch = lambda *_: next(losses)
    trainer.train(training_batch_size=50, stop_after_epochs=2)
    require(trainer.epoch == 5)
    return trainer


class DefinedBeforeThePatch(sbi.inference.NPE_C):
    """A user's subclass of sbi's own class, which exists before `patch_sbi()` is called."""

    def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
        return super()._converged(epoch, stop_after_epochs) or epoch >= 3


@scenario(patched=True, renamed=False)
def subclass_defined_before_the_patch(inference: ModuleType, notes: Notes):
    trainer = make(DefinedBeforeThePatch, density_estimator=small())
    trainer.append_simulations(*draw()).train(training_batch_size=50)
    require(trainer.epoch == 3)
    loaded = pickle.loads(pickle.dumps(trainer))
    loaded._tracker = Recorder()
    loaded.train(training_batch_size=50, resume_training=True)
    return trainer, loaded


@scenario(patched=True, renamed=False)
def trainer_on_sbis_abstract_base(inference: ModuleType, notes: Notes):
    class Mine(inference.NPE_C.__mro__[1]):
        def _log_prob_proposal_posterior(self, *args: Any) -> Tensor:
            raise NotImplementedError

    trainer = make(Mine, density_estimator=small()).append_simulations(*draw())
    trainer.train(**SHORT)
    return trainer


@scenario()
def in_a_thread(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    thread = threading.Thread(target=trainer.train, kwargs=SHORT)
    thread.start()
    thread.join()
    return trainer


# ---------------------------------------------------------------------------------------------
# Trackers


def scalars() -> list[list[Any]]:
    """Read back what the default tracker wrote to its folder of TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    calls = []
    for folder in sorted(Path("sbi-logs").glob("*/*")):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                kept = 0.0 if tag == "epoch_durations_sec" else event.value
                calls.append([folder.parent.name, tag, kept, event.step])
    return calls


@scenario(patched=True)
def default_tracker(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference, tracker=None)
    trainer.train(**SHORT)
    notes[CALLS] = scalars()
    require(len(notes[CALLS]) == 2 + 3 * 4)
    return trainer


@scenario()
def default_tracker_of_the_marginal_trainer(inference: ModuleType, notes: Notes):
    trainer = inference.MarginalTrainer("maf").append_samples(draw()[1])
    trainer.train(**SHORT)
    notes[CALLS] = scalars()
    return trainer


@scenario()
def tracker_over_two_rounds(inference: ModuleType, notes: Notes):
    trainer = two_rounds(make(inference.NPE_C, density_estimator=small()))
    require(len(trainer._tracker.calls) == 2 * (2 + 3 * 4))
    return trainer


# ---------------------------------------------------------------------------------------------
# Controls: one small thing is different, and the comparison must notice


@control(of="npe_c_maf")
def npe_with_one_more_draw(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    torch.rand(1)
    trainer.train(**SHORT)
    return trainer


@control(of="npe_c_maf")
def npe_with_another_rate(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, learning_rate=5e-4 * (1 + 1e-4))
    return trainer


@control(of="nre_NRE_B")
def nre_with_one_more_draw(inference: ModuleType, notes: Notes):
    trainer = small_ratio(inference, "NRE_B")
    torch.rand(1)
    trainer.train(**SHORT)
    return trainer


@control(of="fmpe")
def fmpe_with_another_rate(inference: ModuleType, notes: Notes):
    trainer = small_flow_matching(inference)
    trainer.train(**SHORT, learning_rate=5e-4 * (1 + 1e-4))
    return trainer


@control(of="marginal")
def marginal_with_one_more_draw(inference: ModuleType, notes: Notes):
    trainer = small_marginal(inference)
    torch.rand(1)
    trainer.train(**SHORT)
    return trainer
