"""An x that meets several theta is embedded once, with the same result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nflows.transforms.made import MADE
from sbi.neural_nets import posterior_flow_nn, posterior_nn, posterior_score_nn
from sbi.utils import BoxUniform
from torch import nn

from sbi_ignite import FMPE, NPE, NPSE, TrainConfig
from sbi_ignite.kernels.embedding import contexts_once, embedding_once
from sbi_ignite.methods.vector_field import VectorFieldLoss
from tests.small import SBI_WARNS

pytestmark = SBI_WARNS
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


class Noting(nn.Sequential):
    """Keeps how many rows it is given."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__(*parts)
        self.rows: list[int] = []
        self[0].register_forward_hook(lambda module, args, out: self.rows.append(len(args[0])))


def gradients(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(net(x).square().sum(), list(net.parameters())))


@pytest.mark.parametrize("times", [1, 2, 10])
def test_outputs_and_gradients_are_those_of_repeated_rows(times):
    torch.manual_seed(0)
    net = Noting(nn.Linear(3, 4), nn.Tanh())
    repeated = X.repeat_interleave(times, dim=0)
    expected, expected_gradients = net(repeated), gradients(net, repeated)
    net.rows.clear()
    with embedding_once(net, len(X)):
        torch.testing.assert_close(net(repeated), expected)
        for ours, plain in zip(gradients(net, repeated), expected_gradients, strict=True):
            torch.testing.assert_close(ours, plain)
    assert net.rows == [6, 6]


def test_other_numbers_of_rows_are_embedded_as_ever():
    net = Noting(nn.Linear(3, 4))
    with embedding_once(net, 4):
        net(X)
        net(X[:3])
    assert net.rows == [6, 3]


def test_the_network_is_afterwards_as_it_was_also_after_an_error():
    net = nn.Linear(3, 4)
    with pytest.raises(RuntimeError), embedding_once(net, 6):
        net(X[:, :2])
    assert "forward" not in vars(net)
    vars(net)["forward"] = own = lambda x: x + 1
    with embedding_once(net, 6):
        assert torch.equal(net(X.repeat_interleave(2, dim=0))[::2], X + 1)
    assert net.forward is own


