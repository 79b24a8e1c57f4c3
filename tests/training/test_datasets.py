"""run_training takes data sets: simulations in files, and any of torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sbi_ignite import (
    Callback,
    SimulationWriter,
    TrainConfig,
    open_simulations,
    run_training,
    with_transform,
)
from sbi_ignite.exceptions import ArgumentError, SettingsError

ROWS = 200


def pairs():
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(ROWS, 2, generator=generator)
    return theta, theta @ torch.ones(2, 3) + 0.1 * torch.randn(ROWS, 3, generator=generator)


class MapStyle(Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return tuple(tensor[row] for tensor in pairs())


class Stream(IterableDataset):
    def __len__(self):
        return ROWS

    def __iter__(self):
        return zip(*pairs(), strict=True)


def data_set(kind, folder):
    theta, x = pairs()
    if kind == "h5":
        with SimulationWriter(folder / "s.h5") as writer:
            writer.append(theta, x)
        return open_simulations(folder / "s.h5")
    if kind == "npy":
        np.save(folder / "theta.npy", theta)
        np.save(folder / "x.npy", x)
        return open_simulations(folder)
    return {"tensors": TensorDataset(theta, x), "map": MapStyle(), "stream": Stream()}[kind]


class Loss:
    """The squared error, which remembers what it has seen."""

    def __init__(self):
        self.trained, self.validated = [], []

    def __call__(self, model, batch):
        self.trained.append(batch[0])
        return (model(batch[1]) - batch[0]).square().mean(dim=1)

    def validate(self, model, batch):
        self.validated.append(batch[0])
        return (model(batch[1]) - batch[0]).square().mean(dim=1)


def rows_of(batches):
    return sorted(map(tuple, torch.cat(batches).tolist()))


def train(data, loss=None, validation=None, **kwargs):
    torch.manual_seed(0)
    settings = {"max_epochs": 2, "batch_size": 32, "compile": "off", "seed": 0}
    config = TrainConfig(**{**settings, **kwargs.pop("config", {})})
    return run_training(config, nn.Linear(3, 2), loss or Loss(), data, validation, **kwargs)[1]


@pytest.mark.parametrize("kind", ["h5", "npy", "tensors", "map"])
def test_a_data_set_is_split_and_every_row_seen_once_an_epoch(tmp_path, kind):
    loss = Loss()
    summary = train(data_set(kind, tmp_path), loss, config={"validation_fraction": 0.2})
    assert summary.validated
    per_epoch = len(loss.trained) // 2
    assert per_epoch == 5
    for epoch in (loss.trained[:per_epoch], loss.trained[per_epoch:]):
        assert rows_of([*epoch, *loss.validated[: len(loss.validated) // 2]]) == rows_of(
            [pairs()[0]]
        )


def test_all_kinds_of_the_same_rows_give_the_same_losses(tmp_path):
    kinds = ("npy", "tensors", "map")
    losses = [train(data_set(kind, tmp_path)).validation_loss for kind in kinds]
    assert losses[0] == losses[1] == losses[2]


def test_a_stream_and_a_validation_data_set_are_taken_as_they_are(tmp_path):
    loss = Loss()
    summary = train(data_set("stream", tmp_path), loss)
    assert not summary.validated
    assert rows_of(loss.trained) == rows_of([pairs()[0]] * 2)
    loss = Loss()
    summary = train(data_set("tensors", tmp_path), loss, data_set("map", tmp_path))
    assert rows_of(loss.trained) == rows_of(loss.validated)
    loader = DataLoader(TensorDataset(*pairs()), batch_size=32)
    assert train(loader, validation=data_set("npy", tmp_path)).validated


def test_a_data_set_without_a_length_is_refused():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(ArgumentError, match="expected a data set with a length"):
        train(Endless())
    with pytest.raises(ArgumentError, match="empty data set"):
        train(TensorDataset(torch.zeros(0, 2)))
    with pytest.raises(SettingsError, match="validation_fraction"):
        train(data_set("stream", None), config={"validation_fraction": 0.3})


class Stop(Callback):
    def on_epoch_end(self, state):
        if state.epoch == 2:
            raise InterruptedError


@pytest.mark.parametrize("kind", ["h5", "npy", "tensors", "map", "stream"])
def test_a_run_with_fresh_noise_on_every_batch_resumes_exactly(tmp_path, kind):
    def noisy(theta, x):
        return theta, x + 0.1 * torch.randn_like(x) + float(np.random.normal())

    data = with_transform(data_set(kind, tmp_path), noisy)
    config = {"max_epochs": 5}
    with pytest.raises(InterruptedError):
        train(data, checkpoint=tmp_path / "run", callbacks=Stop(), config=config)
    torch.rand(17)
    resumed = train(data, checkpoint=tmp_path / "run", config=config)
    assert resumed.resumed_from_epoch > 0
    whole = train(data, config=config)
    assert resumed.training_loss == whole.training_loss
    np.testing.assert_equal(resumed.validation_loss, whole.validation_loss)  # NaN without any


def test_training_noise_is_fresh_and_validation_noise_is_not(tmp_path):
    loss = Loss()
    data = data_set("npy", tmp_path)
    drawn = with_transform(data, lambda theta, x: (theta + torch.randn_like(theta), x))
    train(drawn, loss, config={"max_epochs": 3})
    thirds = [
        loss.validated[i :: len(loss.validated) // 3] for i in range(len(loss.validated) // 3)
    ]
    for same in thirds:
        assert torch.equal(same[0], same[1])
    assert len(torch.cat(loss.trained).unique(dim=0)) == 3 * 180


def test_a_transform_that_cannot_be_one_is_refused():
    with pytest.raises(ArgumentError, match="expected a function"):
        with_transform([], 3)
    with pytest.raises(ArgumentError, match="has a transform already"):
        with_transform(with_transform([], len), len)
