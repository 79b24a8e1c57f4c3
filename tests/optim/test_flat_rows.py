"""FlatRows: the steps of several optimizers at once, each bit for bit its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from sbi_ignite.optim.flat import FlatOptimizer
from sbi_ignite.optim.flat_rows import FlatRows
from sbi_ignite.optim.memory_layout import Aligned
from tests.optim.test_flat import Odd, equal, set_gradients

MAKERS: dict[str, Callable[[Any], list[Optimizer]]] = {
    "alike": lambda ps: [Adam(p, lr=0.01, fused=True) for p in ps],
    "rates": lambda ps: [Adam(p, lr=0.01 * (k + 1), fused=True) for k, p in enumerate(ps)],
    "decays": lambda ps: [AdamW(p, weight_decay=0.1 * k, fused=True) for k, p in enumerate(ps)],
    "kinds": lambda ps: [
        kind(p, fused=True) for kind, p in zip((Adam, AdamW, Adam), ps, strict=True)
    ],
}


class Several:
    """Three networks, their optimizers, and rows for all."""

    def __init__(self, make: Callable[[Any], list[Optimizer]]) -> None:
        self.nets = [Odd() for _ in range(3)]
        self.parameters = [list(net.parameters()) for net in self.nets]
        self.optimizers = make(self.parameters)
        self.stepping = [FlatOptimizer(optimizer) for optimizer in self.optimizers]
        self.places = Aligned([p.detach() for p in self.parameters[0]])
        flat = [self.places.joined([p.detach() for p in each]) for each in self.parameters]
        self.rows = FlatRows(self.stepping, self.parameters, torch.stack(flat))

    def gradient(self, k: int, step: int) -> Tensor:
        """Return the gradient of one network, as one tensor, and leave none in it."""
        set_gradients(self.nets[k], 10 * k + step)
        gradients = [p.grad for p in self.parameters[k] if p.grad is not None]
        self.stepping[k].zero_grad()
        return self.places.joined(gradients)

    def step(self, k: int, step: int) -> None:
        """Take a step of one network alone, as a training does."""
        gradient = self.gradient(k, step)
        if not self.stepping[k].hand_over(gradient, self.parameters[k]):
            parts = self.places.parted(gradient)
            for parameter, part in zip(self.parameters[k], parts, strict=True):
                parameter.grad = part
        self.stepping[k].step()

    def step_together(self, step: int) -> None:
        """Take a step of all at once."""
        kept = [[p.grad for p in each] for each in self.parameters]
        for k, row in enumerate(self.rows.gradients.unbind(0)):
            row.copy_(self.gradient(k, step))
            for parameter, grad in zip(self.parameters[k], kept[k], strict=True):
                parameter.grad = grad
        self.rows.step()

    def lent_memory(self) -> ExitStack:
        stack = ExitStack()
        for stepping in self.stepping:
            stack.enter_context(stepping.lent_memory())
        return stack


@pytest.mark.parametrize("name", MAKERS)
def test_steps_that_are_taken_together_are_those_of_each_alone_bit_for_bit(name):
    """Also where one has taken more steps than the others, and steps alone in between."""
    alone, together = Several(MAKERS[name]), Several(MAKERS[name])
    with alone.lent_memory(), together.lent_memory():
        for several in (alone, together):
            several.step(0, 0)
            for step in (1, 2, 3):
                for k in range(3):
                    several.step(k, step)
        for step in range(4, 9):
            for k in range(3):
                alone.step(k, step)
            if step == 6:
                for k in range(3):
                    together.step(k, step)
            else:
                assert together.rows.are_ready()
                together.step_together(step)
            alone.optimizers[1].param_groups[0]["lr"] *= 0.5  # as a schedule does
            together.optimizers[1].param_groups[0]["lr"] *= 0.5
    pairs = zip(alone.nets, alone.optimizers, together.nets, together.optimizers, strict=True)
    assert all(equal((a, b), (c, d)) for a, b, c, d in pairs)


def loses_its_moments(several: Several) -> None:
    state = several.optimizers[1].state_dict()
    several.optimizers[1].load_state_dict(state)


def has_another_gradient(several: Several) -> None:
    several.parameters[1][0].grad = torch.zeros_like(several.parameters[1][0])


def has_no_gradient(several: Several) -> None:
    several.stepping[1].zero_grad()


def moves(several: Several) -> None:
    several.parameters[1][0].data = several.parameters[1][0].data.clone()


def is_watched(several: Several) -> None:
    several.optimizers[1].register_step_pre_hook(lambda *args: None)


@pytest.mark.parametrize(
    "change", [loses_its_moments, has_another_gradient, has_no_gradient, moves, is_watched]
)
def test_rows_are_not_ready_once_an_optimizer_would_do_something_else(change):
    several = Several(MAKERS["alike"])
    with several.lent_memory():
        assert not several.rows.are_ready()  # torch takes the first step
        for step in (1, 2, 3):
            for k in range(3):
                several.step(k, step)
        assert several.rows.are_ready()
        change(several)
        assert not several.rows.are_ready()
    assert not several.rows.are_ready()


@pytest.mark.parametrize("make", [lambda p: Adam(p), lambda p: SGD(p, lr=0.1)])
def test_optimizers_without_a_fused_step_on_flat_tensors_are_never_ready(make):
    several = Several(lambda ps: [make(p) for p in ps])
    with several.lent_memory():
        for step in range(4):
            for k in range(3):
                several.step(k, step)
        assert not several.rows.are_ready()
