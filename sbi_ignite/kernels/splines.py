"""Compute nflows' splines for all values at once inside a block of computations.

nflows applies a spline only to the values inside its interval. Their number differs from batch to
batch, which costs copies and makes every step a different computation that cannot be recorded. Here
the spline is applied to all values, and its result is used where they lie inside; the formulas and
their gradients are in `rational_quadratic.py`. The last bits are rounded differently, so this is
used in the typed form only. Private names were read in nflows 0.14.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from nflows.transforms import autoregressive, splines
from nflows.transforms.coupling import PiecewiseRationalQuadraticCouplingTransform
from nflows.transforms.splines import rational_quadratic as of_nflows
from torch import Tensor, nn

from sbi_ignite.kernels.rational_quadratic import Splines, rational_quadratic

_NAME = "unconstrained_rational_quadratic_spline"
_OWN = getattr(of_nflows, _NAME)
_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(_OWN).parameters.items()
    if parameter.default is not parameter.empty and name != "inverse"
}
_PLACES = tuple(place for place in (splines, autoregressive) if hasattr(place, _NAME))
"""Where nflows' transforms look for the spline when they are called."""
_COUPLING = PiecewiseRationalQuadraticCouplingTransform
_COUPLED_NAME = "_piecewise_cdf"
_OWN_COUPLED = getattr(_COUPLING, _COUPLED_NAME)
"""The function through which coupling layers call it; it copies and divides its arguments."""

_for_all_values: ContextVar[bool] = ContextVar("sbi_ignite_splines", default=False)
_users = 0
_lock = Lock()


def has_splines(net: nn.Module) -> bool:
    """Return whether a network applies nflows' rational-quadratic splines."""
    return any("PiecewiseRationalQuadratic" in type(part).__name__ for part in net.modules())


@contextmanager
def replaceable_splines() -> Iterator[None]:
    """Let losses choose how splines are computed inside the block; other code is unaffected.

    nflows' transforms look up their spline in a module, which all threads share: the replacement
    put there inside the block checks which computation it is part of.
    """
    global _users
    with _lock:
        _users += 1
        for place in _PLACES:
            setattr(place, _NAME, _as_chosen)
        setattr(_COUPLING, _COUPLED_NAME, _coupled_as_chosen)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                for place in _PLACES:
                    setattr(place, _NAME, _OWN)
                setattr(_COUPLING, _COUPLED_NAME, _OWN_COUPLED)


@contextmanager
def splines_for_all_values() -> Iterator[None]:
    """Compute splines for all values inside the block, itself inside `replaceable_splines`."""
    token = _for_all_values.set(True)
    try:
        yield
    finally:
        _for_all_values.reset(token)


def _as_chosen(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Compute a spline as the current computation has chosen."""
    spline = _spline_for_all_values if _for_all_values.get() else _OWN
    return spline(*args, **kwargs)


def _coupled_as_chosen(
    transform: Any, inputs: Tensor, transform_params: Tensor, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute a coupling layer's splines as the current computation has chosen."""
    hidden = getattr(transform.transform_net, "hidden_features", None)
    if not _for_all_values.get() or inverse or hidden is None or not _is_plain(vars(transform)):
        return _OWN_COUPLED(transform, inputs, transform_params, inverse)
    return _rational_quadratic(inputs, transform_params, _common(vars(transform), hidden))


def _spline_for_all_values(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Return values and log-derivatives of a spline with linear tails, shaped as `inputs`.

    Arguments and results are those of nflows' function; cases that no loss needs are left to it.
    """
    numbers = (unnormalized_widths, unnormalized_heights, unnormalized_derivatives)
    options = {**_DEFAULTS, **options}
    if inverse or not _is_plain(options):
        return _OWN(inputs, *numbers, inverse=inverse, **options)
    return _rational_quadratic(inputs, torch.cat(numbers, dim=-1), _common(options))


def _is_plain(options: Mapping[str, Any]) -> bool:
    """Return whether these are splines that we compute ourselves."""
    return options["tails"] == "linear" and options["min_bin_width"] == options["min_bin_height"]


def _common(options: Mapping[str, Any], hidden_features: int = 1) -> Splines:
    """Return what splines have in common; nflows scales them by the width of a layer's network."""
    return Splines(
        1 / math.sqrt(hidden_features),
        options["tail_bound"],
        options["min_bin_width"],
        options["min_derivative"],
    )


def _rational_quadratic(inputs: Tensor, numbers: Tensor, common: Splines) -> tuple[Tensor, Tensor]:
    """Compute splines with at least 32 bits."""
    dtype = inputs.dtype
    # The ends of bins matter to 1e-6, which bfloat16 cannot resolve.
    wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    with torch.autocast(inputs.device.type, enabled=False):
        outputs, log_derivatives = rational_quadratic(inputs.to(wide), numbers.to(wide), common)
    return outputs.to(dtype), log_derivatives
