"""Scenarios of every method."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from sbi.neural_nets import likelihood_nn, posterior_flow_nn, posterior_score_nn
from sbi.utils import BoxUniform
from sbi.utils.user_input_checks_utils import MultipleIndependent
from torch import Tensor
from torch.distributions import Bernoulli
from torch.utils import data

from tests.parity.observe import Recorder

from .problem import (
    SHORT,
    X_O,
    box,
    draw,
    kernel,
    make,
    normal,
    require,
    sample,
    simulate,
    small,
    small_flow_matching,
    small_marginal,
    small_npe,
    small_ratio,
    two_rounds,
)
from .registry import Notes, scenario, variants


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