def flow(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return posterior_nn("maf", hidden_features=8, **options)(torch.randn(20, 2), torch.randn(20, 3))


def losses_and_gradients(net: Any, theta: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
    losses = net.loss(theta, x)
    weights = torch.linspace(-1, 1, len(losses))
    return [losses, *torch.autograd.grad((losses * weights).sum(), list(net.parameters()))]


@pytest.mark.parametrize("times", [1, 2, 10])
@pytest.mark.parametrize("residual", [False, True])
def test_flows_give_the_same_for_contexts_that_are_computed_once(times, residual):
    net = flow()
    parts = [part for part in net.modules() if type(part) is MADE]
    for part in parts if residual else ():
        part.use_residual_blocks = True
    seen: list[int] = []
    for part in parts:
        part.context_layer.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    theta, x = torch.randn(6 * times, 2), X.repeat_interleave(times, dim=0)
    expected = losses_and_gradients(net, theta, x)
    seen.clear()
    with contexts_once(net, len(X)):
        found = losses_and_gradients(net, theta, x)
    assert seen == [6] * len(parts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not any("forward" in vars(part) for part in net.modules())


def test_contexts_of_other_numbers_of_rows_are_computed_as_ever():
    net, theta = flow(), torch.randn(7, 2)
    x = torch.randn(7, 3)
    expected = net.loss(theta, x)
    with contexts_once(net, 6):
        assert torch.equal(net.loss(theta, x), expected)


def second_round(embedding: nn.Module, density_estimator: Any) -> Any:
    torch.manual_seed(0)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((60,))
    x = theta + 0.1 * torch.randn_like(theta)
    build = posterior_nn(density_estimator, embedding_net=embedding, hidden_features=8)
    trainer: Any = NPE(prior, density_estimator=build, show_progress_bars=False)
    trainer.append_simulations(theta, x).train(TrainConfig(max_epochs=1))
    posterior = trainer.build_posterior().set_default_x(x[:1])
    return trainer.append_simulations(theta, x, proposal=posterior)


@pytest.mark.parametrize("density_estimator", ["maf", "nsf", "zuko_nsf"])
def test_a_later_round_embeds_a_batch_once_with_the_losses_that_it_has_otherwise(
    density_estimator, monkeypatch
):
    losses, rows = [], []
    for times in (10**9, None):  # a batch of so many rows is never repeated
        with monkeypatch.context() as patch:
            if times is not None:
                patch.setattr(
                    "sbi_ignite.bridge.losses.embedding_once",
                    lambda net, num_rows, times=times: embedding_once(net, times),
                )
            torch.manual_seed(2)
            embedding = Noting(nn.Linear(2, 3))
            trainer = second_round(embedding, density_estimator)
            embedding.rows.clear()
            torch.manual_seed(1)
            trainer.train(TrainConfig(max_epochs=2, batch_size=20, compile="off"))
            losses.append(trainer.training_summary.training_loss)
            rows.append(max(embedding.rows))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert rows == [180, 18]  # 54 rows in three batches, ten atoms


def test_sbis_form_embeds_as_sbi_does():
    embedding = Noting(nn.Linear(2, 3))
    trainer = second_round(embedding, "maf")
    embedding.rows.clear()
    trainer.train(max_num_epochs=1, training_batch_size=20)
    assert max(embedding.rows) == 200


@pytest.mark.parametrize("in_blocks", [False, True])
def test_rows_that_are_repeated_together_are_told_from_rows_beside_each_other(in_blocks):
    net = nn.Linear(3, 4)
    repeated = X.repeat(5, 1) if in_blocks else X.repeat_interleave(5, dim=0)
    with embedding_once(net, len(X), in_blocks):
        found = net(repeated)
    torch.testing.assert_close(found, net(repeated))


class Validated(nn.Linear):
    """Keeps how many rows it is given while it is validated."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.rows: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            self.rows.append(len(x))
        return super().forward(x)


BUILDERS = {FMPE: (posterior_flow_nn, {}, 1), NPSE: (posterior_score_nn, {"sde_type": "ve"}, 2)}
"""Makers of a builder, their arguments, and how often a loss asks the network."""


@pytest.mark.parametrize("trainer", BUILDERS)
@pytest.mark.parametrize("typed", [False, True])
def test_a_vector_field_is_validated_on_all_rows_of_which_each_is_embedded_once(trainer, typed):
    build, arguments, asked = BUILDERS[trainer]
    embedding = Validated()
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    inference = trainer(
        prior, build("mlp", embedding_net=embedding, **arguments), show_progress_bars=False
    )
    theta = prior.sample((200,))
    inference.append_simulations(theta, torch.cat([theta, theta[:, :1]], 1))
    embedding.train()
    if typed:
        inference.train(TrainConfig(max_epochs=2, batch_size=30, seed=1))
        epochs, rows, times = 2, 20, 1
    else:
        inference.train(max_num_epochs=1, training_batch_size=15)
        epochs, rows, times = 2, 15, 10
    seen = sum(embedding.rows) // asked
    assert seen == epochs * rows * times


@pytest.mark.parametrize("trainer", BUILDERS)
def test_the_validation_loss_of_a_vector_field_is_that_of_rows_embedded_at_every_time(trainer):
    build, arguments, _ = BUILDERS[trainer]
    theta, x = torch.randn(50, 2), torch.randn(50, 3)
    net = build("mlp", embedding_net=nn.Linear(3, 2), **arguments)(theta, x).eval()
    nn.init.normal_(net.net.output_layer.weight)
    times = torch.linspace(0.05, 0.95, 10)
    losses = []
    for once in (False, True):
        torch.manual_seed(3)
        loss = VectorFieldLoss(lambda x: torch.ones(len(x)), times, embeds_once=once)
        losses.append(loss.validate(net, (theta, x)))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-4)
