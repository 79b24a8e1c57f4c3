"""A script that saves its simulations and sets no seed continues its run, split included."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sbi_ignite import Callback, SbiIgniteWarning, TrainConfig, run_training
from tests.small import SBI_WARNS, ready, same

pytestmark = SBI_WARNS


class EndedError(Exception):
    """Stands for whatever ends a process."""


class End(Callback):
    """Ends a training after an epoch."""

    def __init__(self, epoch):
        self._epoch = epoch

    def on_epoch_end(self, state):
        if state.epoch == self._epoch:
            raise EndedError


@pytest.mark.parametrize("method", ["NPE_C", "NLE_A", "NRE_B", "FMPE", "MarginalTrainer"])
@pytest.mark.parametrize("form", ["sbi", "typed", "typed, by torch's loaders"])
def test_an_unseeded_script_that_starts_again_keeps_the_split_of_its_run(method, form, tmp_path):
    """Else it validates on rows that it has trained on."""
    fields = {"dataloader_kwargs": {"num_workers": 0}} if "loaders" in form else {}

    def start(seed, directory, *callbacks):
        trainer = ready(method, 100)
        torch.manual_seed(seed)
        keywords = {"checkpoint": str(tmp_path / directory), "callbacks": callbacks}
        if form == "sbi":
            trainer.train(max_num_epochs=5, training_batch_size=20, **keywords)
        else:
            trainer.train(TrainConfig(max_epochs=6, batch_size=20, **fields), **keywords)
        return trainer

    whole = start(1, "whole")
    with pytest.raises(EndedError):
        start(1, "cut", End(3))
    resumed = start(2, "cut")
    assert same(resumed, {n: v.clone() for n, v in whole._neural_net.state_dict().items()})
    assert resumed.training_summary.validation_loss == whole.training_summary.validation_loss
    assert torch.equal(torch.as_tensor(resumed.val_indices), torch.as_tensor(whole.val_indices))


def squared_error(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(dim=1)


def test_persistent_workers_are_said_to_prevent_an_exact_resume(tmp_path):
    x = torch.randn(40, 2)

    def start(epochs, *callbacks):
        loader = DataLoader(
            TensorDataset(x, x.sum(1, keepdim=True)), 10, num_workers=1, persistent_workers=True
        )
        config = TrainConfig(max_epochs=epochs)
        run_training(
            config, nn.Linear(2, 1), squared_error, loader, callbacks=callbacks, checkpoint=tmp_path
        )

    with pytest.raises(EndedError):
        start(4, End(2))
    with pytest.warns(SbiIgniteWarning, match=r"other batches .* persistent_workers=False"):
        start(4)


def test_fewer_epochs_than_a_run_has_are_said_to_change_nothing(tmp_path):
    x = torch.randn(40, 2)
    batches = [(x, x.sum(1, keepdim=True))]

    def start(epochs):
        config = TrainConfig(max_epochs=epochs)
        return run_training(config, nn.Linear(2, 1), squared_error, batches, checkpoint=tmp_path)[1]

    start(4)
    with pytest.warns(SbiIgniteWarning, match=r"has 4 epochs already, so max_epochs=2"):
        assert start(2).epochs_trained == 4
