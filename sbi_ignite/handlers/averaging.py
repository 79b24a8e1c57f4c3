"""Keep a running average of the weights, used in validation and as the result.

During an epoch the network holds the weights that are trained. From the end of an epoch to the
beginning of the next it holds the average, so that validation, the best weights, rules, callbacks
and loggers see what will be returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from sbi_ignite.optim.private_torch import copy_each, lerp_each

_LEAST_BITS = 32
"""Size of the numbers in which an average is kept."""


class FlatParameters(Protocol):
    """Parameters that may lie side by side in memory, where one operation handles all of them."""

    def flat_values(self, parameters: Sequence[Tensor]) -> Tensor | None:
        """Return the tensor that holds them in the layout of `joined`; None if there is none."""
        ...

    def joined(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Copy tensors of their shapes into that layout; return the whole and its parts."""
        ...


class AveragedWeights:
    """Keep a running average of a network's trainable parameters.

    Buffers are not averaged. Parameters that are frozen when training starts are left alone. All
    changes are made in place, so that references to a parameter's tensor stay valid. The average of
    bfloat16 and float16 parameters is kept in float32: their own precision would round away a small
    share of the newest weights.

    Args:
        model: The network.
        share: Returns the share of the newest weights after a step, counted from 1; see
            `WeightAveraging`.
        flat: May have the parameters as one tensor, which gives the same average faster.

    Attributes:
        steps: Steps in the average.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> averages = AveragedWeights(model, share=lambda step: 1 / step)
        >>> for weight in (1.0, 2.0, 3.0):
        ...     _ = nn.init.constant_(model.weight, weight)
        ...     averages.update()
        >>> averages.show()
        >>> model.weight.item()
        2.0
    """

    def __init__(
        self,
        model: nn.Module,
        share: Callable[[int], float],
        flat: FlatParameters | None = None,
    ) -> None:
        self._parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._share, self._flat = share, flat
        self._average = [_precise(p) for p in self._parameters]
        self._flat_average: Tensor | None = None
        self._trained: list[Tensor] | None = None
        self._aside: tuple[Tensor, list[Tensor]] | None = None
        self.steps = 0

    def attach(self, engine: Engine) -> None:
        """Update after every step; show the average from the end of an epoch to the next."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.hide)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.show)

    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        share = self._share(self.steps)
        values = self._values()
        with torch.no_grad():
            if self._flat is None or values is None:
                # One call for all parameters, as in torch's own exponential averages.
                lerp_each(self._average, _like(self._parameters, self._average), share)
                return
            if self._flat_average is None:
                self._flat_average, self._average = self._flat.joined(self._average)
            self._flat_average.lerp_(values, share)

    def show(self) -> None:
        """Put the average into the network; before the first step it stays as it is."""
        if self._trained is not None or not self.steps:
            return
        values = self._values()
        if self._flat is None or self._flat_average is None or values is None:
            self._trained = [p.detach().clone() for p in self._parameters]
            _copy(self._parameters, self._average)
            return
        if self._aside is None:
            self._aside = self._flat.joined(self._average)
        flat, self._trained = self._aside
        with torch.no_grad():
            flat.copy_(values)
            values.copy_(self._flat_average)

    def hide(self) -> None:
        """Put the weights that are trained back into the network."""
        if self._trained is None:
            return
        values = self._values()
        if values is None or self._aside is None or self._trained is not self._aside[1]:
            _copy(self._parameters, self._trained)
        else:
            with torch.no_grad():
                values.copy_(self._aside[0])
        self._trained = None

    def restart(self) -> None:
        """Continue training from what the network holds, which at this point is the average."""
        if self._trained is not None:
            self._trained = [p.detach().clone() for p in self._parameters]
        _copy(self._average, self._parameters)

    def forget(self) -> None:
        """Restart the step count of the average."""
        self.steps = 0

    def trained(self) -> dict[int, Tensor]:
        """Return the trained values by their parameters' ids while the network holds averages."""
        return dict(zip(map(id, self._parameters), self._trained or (), strict=False))

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of steps in it."""
        return {"average": self._average, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the average; the network is expected to hold the weights that are trained."""
        _copy(self._average, list(state["average"]))
        self.steps, self._trained = state["steps"], None

    def _values(self) -> Tensor | None:
        """Return the tensor that holds all parameters; None where there is no such tensor."""
        return None if self._flat is None else self._flat.flat_values(self._parameters)


def _precise(parameter: Tensor) -> Tensor:
    """Return a copy of a parameter, in at least float32 if it has a floating-point type."""
    copy = parameter.detach().clone()
    narrow = copy.is_floating_point() and torch.finfo(copy.dtype).bits < _LEAST_BITS
    return copy.float() if narrow else copy


def _like(values: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Return values in the types of others; those that have them already as they are."""
    return [value.to(other.dtype) for value, other in zip(values, others, strict=True)]


def _copy(to: list[Tensor], values: list[Tensor]) -> None:
    """Copy values in place."""
    with torch.no_grad():
        copy_each(to, values)


class TrainedWeights:
    """A network's state with the weights that are trained, even while it holds their average.

    Args:
        model: The network.
        averages: The average that the network may hold instead.
    """

    def __init__(self, model: nn.Module, averages: AveragedWeights) -> None:
        self._model, self._averages = model, averages

    def state_dict(self) -> dict[str, Any]:
        """Return the network's state from which training would continue."""
        trained = self._averages.trained()
        live = self._model.state_dict(keep_vars=True)
        if not trained:
            return live
        return {name: trained.get(id(value), value) for name, value in live.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the weights that are trained into the network."""
        self._averages.hide()
        self._model.load_state_dict(state)
