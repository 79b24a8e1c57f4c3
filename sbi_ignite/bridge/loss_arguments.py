"""Record the loss arguments of a call and check those that are callables."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sbi_ignite.bridge.arguments import LOSS_KEYWORDS, Call
from sbi_ignite.bridge.lines import private
from sbi_ignite.data.source import Batches
from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.explain import PLAIN_ERRORS, explain
from sbi_ignite.methods.table import method_of
from sbi_ignite.random_state import OwnRandomState
from sbi_ignite.runs.loss_record import describe_loss

_KERNEL = "calibration_kernel"
_AT_ONCE = 10_000
_ROWS = 3
"""Rows that a kernel is tried on: unlike 1, a number that a wrong shape shows."""


def loss_arguments(trainer: Any, call: Call) -> dict[str, Any]:
    """Return all loss arguments of a method, as plain data.

    Args:
        trainer: One of sbi's trainers.
        call: Its call.
    """
    known = {**dict(method_of(type(trainer)).loss_args()), **call.keywords}
    plain = (bool, int, float, str, type(None))
    return {
        name: known[name] if isinstance(known[name], plain) else type(known[name]).__name__
        for name in LOSS_KEYWORDS
        if name in known
    }


def kept_loss_arguments(trainer: Any, call: Call) -> dict[str, Any]:
    """Return the loss arguments that a resumed training must have too, as plain data.

    Args:
        trainer: One of sbi's trainers.
        call: Its call.
    """
    kernel = call.keywords.get(_KERNEL)
    code = {} if kernel is None else {_KERNEL: describe_loss(kernel)["code"]}
    return {**loss_arguments(trainer, call), **code}


def check_kernel(trainer: Any, call: Call, batches: Batches) -> None:
    """Try a calibration kernel on a few rows in the typed form, at no cost to random states.

    In sbi's form it is called as often as sbi calls it.

    Args:
        trainer: One of sbi's trainers.
        call: Its call.
        batches: Batches of training data.

    Raises:
        ArgumentError: If the kernel fails, does not return one weight for every row, or returns
            zero for all rows, whose loss would be zero, too.
    """
    kernel, tensors = call.keywords.get(_KERNEL), batches.tensors
    if kernel is None or call.sbi_compat or tensors is None or len(tensors[0]) < _ROWS:
        return
    expected = (
        f"{_KERNEL}: expected a function that maps x of shape (batch, ...) to weights of shape "
        "(batch,)"
    )
    x = tensors[1][:_ROWS].to(private(trainer).device)
    with OwnRandomState().in_force():
        try:
            weights = kernel(x)
        except PLAIN_ERRORS as error:
            what = f"{expected}, got one that fails for x of shape {tuple(x.shape)}"
            explain(error, what, "Try it on such a tensor.")
    got = tuple(weights.shape) if isinstance(weights, Tensor) else f"a {type(weights).__name__}"
    if not isinstance(weights, Tensor) or got not in ((_ROWS,), (), (1,)):
        raise ArgumentError(
            f"{expected}, got one that returns {got} for x of shape {tuple(x.shape)}. Return a "
            "tensor, with .squeeze(1) where it has a second dimension."
        )
    with OwnRandomState().in_force():
        chunks = tensors[1].split(_AT_ONCE)
        if not any(kernel(x.to(private(trainer).device)).any() for x in chunks):
            raise ArgumentError(
                f"{_KERNEL}: expected weights above zero, got zero for all {len(tensors[1])} rows "
                "of x, which leaves nothing to train on. Give it a larger bandwidth, or x nearer "
                "to the observation."
            )


def used_atoms(arguments: dict[str, Any], batch_size: int | None) -> dict[str, int]:
    """Return the number of atoms that is used where a batch has fewer rows than were asked for.

    Args:
        arguments: What `loss_arguments` returned.
        batch_size: Rows of a full batch, if known.
    """
    asked = arguments.get("num_atoms")
    return {"num_atoms_used": batch_size} if asked and batch_size and batch_size < asked else {}
