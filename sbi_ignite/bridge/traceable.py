"""Decide whether a trainer's loss is the same computation for every batch.

It is with networks made by sbi's own factories from sbi's own parts: apart from the values in a
batch, every forward pass does the same. Foreign parts may do anything; the user must judge them.
"""

from __future__ import annotations

from functools import partial
from types import FunctionType, MethodType
from typing import Any

from sbi_ignite.bridge.lines import private
from sbi_ignite.bridge.losses import TrainersOwnLoss
from sbi_ignite.methods.base import Loss
from sbi_ignite.methods.table import method_of

KNOWN = frozenset(("torch", "sbi", "nflows", "zuko", "builtins", "numpy", "collections"))
"""Packages whose code is known to depend on nothing but its arguments."""


def is_traceable(trainer: Any, loss: Loss) -> bool:
    """Return whether network and loss are sbi's own in every part.

    Args:
        trainer: One of sbi's trainers, with its network.
        loss: The loss it trains with.
    """
    own = private(trainer)
    return (
        own.loss_and_proposal_are_sbis_own
        and _is_known_loss(trainer, loss)
        and all(_is_known_part(part) for part in own.network.modules())
    )


def _is_known_loss(trainer: Any, loss: Loss) -> bool:
    if isinstance(loss, TrainersOwnLoss) or not type(loss).__module__.startswith("sbi_ignite."):
        return False
    kernel = getattr(loss, "calibration_kernel", None)
    if kernel is not None and not _is_known(kernel):
        return False
    if getattr(loss, "proposal_log_prob", None) is not None:
        traces = method_of(type(trainer)).traces_proposal
        return traces and _is_known_part(private(trainer).prior)
    return True


def _is_known_part(part: Any) -> bool:
    """Return whether an object, and what it holds, are of known types and not modified."""
    methods = (getattr(type(part), name, None) for name in ("forward", "loss", "log_prob"))
    altered = [
        name for name in vars(part) if isinstance(getattr(type(part), name, None), FunctionType)
    ]
    held = [item for value in vars(part).values() for item in _items(value)]
    return (
        not altered
        and _is_known(type(part))
        and all(_is_known(method) for method in methods if method is not None)
        and all(map(_is_known, held))
    )


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_known(value: Any) -> bool:
    if isinstance(value, partial):
        return _is_known(value.func)
    if isinstance(value, MethodType):
        return _is_known(value.__func__) and _is_known(type(value.__self__))
    named = value if isinstance(value, type | FunctionType) else type(value)
    return str(named.__module__).partition(".")[0] in KNOWN
