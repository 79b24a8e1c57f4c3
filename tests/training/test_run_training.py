"""run_training(): any torch module, any loader, no sbi object."""

from __future__ import annotations

import math

import pytest
import torch
import zuko
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from sbi_ignite import (
    ArgumentError,
    EarlyStopping,
    NonFiniteLossError,
    SbiIgniteWarning,
    TrainConfig,
    TrainingSummary,
    run_training,
)
from tests.small import standing_still

X = torch.linspace(-1, 1, 48).reshape(24, 2)
Y = X.sum(dim=1, keepdim=True) + 0.5
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]


def mlp() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


def per_row(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(dim=1)


def scalar(model, batch):
    return per_row(model, batch).mean()


def by_hand(model, optimizer, epochs, clip=5.0, after_step=None, after_epoch=None):
    """The loop that a user would write."""
    losses = []
    for _ in range(epochs):
        total = 0.0
        for batch in BATCHES:
            optimizer.zero_grad()
            row_losses = per_row(model, batch)
            row_losses.mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            total += row_losses.sum().item()
            if after_step is not None:
                after_step()
        losses.append(total / 24)
        if after_epoch is not None:
            after_epoch(losses[-1])
    return losses


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("loss", [per_row, scalar])
def test_it_is_the_loop_one_would_write_by_hand(loss):
    """With a given optimizer, weights and losses are bitwise those of a plain loop."""
    hand, ours = mlp(), mlp()
    losses = by_hand(hand, torch.optim.Adam(hand.parameters(), lr=0.01), epochs=5)
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.01)

    returned, summary = run_training(
        TrainConfig(max_epochs=5), ours, loss, BATCHES, optimizer=optimizer
    )

    assert returned is ours
    assert equal(hand, ours)
    assert summary.training_loss == pytest.approx(losses, rel=1e-6 if loss is scalar else 1e-12)
    assert all(math.isnan(value) for value in summary.validation_loss)
    assert (summary.epochs_trained, summary.best_epoch) == (5, 5)
    assert summary.stop_reason == "max_epochs"
    assert summary.method == "Sequential"


def test_without_a_config_environment_and_defaults_hold(monkeypatch):
    monkeypatch.setenv("SBI_IGNITE_TRAIN__MAX_EPOCHS", "3")
    model, summary = run_training(None, mlp(), per_row, BATCHES)
    assert summary.epochs_trained == 3
    assert summary.learning_rate == (5e-4,) * 3
    assert summary.config["train"]["max_epochs"]["origin"] == "environment"
    assert isinstance(summary, TrainingSummary)
    assert isinstance(model, nn.Module)


def test_a_torch_dataloader_of_uneven_batches_gives_the_mean_over_rows():
    """20 rows in batches of 8 count as 20 rows, for per-row and for scalar losses."""
    loader = DataLoader(TensorDataset(X[:20], Y[:20]), batch_size=8)
    model = mlp()
    with torch.no_grad():
        expected = per_row(model, (X[:20], Y[:20])).mean().item()
    for loss in (per_row, scalar):
        _, summary = run_training(
            TrainConfig(max_epochs=1, optimizer=standing_still), model, loss, loader, loader
        )
        assert summary.training_loss[0] == pytest.approx(expected, rel=1e-6)
        assert summary.validation_loss[0] == pytest.approx(expected, rel=1e-6)


def test_a_zuko_flow_learns():
    torch.manual_seed(0)
    flow = zuko.flows.MAF(2, 2, transforms=1, hidden_features=(8,))
    batches = [(X + 0.1 * torch.randn_like(X), X) for _ in range(4)]
    flow, summary = run_training(
        TrainConfig(max_epochs=30, learning_rate=0.02),
        flow,
        lambda model, batch: -model(batch[1]).log_prob(batch[0]),
        batches[:3],
        batches[3:],
    )
    assert summary.best_validation_loss < summary.validation_loss[0] - 0.5
    assert summary.method == "MAF"


def test_batches_may_be_dictionaries():
    batches = [{"inputs": x, "targets": y} for x, y in BATCHES]

    def loss(model, batch):
        return per_row(model, (batch["inputs"], batch["targets"]))

    named, _ = run_training(TrainConfig(max_epochs=2), mlp(), loss, batches)
    plain, _ = run_training(TrainConfig(max_epochs=2), mlp(), per_row, BATCHES)
    assert equal(named, plain)


def test_batches_may_be_bare_tensors():
    _, summary = run_training(
        TrainConfig(max_epochs=1, optimizer=standing_still),
        mlp(),
        lambda model, x: model(x).square().mean(),
        [X[:8], X[8:10]],
    )
    expected = mlp()(X[:10]).square().mean().item()
    assert summary.training_loss[0] == pytest.approx(expected, rel=1e-6)


