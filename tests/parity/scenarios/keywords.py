"""Scenarios of every keyword."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from sbi.inference.trainers._contracts import LossArgsNRE_A
from sbi.neural_nets import likelihood_nn
from torch import Tensor

from .problem import SHORT, draw, kernel, make, small, small_npe, small_ratio, two_rounds
from .registry import Notes, scenario, variants


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
