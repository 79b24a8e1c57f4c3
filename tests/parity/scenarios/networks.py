"""Scenarios with networks as users have them."""

from __future__ import annotations

import warnings
from types import ModuleType

import torch
from sbi.neural_nets import classifier_nn, posterior_flow_nn
from torch import Tensor, nn

from .problem import SHORT, X_O, box, draw, make, simulate, small, small_npe
from .registry import Notes, scenario


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
