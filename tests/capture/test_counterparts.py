"""Two networks are known to do the same only if nothing but values of tensors differs."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sbi.neural_nets import posterior_nn
from torch import nn

from sbi_ignite.capture.counterparts import counterparts
from tests.small import draw


class Net(nn.Module):
    """A network with something else in it."""

    def __init__(self, other: Any = None) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("mean", torch.randn(3))
        self.other = other


class Slots:
    """An object whose state is no attribute of the usual kind."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


def closure(number: Any) -> Callable[[], Any]:
    return lambda: number


class Dict(dict):  # type: ignore[type-arg]
    """A container with attributes."""


def with_attribute(value: Any) -> Dict:
    found = Dict(a=1)
    found.extra = value  # type: ignore[attr-defined]
    return found


ALIKE: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "numbers": lambda: [1, 2.5, float("nan"), "a", range(3), torch.float32],
    "containers": lambda: {"a": (1, [2]), "b": {1, 2}},
    "a closure": lambda: closure(3),
    "a partial": lambda: partial(torch.sum, dim=1),
    "an array": lambda: np.arange(3),
    "a module": lambda: nn.Dropout(0.1),
    "a container with attributes": lambda: with_attribute(1),
}
DIFFERENT: dict[str, tuple[Any, Any]] = {
    "numbers": (1.0, 2.0),
    "types of numbers": (1, True),
    "lengths": ([1], [1, 2]),
    "keys": ({"a": 1}, {"b": 1}),
    "sets": ({1}, {2}),
    "closures": (closure(1), closure(2)),
    "code": (lambda: 1, lambda: 2),
    "partials": (partial(torch.sum, dim=1), partial(torch.sum, dim=0)),
    "arrays": (np.arange(3), np.arange(3) + 1),
    "modules": (nn.Dropout(0.1), nn.Dropout(0.2)),
    "attributes of containers": (with_attribute(1), with_attribute(2)),
    "shapes": (torch.zeros(2), torch.zeros(3)),
    "layouts": (torch.zeros(2, 3), torch.zeros(3, 2).T),
    "trained or not": (torch.zeros(2), torch.zeros(2, requires_grad=True)),
    "what cannot be looked into": (Slots(1), Slots(1)),
    "generators": (random.Random(1), random.Random(1)),
}


@pytest.mark.parametrize("name", ALIKE)
def test_tensors_of_networks_that_are_alike_are_found(name):
    first, other = Net(ALIKE[name]()), Net(ALIKE[name]())
    found = counterparts([first], [other])
    assert found is not None
    assert found[id(first.layer.weight)] is other.layer.weight
    assert found[id(first.mean)] is other.mean
    shared = [found[id(p)] for p in first.parameters()]
    assert all(a is b for a, b in zip(shared, other.parameters(), strict=True))


@pytest.mark.parametrize("name", DIFFERENT)
def test_networks_that_differ_in_anything_else_are_not_alike(name):
    one, another = DIFFERENT[name]
    assert counterparts([Net(one)], [Net(another)]) is None


def test_what_both_share_need_not_be_looked_into():
    shared = Slots(1)
    assert counterparts([Net(shared)], [Net(shared)]) is not None


def test_tensors_that_are_one_in_only_one_of_the_networks_are_not_alike():
    first, other = Net(), Net()
    first.other, other.other = first.mean, torch.randn(3)
    assert counterparts([first], [other]) is None
    assert counterparts([other], [first]) is None
    other.other = other.mean
    assert counterparts([first], [other]) is not None


@pytest.mark.parametrize("kind", ["maf", "nsf", "mdn", "zuko_nsf"])
def test_networks_of_sbi_of_one_make_are_alike(kind):
    theta, x = draw()
    build = posterior_nn(kind, hidden_features=8, num_transforms=2)
    first, other = build(theta, x), build(theta, x)
    found = counterparts([first], [other])
    assert found is not None
    assert all(id(t) in found for t in (*first.parameters(), *first.buffers()))
    wider = posterior_nn(kind, hidden_features=9, num_transforms=2)(theta, x)
    assert counterparts([first], [wider]) is None
