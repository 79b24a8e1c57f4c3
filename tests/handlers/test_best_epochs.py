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
    """Return a network with a frozen parameter, one of another type, and buffers."""
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1).double())
    net[0].bias.requires_grad_(False)
    return net


def at(net, number):
    """Let all that the network holds be a function of an epoch's number."""
    with torch.no_grad():
        for value in net.state_dict().values():
            value.fill_(number)


@given(losses=LOSSES, most=st.integers(2, 5), fewer=st.integers(0, 3))
def test_the_lowest_losses_are_averaged(losses, most, fewer):
    net = small()
    epochs = BestEpochs(net)
    for number, loss in enumerate(losses):
        at(net, number)
        epochs.update(loss, number, most)
    numbers = [n for n, loss in enumerate(losses) if not math.isnan(loss)]
    best = sorted(numbers, key=lambda n: (losses[n], n))[:most]
    assert len(epochs) == len(best)
    assert epochs.lowest_loss == min((losses[n] for n in best), default=math.inf)
    if not best:
        return
    number = max(most - fewer, 1)
    best = best[:number]
    assert epochs.mean_loss(number) == sum(losses[n] for n in best) / len(best)
    last, mean = len(losses) - 1, sum(best) / len(best)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    with epochs.mean_shown(number):
        for name, value in net.state_dict().items():
            expected = mean if name in trained else last
            torch.testing.assert_close(value, torch.full_like(value, expected))
    for value in net.state_dict().values():
        assert torch.equal(value, torch.full_like(value, last))


def test_every_number_finds_its_place_again():
    net = small()
    epochs, seen = BestEpochs(net), []
    for number in range(3):
        torch.manual_seed(number)
        for value in net.parameters():
            value.data.normal_()
        seen.append([value.detach().clone() for value in net.parameters()])
        epochs.update(float(number), number, most=2)
    with epochs.mean_shown(2):
        for one, two, now in zip(seen[0], seen[1], net.parameters(), strict=True):
            if now.requires_grad:
                torch.testing.assert_close(now.detach(), (one + two) / 2)
    assert all(map(torch.equal, seen[2], net.parameters()))


def test_an_error_inside_leaves_the_network_as_it_was():
    net = small()
    epochs = BestEpochs(net)
    at(net, 1)
    epochs.update(1.0, 1, most=2)
    at(net, 5)
    with pytest.raises(KeyboardInterrupt), epochs.mean_shown(2):
        raise KeyboardInterrupt
    assert torch.equal(net[0].weight, torch.full_like(net[0].weight, 5.0))


def test_tied_weights_get_one_mean():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    net[1].weight = net[0].weight
    epochs = BestEpochs(net)
    for number in (1, 4):
        at(net, number)
        epochs.update(float(number), number, most=2)
    with epochs.mean_shown(2):
        assert {float(value) for value in net.state_dict().values()} == {2.5}


def test_what_was_saved_goes_on():
    net = small()
    one, two = BestEpochs(net), BestEpochs(net)
    for number, loss in enumerate([3.0, 1.0, 2.0]):
        at(net, number)
        one.update(loss, number, most=2)
    two.load_state_dict(one.state_dict())
    at(net, 9)
    for epochs in (one, two):
        epochs.update(1.5, 3, most=2)
        assert epochs.mean_loss(2) == 1.25
        with epochs.mean_shown(2):
            assert net[0].weight[0, 0].item() == 5.0  # of epochs 1 and 3