def test_the_validation_loss_may_differ_from_the_training_loss():
    class Loss:
        def __call__(self, model, batch):
            return per_row(model, batch)

        def validate(self, model, batch):
            return torch.full((len(batch[0]),), 7.0)

    _, summary = run_training(TrainConfig(max_epochs=1), mlp(), Loss(), BATCHES, BATCHES)
    assert summary.validation_loss == (7.0,)


def test_models_are_in_train_mode_for_training_and_in_eval_mode_for_validation():
    seen = []

    class Loss:
        def __call__(self, model, batch):
            seen.append(("train", model.training, torch.is_grad_enabled()))
            return per_row(model, batch)

        def validate(self, model, batch):
            seen.append(("validate", model.training, torch.is_grad_enabled()))
            return per_row(model, batch)

    run_training(TrainConfig(max_epochs=2), mlp(), Loss(), BATCHES, BATCHES)
    assert set(seen) == {("train", True, True), ("validate", False, False)}
    assert len(seen) == 12


def test_the_best_weights_are_returned_not_the_last():
    """Validation losses that are made up decide which weights come back."""
    losses, kept = iter([3.0, 1.0, 2.0, 2.5]), []

    class Loss:
        def __call__(self, model, batch):
            return per_row(model, batch)

        def validate(self, model, batch):
            return torch.tensor(next(losses))

    class Keep:
        def on_epoch_end(self, state):
            kept.append([p.detach().clone() for p in state.model.parameters()])

    model, summary = run_training(
        TrainConfig(max_epochs=4), mlp(), Loss(), BATCHES, BATCHES[:1], callbacks=[Keep()]
    )
    assert (summary.best_epoch, summary.best_validation_loss) == (2, 1.0)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), kept[1], strict=True))
    assert not torch.equal(next(model.parameters()), kept[3][0])


class Scripted:
    """Made-up validation losses of the sixth row, one an epoch, and a very low training loss."""

    def __init__(self, *losses):
        self._losses = iter(losses)

    def __call__(self, model, batch):
        return per_row(model, batch) - 1e6

    def validate(self, model, batch):
        return torch.where(torch.arange(len(batch[0])) == 5, next(self._losses), 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("compat", [True, False])
def test_a_validation_loss_that_is_not_finite_ends_the_training_with_the_best_weights(bad, compat):
    """The rule of training losses, in both forms: the error names the epoch and the row."""
    kept = {}

    class Keep:
        failed = None

        def on_epoch_end(self, state):
            kept[state.epoch] = [p.detach().clone() for p in state.model.parameters()]

        def on_exception(self, error, state):
            self.failed = error

    model, keep = mlp(), Keep()
    loss = Scripted(2.0, 1.5, 1.8, bad)
    with pytest.raises(NonFiniteLossError, match=r"validation loss.*epoch 4, after") as caught:
        run_training(
            TrainConfig(max_epochs=9, sbi_compat=compat),
            model,
            loss,
            BATCHES,
            BATCHES[:1],
            callbacks=[keep],
        )
    error = caught.value
    assert (error.validation, error.epoch, error.iteration, error.rows) == (True, 4, 12, (5,))
    assert keep.failed is error
    assert sorted(kept) == [1, 2, 3]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), kept[2], strict=True))


def test_negative_losses_improve_downwards():
    values = iter([-1.0, -3.0, -2.0, -2.0])

    class Loss:
        def __call__(self, model, batch):
            return per_row(model, batch)

        def validate(self, model, batch):
            return torch.tensor(next(values))

    _, summary = run_training(
        TrainConfig(),
        mlp(),
        Loss(),
        BATCHES,
        BATCHES[:1],
        early_stopping=EarlyStopping.validation_loss(patience=2),
    )
    assert (summary.best_epoch, summary.best_validation_loss) == (2, -3.0)
    assert summary.epochs_trained == 4


# --- schedulers

PER_EPOCH = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], gamma=0.1),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=4),
    "constant": lambda o: lr_scheduler.ConstantLR(o, 0.1, total_iters=2),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, total_iters=5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=5),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.7),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.5)],
        milestones=[2],
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.9),
}
PER_STEP = {
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=15),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.01, step_size_up=4),
}


