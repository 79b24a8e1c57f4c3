"""A run is not continued with another loss, optimizer, scheduler or validation set than it has."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from sbi.utils import BoxUniform
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader, TensorDataset

from sbi_ignite import (
    BNRE,
    FMPE,
    NPE_C,
    NRE_B,
    NRE_C,
    CheckpointMismatchError,
    LossArgsBNRE,
    LossArgsNPE,
    LossArgsNRE,
    LossArgsNRE_C,
    LossArgsVF,
    TrainConfig,
    load_run,
    run_training,
)
from sbi_ignite.runs.fingerprint import differences
from sbi_ignite.runs.objects import describe_scheduler

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))


def trained(trainer, folder, epochs, loss_args=None, **keywords):
    torch.manual_seed(0)
    theta = PRIOR.sample((80,))
    inference = trainer(PRIOR, show_progress_bars=False)
    inference.append_simulations(theta, theta + 0.2 * torch.randn_like(theta))
    config = None if keywords else TrainConfig(max_epochs=epochs)
    inference.train(config, loss_args, checkpoint=folder, **keywords)
    return inference.training_summary


def squared_error(model, batch):
    x, y = batch
    return (model(x) - y).square().mean(dim=1)


def fitted(folder, epochs, make_optimizer=None, make_scheduler=None, val_seed=1):
    """Train a line and return the summary."""
    torch.manual_seed(0)
    x, model = torch.randn(40, 3), nn.Linear(3, 1)
    train = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=10, shuffle=True)
    generator = torch.Generator().manual_seed(val_seed)
    x = torch.randn(10, 3, generator=generator)
    val = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=10)
    optimizer = None if make_optimizer is None else make_optimizer(model.parameters())
    scheduler = None if make_scheduler is None else make_scheduler(optimizer)
    config = TrainConfig(max_epochs=epochs)
    return run_training(
        config, model, squared_error, train, val, optimizer, scheduler, checkpoint=folder
    )[1]


@pytest.mark.parametrize(
    ("trainer", "first", "second", "message"),
    [
        (NRE_B, LossArgsNRE(num_atoms=5), LossArgsNRE(num_atoms=7), "num_atoms .* 5, now it is 7"),
        (NRE_B, None, LossArgsNRE(num_atoms=7), "num_atoms .* 10, now it is 7"),
        (NRE_C, None, LossArgsNRE_C(gamma=2.0), "gamma .* 1.0, now it is 2.0"),
        (FMPE, None, LossArgsVF(validation_times=5), "validation_times .* 10, now it is 5"),
        (
            BNRE,
            LossArgsBNRE(),
            LossArgsBNRE(regularization_strength=1.0),
            "regularization_strength .* 100.0, now",
        ),
    ],
)
@pytest.mark.parametrize("epochs", [2, 3], ids=["a complete run", "more epochs"])
def test_other_loss_arguments_are_not_mixed_into_a_run(
    trainer, first, second, message, epochs, tmp_path
):
    trained(trainer, tmp_path, 2, first)
    with pytest.raises(CheckpointMismatchError, match=f"The loss argument {message}"):
        trained(trainer, tmp_path, epochs, second)


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
def test_loss_arguments_in_sbis_form_are_compared_as_well(tmp_path):
    trained(BNRE, tmp_path, 2, max_num_epochs=1, regularization_strength=1.0)
    with pytest.raises(CheckpointMismatchError, match="regularization_strength differs"):
        trained(BNRE, tmp_path, 2, max_num_epochs=2)


def kernel_of_width(width):
    return lambda x: torch.exp(-x.square().sum(dim=1) / width)


@pytest.mark.parametrize("trainer", [NPE_C, FMPE])
def test_another_calibration_kernel_is_refused(trainer, tmp_path):
    """Two lambdas have the same type; what they compute tells."""
    loss_args = LossArgsNPE if trainer is NPE_C else LossArgsVF
    trained(trainer, tmp_path / "run", 2, loss_args(calibration_kernel=kernel_of_width(1.0)))
    again = loss_args(calibration_kernel=kernel_of_width(1.0))
    assert trained(trainer, tmp_path / "run", 3, again).epochs_trained == 3
    with pytest.raises(CheckpointMismatchError, match=r"calibration kernel differs: .*width=1\.0"):
        trained(trainer, tmp_path / "run", 4, loss_args(calibration_kernel=kernel_of_width(2.0)))


def test_default_loss_arguments_are_the_same_when_they_are_passed(tmp_path):
    trained(NRE_B, tmp_path, 2)
    assert trained(NRE_B, tmp_path, 3, LossArgsNRE(num_atoms=10)).resumed_from_epoch == 2


def test_what_an_older_run_did_not_record_is_not_compared(tmp_path):
    trained(NRE_B, tmp_path, 2, LossArgsNRE(num_atoms=5))
    now = load_run(tmp_path).manifest
    new = ("optimizer", "scheduler", "validation_data")
    older = {name: value for name, value in now.items() if name not in new}
    assert differences({**older, "loss_arguments": {}}, now) == []


@pytest.mark.parametrize(
    ("first", "second", "option"),
    [
        (partial(SGD, momentum=0.9), partial(SGD, momentum=0.5), "momentum"),
        (partial(SGD, momentum=0.9), partial(SGD, momentum=0.9, nesterov=True), "nesterov"),
        (Adam, partial(Adam, betas=(0.5, 0.9)), "betas"),
        (Adam, partial(Adam, eps=1e-3), "eps"),
    ],
)
def test_other_options_of_an_optimizer_are_refused_instead_of_ignored(
    first, second, option, tmp_path
):
    fitted(tmp_path, 2, first)
    with pytest.raises(CheckpointMismatchError, match=f"The optimizer's {option} differs"):
        fitted(tmp_path, 3, second)
    assert fitted(tmp_path, 3, first).resumed_from_epoch == 2


def then(*schedulers, milestone=1):
    return lambda o: SequentialLR(o, [make(o) for make in schedulers], [milestone])


@pytest.mark.parametrize(
    ("first", "second", "option"),
    [
        (partial(StepLR, step_size=1), partial(StepLR, step_size=1, gamma=0.5), "gamma"),
        (partial(StepLR, step_size=1), partial(StepLR, step_size=2), "step_size"),
        (partial(CosineAnnealingLR, T_max=9), partial(CosineAnnealingLR, T_max=20), "T_max"),
        (partial(MultiStepLR, milestones=[1]), partial(MultiStepLR, milestones=[2]), "milestones"),
        (ReduceLROnPlateau, partial(ReduceLROnPlateau, patience=1), "patience"),
        (
            partial(OneCycleLR, max_lr=0.1, total_steps=90),
            partial(OneCycleLR, max_lr=0.1, total_steps=60),
            "total_steps",
        ),
        (
            partial(LambdaLR, lr_lambda=lambda epoch: 0.9**epoch),
            partial(LambdaLR, lr_lambda=lambda epoch: 0.5**epoch),
            "lr_lambdas under",
        ),
        (
            then(ConstantLR, partial(ExponentialLR, gamma=0.5)),
            then(ConstantLR, partial(StepLR, step_size=1)),
            "schedulers",
        ),
    ],
)
def test_other_options_of_a_scheduler_are_refused_instead_of_ignored(
    first, second, option, tmp_path
):
    sgd = partial(SGD, lr=0.01, momentum=0.9)
    fitted(tmp_path, 2, sgd, first)
    with pytest.raises(CheckpointMismatchError, match=f"The scheduler's {option}.* differs"):
        fitted(tmp_path, 3, sgd, second)
    assert fitted(tmp_path, 3, sgd, first).resumed_from_epoch == 2


def test_options_of_callables_in_the_settings_are_compared_as_well(tmp_path):
    def train(epochs, gamma):
        config = TrainConfig(
            max_epochs=epochs,
            optimizer=partial(SGD, lr=0.01),
            lr_schedule=partial(StepLR, step_size=1, gamma=gamma),
        )
        model, batches = nn.Linear(3, 1), [(torch.ones(4, 3), torch.ones(4, 1))]
        run_training(config, model, squared_error, batches, checkpoint=tmp_path)

    train(2, 0.5)
    with pytest.raises(
        CheckpointMismatchError, match=r"gamma differs: the run has 0\.5, now .* 0\.1"
    ):
        train(3, 0.1)


def test_other_validation_data_of_the_same_size_are_refused(tmp_path):
    fitted(tmp_path, 2, val_seed=1)
    with pytest.raises(CheckpointMismatchError, match="The validation data differ: same shapes"):
        fitted(tmp_path, 3, val_seed=2)
    assert fitted(tmp_path, 3, val_seed=1).resumed_from_epoch == 2


def test_options_of_a_scheduler_do_not_depend_on_its_progress():
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.3)
    before = describe_scheduler(scheduler)
    for loss in (2.0, 1.0, 3.0):
        scheduler.step(loss)
    assert describe_scheduler(scheduler) == before
    assert before["factor"] == 0.3
    assert json.loads(json.dumps(before)) == before
