"""Which epochs are averaged, against the definition: all of them, sorted."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sbi_ignite.handlers.best_epochs import BestEpochs

LOSSES = st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, math.nan, math.inf]), min_size=1)


def small() -> nn.Module:
    """Return a network with a frozen parameter and buffers of two types."""
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    net[0].bias.requires_grad_(False)
    return net


def at(net, number):
    """Let all that the network holds be a function of an epoch's number."""
    with torch.no_grad():
        for value in net.state_dict().values():
            value.fill_(number)
    return net


@given(losses=LOSSES, most=st.integers(2, 5))
def test_the_lowest_losses_are_averaged(losses, most):
    net, epochs = small(), BestEpochs()
    for number, loss in enumerate(losses):
        epochs.update(loss, number, at(net, number), most)
    numbers = [n for n, loss in enumerate(losses) if not math.isnan(loss)]
    best = sorted(numbers, key=lambda n: (losses[n], n))[:most]
    assert len(epochs) == len(best)
    if not best:
        return
    assert epochs.mean_loss == sum(losses[n] for n in best) / len(best)
    mean = epochs.mean(net)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert set(mean) == set(net.state_dict())
    for name, value in mean.items():
        expected = sum(best) / len(best) if name in trained else best[0]
        assert value.item() == pytest.approx(expected), name


def test_weights_that_have_two_names_get_one_mean():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    net[1].weight = net[0].weight
    epochs = BestEpochs()
    for number in (1, 4):
        epochs.update(float(number), number, at(net, number), most=2)
    assert {float(value) for value in epochs.mean(net).values()} == {2.5}


def test_what_was_saved_goes_on():
    net, one, two = small(), BestEpochs(), BestEpochs()
    for number, loss in enumerate([3.0, 1.0, 2.0]):
        one.update(loss, number, at(net, number), most=2)
    two.load_state_dict(one.state_dict())
    for epochs in (one, two):
        epochs.update(1.5, 3, at(net, 9), most=2)
    assert one.mean_loss == two.mean_loss == 1.25
    assert torch.equal(one.mean(net)["0.weight"], two.mean(net)["0.weight"])