@pytest.mark.parametrize("name", [*PER_EPOCH, *PER_STEP])
def test_schedulers_step_as_in_a_loop_by_hand(name):
    """Weights are equal bit for bit, and so is the rate after every epoch."""
    build = {**PER_EPOCH, **PER_STEP}[name]
    hand, ours = mlp(), mlp()
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.05, momentum=0.5)
    scheduler = build(optimizer)
    rates = []

    def after_epoch(loss):
        if name in PER_EPOCH:
            scheduler.step(*([loss] if name == "plateau" else []))
        rates.append(optimizer.param_groups[0]["lr"])

    by_hand(
        hand,
        optimizer,
        epochs=5,
        after_step=scheduler.step if name in PER_STEP else None,
        after_epoch=after_epoch,
    )

    own = torch.optim.SGD(ours.parameters(), lr=0.05, momentum=0.5)
    seen, last = [], []

    class Look:
        def on_epoch_end(self, state):
            seen.append(own.param_groups[0]["lr"])
            last[:] = [p.detach().clone() for p in ours.parameters()]

    run_training(
        TrainConfig(max_epochs=5),
        ours,
        per_row,
        BATCHES,
        optimizer=own,
        scheduler=build(own),
        callbacks=[Look()],
        early_stopping=EarlyStopping.never(),
    )
    assert all(torch.equal(p, q) for p, q in zip(hand.parameters(), last, strict=True))
    assert seen == rates
    assert len(set(rates)) > 1


# --- arguments


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"model": "mlp"}, r"model: expected a torch.nn.Module"),
        ({"loss_fn": 3}, r"loss_fn: expected a callable"),
        ({"train_loader": iter(BATCHES)}, r"train_loader: .*length"),
        ({"val_loader": 3}, r"val_loader: .*DataLoader"),
        ({"train_loader": []}, r"train_loader: .*at least one batch"),
        ({"val_loader": []}, r"val_loader: .*at least one batch"),
        ({"callbacks": [object()]}, r"callbacks: .*on_epoch_end"),
        ({"callbacks": 3}, r"callbacks: .*on_epoch_end.*got 3"),
        ({"early_stopping": "patience"}, r"(?i)early_stopping"),
        ({"config": {"max_epochs": 1}}, r"(?i)TrainConfig"),
        ({"optimizer": "adam"}, r"(?i)optimizer"),
        ({"scheduler": "cosine"}, r"(?i)scheduler"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_of_the_wrong_type_are_refused_before_training(replaced, message):
    """Each error says which argument and what is expected; the model is untouched."""
    model = mlp()
    arguments = {
        "config": TrainConfig(max_epochs=1),
        "model": model,
        "loss_fn": per_row,
        "train_loader": BATCHES,
        **replaced,
    }
    with pytest.raises(ArgumentError, match=message):
        run_training(**arguments)
    assert equal(model, mlp())


def test_one_callback_alone_needs_no_list():
    class Keep:
        epochs = 0

        def on_epoch_end(self, state):
            self.epochs = state.epoch

    keep = Keep()
    run_training(TrainConfig(max_epochs=2), mlp(), per_row, BATCHES, callbacks=keep)
    assert keep.epochs == 2


def test_an_unknown_device_is_refused():
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)device"):
        run_training(TrainConfig(max_epochs=1), mlp(), per_row, BATCHES, device="abacus")


def test_a_loss_that_is_not_finite_names_epoch_iteration_and_rows():
    """The error comes before the step, and the model has the best weights so far."""
    kept = {}

    class Loss:
        calls = 0

        def __call__(self, model, batch):
            self.calls += 1
            losses = per_row(model, batch)
            if self.calls == 8:
                losses = losses * torch.where(torch.arange(8) == 5, math.inf, 1.0)
            return losses

    class Keep:
        failed = None

        def on_epoch_end(self, state):
            kept[state.epoch] = [p.detach().clone() for p in state.model.parameters()]

        def on_exception(self, error, state):
            self.failed = error

    model, keep = mlp(), Keep()
    with pytest.raises(NonFiniteLossError, match=r"epoch 3, iteration 8") as caught:
        run_training(
            TrainConfig(max_epochs=9, learning_rate=0.01), model, Loss(), BATCHES, callbacks=[keep]
        )
    assert (caught.value.epoch, caught.value.iteration) == (3, 8)
    assert caught.value.rows == (5,)
    assert keep.failed is caught.value
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), kept[2], strict=True))


def test_ctrl_c_reaches_the_caller_and_the_callbacks():
    seen = []

    class Interrupt:
        def on_epoch_end(self, state):
            if state.epoch == 2:
                raise KeyboardInterrupt

        def on_exception(self, error, state):
            seen.append((type(error), state.epoch))

        def on_train_end(self, summary):
            seen.append("end")

    with pytest.raises(KeyboardInterrupt):
        run_training(TrainConfig(), mlp(), per_row, BATCHES, callbacks=[Interrupt()])
    assert seen == [(KeyboardInterrupt, 2)]


def test_a_time_limit_before_the_end_of_the_first_epoch_is_told():
    """The network that is returned has never been validated."""
    config = TrainConfig(max_epochs=5, max_time=1e-6)
    with pytest.warns(SbiIgniteWarning, match="before its first epoch was complete"):
        _, summary = run_training(config, mlp(), per_row, BATCHES, BATCHES)
    assert summary.epochs_trained == 0
    assert summary.stop_reason == "time_limit"
