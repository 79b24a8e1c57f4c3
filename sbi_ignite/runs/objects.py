"""Record the options of optimizers and schedulers that a user has made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from sbi_ignite.runs.loss_record import describe_loss

_OF_SCHEDULES = ("lr", "initial_lr", "max_lr", "min_lr")
_HOW_COMPUTED = ("foreach", "fused", "capturable", "differentiable")
_PROGRESS = (
    "T_cur",
    "T_i",
    "base_lrs",
    "best",
    "cooldown_counter",
    "last_epoch",
    "num_bad_epochs",
)
_REPLACED_BY_TORCH = ("anneal_func", "step")
"""Functions of torch's own that an instance of a scheduler may hold."""

_NESTED = ("_schedulers", "_milestones")


def describe_optimizer(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the options of every parameter group, such as momentum or betas.

    Rates, which schedules change, and options that only say how a step is computed are left out.

    Args:
        optimizer: The optimizer, before a scheduler has been made for it.

    Example:
        >>> describe_optimizer(torch.optim.SGD([torch.zeros(1)], momentum=0.9))[0]["momentum"]
        0.9
    """
    left_out = ("params", *_OF_SCHEDULES, *_HOW_COMPUTED)
    # A scheduler of an earlier call may have changed these.
    cycled = ("momentum", "betas", "max_momentum", "base_momentum")
    return [
        _plain_items(group, (*left_out, *(cycled if "max_momentum" in group else ())))
        for group in optimizer.param_groups
    ]


def describe_scheduler(scheduler: Any) -> dict[str, Any]:
    """Return the options of a scheduler that its state shows, such as step size or length.

    The code and the arguments of its functions, such as those of LambdaLR, are options too.

    Args:
        scheduler: A scheduler that has not been stepped; any object with or without `state_dict`.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)])
        >>> describe_scheduler(torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.5))
        {'gamma': 0.5, 'step_size': 5}
    """
    state = scheduler.state_dict() if hasattr(scheduler, "state_dict") else {}
    found = _scheduler_options(state) if isinstance(state, Mapping) else {}
    return {**found, **_functions(scheduler)}


def _functions(scheduler: Any) -> dict[str, Any]:
    """Return the record of a scheduler's functions, by a name that says which python wrote it."""
    found: dict[str, Any] = {}
    for name, value in getattr(scheduler, "__dict__", {}).items():
        called = value if isinstance(value, list | tuple) else [value]
        if name[:1] == "_" or name in _REPLACED_BY_TORCH or not all(map(callable, called)):
            continue
        records = [describe_loss(function) for function in called]
        if records:
            # Versions of python compile the same text to different code.
            found[f"{name} under {records[0]['python']}"] = [
                [record["code"], _as_saved(record["arguments"])] for record in records
            ]
    return found


def _scheduler_options(state: Mapping[Any, Any]) -> dict[str, Any]:
    found = _plain_items(state, _PROGRESS)
    for name in _NESTED:
        parts = state.get(name)
        if isinstance(parts, Sequence):
            found[name] = [_scheduler_options(p) if isinstance(p, Mapping) else p for p in parts]
    return found


def _plain_items(values: Mapping[Any, Any], left_out: Sequence[str]) -> dict[str, Any]:
    return {
        str(name): _as_saved(value)
        for name, value in sorted(values.items(), key=lambda item: str(item[0]))
        if name not in left_out and str(name)[:1] != "_" and _is_plain(value)
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):  # the milestones of MultiStepLR
        return all(_is_plain(part) for item in value.items() for part in item)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _as_saved(value: Any) -> Any:
    """Return a plain value as a file gives it back."""
    if isinstance(value, Mapping):
        return [[_as_saved(part) for part in item] for item in sorted(value.items())]
    if isinstance(value, list | tuple):
        return [_as_saved(part) for part in value]
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if finite else repr(value)  # JSON has numbers for neither NaN nor infinity
