"""Simulations that require gradients, as from a differentiable simulator, are constants."""

from __future__ import annotations

import pytest
import torch

import sbi_ignite
from sbi_ignite import SimulationWriter, TrainConfig, find_learning_rate
from tests.small import SBI_WARNS, append, draw, empty, same, train

pytestmark = SBI_WARNS

METHODS = ["NPE_A", "NPE_C", "NLE_A", "NRE_B", "NRE_C", "FMPE", "NPSE", "MarginalTrainer"]
FEW = {"max_epochs": 3, "batch_size": 40}


def simulations(num_rows=120, seed=1):
    torch.manual_seed(seed)
    return draw(num_rows)


def requiring(*tensors):
    return tuple(tensor.clone().requires_grad_() for tensor in tensors)


@pytest.mark.parametrize("name", METHODS)
def test_training_is_that_of_the_same_numbers_without_gradients(name):
    """The user's tensors stay as they are and get no gradient."""
    pair = requiring(*simulations())
    trainers = [
        train(append(empty(name), *rows), TrainConfig(**FEW)) for rows in (pair, simulations())
    ]
    assert same(*trainers)
    losses = [trainer.training_summary.validation_loss for trainer in trainers]
    assert losses[0] == losses[1]
    assert all(tensor.requires_grad and tensor.grad is None for tensor in pair)


@pytest.mark.parametrize("compile", ["off", "auto"])
def test_x_of_a_graph_is_a_constant(compile):
    """As a simulator leaves it, whose parameters get no gradient either."""
    theta, _ = simulations()
    scale = torch.ones(2, requires_grad=True)
    trainer = append(empty("NPE_C"), theta, theta * scale + 0.1)
    train(trainer, TrainConfig(**FEW, compile=compile))
    assert trainer.training_summary.epochs_trained == 3
    assert scale.grad is None


def test_later_rounds_and_several_calls_are_constants_too():
    trainer = append(empty("NPE_C"), *requiring(*simulations()))
    append(trainer, *requiring(*simulations(seed=2)))
    train(trainer, TrainConfig(**FEW))
    posterior = trainer.build_posterior().set_default_x(torch.zeros(1, 2))
    append(trainer, *requiring(*simulations(seed=3)), proposal=posterior)
    train(trainer, TrainConfig(**FEW))
    assert trainer.training_summary.epochs_trained == 3


def test_a_validation_set_is_a_constant():
    kept = requiring(*simulations(40, seed=4))
    trainer = append(empty("NPE_C"), *requiring(*simulations()))
    train(trainer, TrainConfig(**FEW), validation=kept)
    assert trainer.training_summary.epochs_trained == 3
    assert all(tensor.grad is None for tensor in kept)


def test_a_run_directory_takes_them_for_the_same_numbers(tmp_path):
    for rows in (requiring(*simulations()), simulations()):
        trainer = append(empty("NPE_C"), *rows)
        train(trainer, TrainConfig(**FEW), checkpoint=tmp_path)
    assert trainer.training_summary.resumed_from_epoch == 3


def test_files_hold_the_numbers_and_a_transform_gives_constants(tmp_path):
    path = tmp_path / "simulations.h5"
    with SimulationWriter(path) as writer:
        writer.append(*requiring(*simulations()))
    scale = torch.ones(2, requires_grad=True)
    trainer = empty("NPE_C").append_simulations_from(
        path, transform=lambda theta, x: (theta * scale, x * scale)
    )
    train(trainer, TrainConfig(**FEW))
    assert trainer.training_summary.epochs_trained == 3
    assert scale.grad is None


def test_a_range_test_leaves_the_simulations_as_they_are():
    pair = requiring(*simulations())
    trainer = append(empty("NPE_C"), *pair)
    find_learning_rate(trainer, num_steps=20)
    kept = trainer.get_simulations()
    assert kept[0].requires_grad
    assert kept[1].requires_grad


def test_sbis_keywords_do_what_sbi_does():
    """It is an error of torch's there."""
    import sbi.inference

    said = []
    for inference in (sbi.inference, sbi_ignite.inference):
        trainer = append(empty("NPE_C", inference), *requiring(*simulations()))
        with pytest.raises(RuntimeError) as caught:
            train(trainer, max_num_epochs=2, training_batch_size=40)
        said.append(str(caught.value)[:70])
    assert said[0] == said[1]
