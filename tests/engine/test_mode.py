"""set_training leaves a network in the mode in which torch's own `train` leaves it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sbi_ignite.engine.mode import set_training


class AlwaysEvaluating(nn.Sequential):
    """A frozen part, as pretrained embeddings are."""

    def train(self, mode=True):
        return super().train(False)


class Counting(nn.Linear):
    """A part that notes every change of its attributes."""

    def __setattr__(self, name, value):
        if name == "training":
            self.__dict__.setdefault("seen", []).append(value)
        super().__setattr__(name, value)


def networks():
    frozen = AlwaysEvaluating(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    shared = nn.Dropout()
    instance = nn.Linear(2, 2)
    instance.train = lambda mode=True: None  # a method of this object alone
    without = nn.Module()
    without.register_module("nothing", None)
    return {
        "plain": nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())),
        "frozen part": nn.Sequential(nn.Linear(2, 2), frozen, nn.Dropout()),
        "shared part": nn.Sequential(shared, nn.ModuleList([shared, nn.Linear(1, 1)])),
        "its own attributes": nn.Sequential(Counting(2, 2), nn.Dropout()),
        "a method of one object": nn.Sequential(instance, nn.Dropout()),
        "no part": nn.Sequential(without),
        "TorchScript": nn.Sequential(torch.jit.script(nn.Dropout()), nn.Dropout()),
    }


def modes(net):
    return {name: part.training for name, part in net.named_modules()}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "frozen part",
        "shared part",
        "its own attributes",
        "a method of one object",
        "no part",
        "TorchScript",
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_every_part_is_as_torch_would_have_it(name, training):
    net = networks()[name]
    net.train(not training)
    torchs = copy.deepcopy(net)
    torchs.train(training)
    set_training(net, training)
    assert modes(net) == modes(torchs)
    assert {p.__dict__.get("seen", [None])[-1] for p in net.modules()} == {
        p.__dict__.get("seen", [None])[-1] for p in torchs.modules()
    }
