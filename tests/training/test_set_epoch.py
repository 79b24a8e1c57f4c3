"""Samplers that want to know the epoch are told at its beginning, also after a resume."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from sbi_ignite import Callback, TrainConfig, run_training, with_transform
from tests.small import SBI_WARNS, ready

pytestmark = SBI_WARNS

ROWS = TensorDataset(torch.arange(12.0).reshape(12, 1))


def sampler():
    return DistributedSampler(ROWS, num_replicas=1, rank=0, seed=3)


def by_hand(epochs):
    """Return the rows of each epoch in the loop that torch documents."""
    own = sampler()
    orders = []
    for epoch in range(epochs):
        own.set_epoch(epoch)
        orders.append([float(row) for row in own])
    return orders


LOADERS = {
    "sampler": lambda: DataLoader(ROWS, batch_size=5, sampler=sampler()),
    "batch sampler": lambda: DataLoader(ROWS, batch_sampler=BatchSampler(sampler(), 5, False)),
    "workers": lambda: DataLoader(ROWS, batch_size=5, sampler=sampler(), num_workers=1),
    "transformed": lambda: with_transform(
        DataLoader(ROWS, batch_size=5, sampler=sampler()), lambda x: (x,)
    ),
}


class Seen:
    """A loss that notes the rows that it is trained on."""

    def __init__(self):
        self.rows = []

    def __call__(self, model, batch):
        self.rows += batch[0][:, 0].tolist()
        return (model(batch[0]) - batch[0]).square().mean(dim=1)

    def validate(self, model, batch):
        return (model(batch[0]) - batch[0]).square().mean(dim=1)

    @property
    def orders(self):
        return [self.rows[i : i + 12] for i in range(0, len(self.rows), 12)]


def go(loader, epochs, **kwargs):
    seen = Seen()
    validation = DataLoader(ROWS, batch_size=12)
    config = TrainConfig(max_epochs=epochs)
    run_training(config, nn.Linear(1, 1), seen, loader, validation, **kwargs)
    return seen.orders


@pytest.mark.parametrize("name", LOADERS)
def test_each_epoch_has_the_order_of_a_loop_by_hand(name):
    orders = go(LOADERS[name](), 3)
    assert orders == by_hand(3)
    assert len(set(map(tuple, orders))) == 3


@pytest.mark.parametrize("name", ["sampler", "batch sampler"])
def test_a_resumed_run_goes_on_with_the_order_of_its_next_epoch(name, tmp_path):
    class Crash(Callback):
        def on_epoch_end(self, state):
            if state.epoch == 2:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        go(LOADERS[name](), 4, callbacks=Crash(), checkpoint=tmp_path)
    assert go(LOADERS[name](), 2, checkpoint=tmp_path) == by_hand(2)[1:]
    assert go(LOADERS[name](), 4, checkpoint=tmp_path) == by_hand(4)[2:]


@pytest.mark.parametrize("typed", [True, False])
def test_a_trainer_tells_the_sampler_in_the_typed_form_only(typed):
    """What sbi does not do, its keywords do not either."""

    class Told(torch.utils.data.SequentialSampler):
        epochs: list[int]

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    own = Told(range(20))
    own.epochs = []
    inference = ready()
    kwargs = {"sampler": own}
    if typed:
        inference.train(TrainConfig(max_epochs=3, batch_size=10, dataloader_kwargs=kwargs))
        assert own.epochs == [0, 1, 2]
    else:
        inference.train(max_num_epochs=2, training_batch_size=10, dataloader_kwargs=kwargs)
        assert own.epochs == []
