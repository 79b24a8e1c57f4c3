"""A loss comes in; the same loss, with nflows' splines computed for all values, goes out.

nflows applies a spline to the values inside its interval alone. How many these are differs from
batch to batch, which costs copies and makes every step another computation that cannot be recorded.
Here the spline is applied to all values, and its result taken where they lie inside. That rounds
otherwise in the last bits, so that it belongs to the typed form only. Private names were read in
nflows 0.14.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from nflows.transforms import autoregressive, splines
from nflows.transforms.splines import rational_quadratic
from torch import Tensor, nn

from sbi_ignite.methods.base import Loss

_NAME = "unconstrained_rational_quadratic_spline"
_OWN = getattr(rational_quadratic, _NAME)
_PLACES = tuple(place for place in (splines, autoregressive) if hasattr(place, _NAME))
"""Where nflows' transforms look for the spline when they are called."""

_for_all_values: ContextVar[bool] = ContextVar("sbi_ignite_splines", default=False)
_users = 0
_lock = Lock()


def has_splines(net: nn.Module) -> bool:
    """Return whether a network applies nflows' rational-quadratic splines."""
    return any("PiecewiseRationalQuadratic" in type(part).__name__ for part in net.modules())


@dataclass(frozen=True)
class SplinesForAllValues:
    """A loss in which splines are computed for all values, within `replaceable_splines`.

    Attributes:
        loss: The loss as it is.
    """

    loss: Loss

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """Return the losses of a training batch."""
        with _chosen():
            return self.loss(model, batch)

    def validate(self, model: Any, batch: Any) -> Tensor:
        """Return the losses of a validation batch."""
        with _chosen():
            return getattr(self.loss, "validate", self.loss)(model, batch)


@contextmanager
def replaceable_splines() -> Iterator[None]:
    """Let losses choose how splines are computed inside the block; nobody else sees a difference.

    nflows' transforms find their spline in a module, which is shared by all threads: what stands
    there inside the block asks whose computation it is part of.
    """
    global _users
    with _lock:
        _users += 1
        for place in _PLACES:
            setattr(place, _NAME, _as_chosen)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            for place in _PLACES if _users == 0 else ():
                setattr(place, _NAME, _OWN)


@contextmanager
def _chosen() -> Iterator[None]:
    token = _for_all_values.set(True)
    try:
        yield
    finally:
        _for_all_values.reset(token)


def _as_chosen(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Compute a spline as the running computation has chosen."""
    spline = _spline_for_all_values if _for_all_values.get() else _OWN
    return spline(*args, **kwargs)


def _spline_for_all_values(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    tails: str = "linear",
    tail_bound: float = 1.0,
    min_derivative: float = rational_quadratic.DEFAULT_MIN_DERIVATIVE,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """Return values and log-derivatives of a spline with linear tails, shaped as `inputs`.

    Args and results are those of nflows' function (Durkan et al. 2019, neural spline flows).
    """
    given = [inputs, unnormalized_widths, unnormalized_heights, unnormalized_derivatives]
    if tails != "linear":
        return _OWN(
            *given,
            inverse=inverse,
            tails=tails,
            tail_bound=tail_bound,
            min_derivative=min_derivative,
            **others,
        )
    dtype = inputs.dtype
    # Where bins end is a matter of 1e-6, which bfloat16 does not know.
    given = [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in given]
    inputs, widths, heights, derivatives = given
    inside = (inputs >= -tail_bound) & (inputs <= tail_bound)
    # With this value, the derivative at both ends is the tails' own, 1.
    end = float(np.log(np.exp(1 - min_derivative) - 1))
    with torch.autocast(inputs.device.type, enabled=False):
        outputs, log_derivatives = rational_quadratic.rational_quadratic_spline(
            # Any value inside will do for the others: it gets no gradient.
            torch.where(inside, inputs, 0.0),
            widths,
            heights,
            nn.functional.pad(derivatives, (1, 1), value=end),
            inverse=inverse,
            left=-tail_bound,
            right=tail_bound,
            bottom=-tail_bound,
            top=tail_bound,
            min_derivative=min_derivative,
            **others,
        )
    return torch.where(inside, outputs, inputs).to(dtype), torch.where(inside, log_derivatives, 0.0)
