"""Losses that stay on a device until many are read together: the same code, on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from sbi_ignite import NonFiniteLossError, TrainConfig, run_training
from sbi_ignite.data.in_memory import OrderedBatches, ShuffledBatches
from sbi_ignite.handlers import epoch_mean

NUM_ROWS, BATCH = 60, 4


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Leave losses where they are, seven at most; how many were read each time."""
    read: list[int] = []
    own = epoch_mean.EpochMean.read

    def counted(mean: epoch_mean.EpochMean) -> None:
        read.extend([len(mean._unread)] if mean._unread else [])
        own(mean)

    for module in ("steps", "run"):
        monkeypatch.setattr(f"sbi_ignite.training.{module}.reads_later", lambda device: True)
    monkeypatch.setattr(epoch_mean, "MOST_UNREAD", 7)
    monkeypatch.setattr(epoch_mean.EpochMean, "read", counted)
    return read


def squared(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Return losses of shape (batch,)."""
    return (model(batch[0]) - 1).square().mean(dim=1)


def mean_squared(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Return their mean."""
    return squared(model, batch).mean()


def train(loss: Any, x: Tensor, **settings: Any) -> tuple[nn.Module, Any]:
    """Train a linear model for three epochs of 15 steps."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    batches = ShuffledBatches((x,), torch.arange(NUM_ROWS), BATCH, seed=1)
    others = ShuffledBatches((x,), torch.arange(20), BATCH, seed=2)
    config = TrainConfig(max_epochs=3, learning_rate=0.1, clip_max_norm=None, **settings)
    return run_training(config, model, loss, batches, others)


def data() -> Tensor:
    """Return x of shape (60, 2)."""
    return torch.randn(NUM_ROWS, 2, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("loss", [squared, mean_squared])
@pytest.mark.parametrize("compat", [True, False])
def test_when_losses_are_read_changes_nothing(loss: Any, compat: bool, request: Any):
    model, summary = train(loss, data(), sbi_compat=compat)
    read = request.getfixturevalue("unread")
    later, its = train(loss, data(), sbi_compat=compat)
    assert its.training_loss == summary.training_loss
    assert its.validation_loss == summary.validation_loss
    assert torch.equal(later.weight, model.weight)
    assert read == [7, 7, 1, 5] * len(summary.training_loss)


def test_a_loss_that_is_not_finite_is_refused_when_it_is_read(unread: list[int]):
    """The error names the step that had it and its rows, however many steps have followed."""
    x = data()
    x[[11, 42]] = torch.nan
    with pytest.raises(NonFiniteLossError) as caught:
        train(squared, x)
    order = ShuffledBatches((x,), torch.arange(NUM_ROWS), BATCH, seed=1)
    (first, rows), *_ = [
        (i, order.rows.tolist()) for i, (batch,) in enumerate(order, 1) if batch.isnan().any()
    ]
    assert (caught.value.epoch, caught.value.iteration) == (1, first)
    assert caught.value.rows == tuple(row for row in rows if row in (11, 42))
    assert unread == [7] * -(-first // 7)


def test_a_mean_that_is_not_finite_is_refused_with_the_rows_whose_values_are_not(unread: list[int]):
    x = data()
    x[42] = torch.nan
    with pytest.raises(NonFiniteLossError) as caught:
        train(mean_squared, x)
    assert caught.value.rows == (42,)


@pytest.mark.parametrize("compat", [True, False])
def test_a_validation_loss_that_is_not_finite_is_refused_when_it_is_read(
    unread: list[int], compat: bool
):
    """In the epoch that it belongs to, with its rows, and with the best weights so far."""
    best: list[Tensor] = []

    class Spoiling:
        def on_epoch_end(self, state: Any) -> None:
            best[:] = [state.model.weight.detach().clone()]
            if state.epoch == 2:
                x[[3, 17]] = torch.tensor([[torch.inf, 0.0], [torch.nan, 0.0]])

    x = data()
    model = nn.Linear(2, 1)
    batches = ShuffledBatches((data(),), torch.arange(NUM_ROWS), BATCH, seed=1)
    others = OrderedBatches((x,), torch.arange(18), 9)
    with pytest.raises(NonFiniteLossError, match=r"validation loss.*epoch 3, after") as caught:
        run_training(
            TrainConfig(max_epochs=5, learning_rate=0.1, sbi_compat=compat),
            model,
            squared,
            batches,
            others,
            callbacks=[Spoiling()],
        )
    error = caught.value
    assert (error.validation, error.epoch, error.iteration, error.rows) == (True, 3, 45, (3,))
    assert torch.equal(model.weight, best[0])


def test_the_model_keeps_its_best_weights(unread: list[int]):
    """By the time it is noticed, steps have been taken with gradients that are not finite."""
    best: list[Tensor] = []

    class Spoiling:
        def on_epoch_end(self, state: Any) -> None:
            best[:] = [state.model.weight.detach().clone()]
            if state.epoch == 2:
                x[5] = torch.nan

    x = data()
    model = nn.Linear(2, 1)
    batches = ShuffledBatches((x,), torch.arange(NUM_ROWS), BATCH, seed=1)
    with pytest.raises(NonFiniteLossError, match="epoch 3"):
        run_training(
            TrainConfig(max_epochs=3, learning_rate=0.1),
            model,
            squared,
            batches,
            [(data()[:20],)],
            callbacks=[Spoiling()],
        )
    assert torch.equal(model.weight, best[0])


@pytest.mark.parametrize("compat", [True, False])
def test_in_the_first_epoch_everything_is_as_before(unread: list[int], compat: bool):
    """There are no best weights yet; the optimizer forgets what it made of NaN."""
    x = data()
    x[5] = torch.nan
    model = nn.Linear(2, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    batches = ShuffledBatches((x,), torch.arange(NUM_ROWS), BATCH, seed=1)
    config = TrainConfig(max_epochs=3, sbi_compat=compat)
    with pytest.raises(NonFiniteLossError, match="epoch 1"):
        run_training(config, model, squared, batches, [(data()[:20],)], optimizer=optimizer)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert optimizer.state_dict()["state"] == {}


def test_a_training_that_is_broken_off_reads_what_is_left(unread: list[int]):
    """Else a network full of NaN would be returned without a word."""

    class BreakingOff:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=6), engine.terminate)

    x = data()
    x[:] = torch.nan
    batches = ShuffledBatches((x,), torch.arange(NUM_ROWS), BATCH, seed=1)
    with pytest.raises(NonFiniteLossError, match="iteration 1,"):
        run_training(
            TrainConfig(max_epochs=3), nn.Linear(2, 1), squared, batches, callbacks=[BreakingOff()]
        )
