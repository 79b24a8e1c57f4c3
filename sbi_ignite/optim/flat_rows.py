"""Take the steps of several optimizers at once, on the rows of the same tensors."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_ignite.optim.flat import FlatOptimizer, FlatTensors
from sbi_ignite.optim.private_torch import (
    adam_numbers,
    decouples_decay,
    fused_kernel,
    mark_as_stepped,
)


class FlatRows:
    """Takes the fused Adam or AdamW steps of several flat optimizers by one call.

    A row has the parameters of one optimizer, or their gradients, moments or counts of steps. They
    remain its own: it can take a step by itself at any time, with bit for bit the same result, and
    rates, decays and counts of steps may differ.

    Args:
        optimizers: The optimizers; they move to the rows in the next steps that they take.
        parameters: For each, those of its parameters that have gradients, in its order.
        values: Where parameters are to lie, shape (num_optimizers, num_numbers).

    Attributes:
        gradients: Where gradients lie, of the same shape.

    Example:
        >>> nets = [torch.nn.Linear(15, 1, bias=False) for _ in range(2)]
        >>> adams = [FlatOptimizer(torch.optim.Adam(n.parameters(), fused=True)) for n in nets]
        >>> rows = FlatRows(adams, [list(net.parameters()) for net in nets], torch.zeros(2, 16))
        >>> rows.are_ready()
        False
    """

    def __init__(
        self,
        optimizers: Sequence[FlatOptimizer],
        parameters: Sequence[Sequence[Tensor]],
        values: Tensor,
    ) -> None:
        self._optimizers, self._parameters = list(optimizers), [list(each) for each in parameters]
        self.gradients, first, second = (torch.zeros_like(values) for _ in range(3))
        # torch counts steps in float32, whatever the parameters are.
        self._steps = values.new_zeros((len(values), len(parameters[0])), dtype=torch.float32)
        whole = (values, self.gradients, first, second, self._steps)
        self._homes = [
            FlatTensors(*rows) for rows in zip(*(t.unbind(0) for t in whole), strict=True)
        ]
        self._counts = [home.steps[0] for home in self._homes]
        for optimizer, home in zip(self._optimizers, self._homes, strict=True):
            optimizer.move_to(home)

    def are_ready(self) -> bool:
        """Return whether all optimizers lie in the rows, so that `step` may be called."""
        each = zip(self._optimizers, self._homes, self._parameters, strict=True)
        return all(
            optimizer.lies_in(home, parameters)
            and fused_kernel(decouples_decay(optimizer.optimizer)) is not None
            for optimizer, home, parameters in each
        )

    @torch.no_grad()
    def step(self) -> None:
        """Take the step of every optimizer on its row of `gradients`."""
        self._steps.add_(1)
        for decoupled, numbers, places in self._alike():
            homes = [self._homes[place] for place in places]
            kernel = fused_kernel(decoupled)
            assert kernel is not None  # see `are_ready`
            kernel(
                [home.values for home in homes],
                [home.gradient for home in homes],
                [home.first for home in homes],
                [home.second for home in homes],
                [],
                [self._counts[place] for place in places],
                **numbers,
                grad_scale=None,
                found_inf=None,
            )
        for optimizer in self._optimizers:
            mark_as_stepped(optimizer.optimizer)

    def _alike(self) -> list[tuple[bool, dict[str, Any], list[int]]]:
        """Return the kinds of steps, their numbers, and the places of optimizers that take them."""
        found: dict[Any, list[int]] = {}
        for place, optimizer in enumerate(self._optimizers):
            group = _group(optimizer)
            kind = (decouples_decay(optimizer.optimizer), *_NUMBERS(group), *group["betas"])
            found.setdefault(kind, []).append(place)
        firsts = [(kind[0], self._optimizers[places[0]], places) for kind, places in found.items()]
        return [(kind, adam_numbers(_group(first)), places) for kind, first, places in firsts]


_NUMBERS = operator.itemgetter("lr", "eps", "weight_decay", "maximize")
"""What decides about a step besides tensors and betas."""


def _group(optimizer: FlatOptimizer) -> dict[str, Any]:
    return optimizer.optimizer.param_groups[0]
