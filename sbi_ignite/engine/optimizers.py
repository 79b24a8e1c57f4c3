"""Training settings and parameters come in; an optimizer and its schedule go out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sbi_ignite.exceptions import ArgumentError, NotYetError
from sbi_ignite.settings import LRSchedule, TrainConfig

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def make_optimizer(config: TrainConfig, parameters: Iterable[Tensor]) -> Optimizer:
    """Return the optimizer that the settings ask for.

    With `sbi_compat`, the step has the arithmetic of sbi's; else it is fused.

    Args:
        config: Gives optimizer, learning_rate, weight_decay and sbi_compat.
        parameters: The network's parameters.

    Raises:
        ArgumentError: If a callable returns something else than an optimizer.
    """
    parameters = list(parameters)
    if callable(config.optimizer):
        optimizer = config.optimizer(parameters)
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(
                "optimizer: expected a callable that returns a torch optimizer, it returned "
                f"{optimizer!r}."
            )
        return optimizer
    # On CPU, foreach is bitwise the arithmetic of the default and saves a loop over parameters.
    cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    faster = ({"foreach": True} if cpu else {}) if config.sbi_compat else {"fused": True}
    if not all(parameter.is_floating_point() for parameter in parameters):
        faster = {}
    return OPTIMIZERS[config.optimizer](
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, **faster
    )


def make_scheduler(config: TrainConfig, optimizer: Optimizer) -> Any:
    """Return the torch scheduler that the settings ask for, None for a constant rate.

    Args:
        config: Gives lr_schedule.
        optimizer: The optimizer to schedule.

    Raises:
        NotYetError: For the schedules that are announced but not built.
    """
    wanted = config.lr_schedule
    if wanted is None:
        return None
    if callable(wanted):
        return wanted(optimizer)
    schedule = LRSchedule(kind=wanted) if isinstance(wanted, str) else wanted
    if schedule.kind == "plateau" and not schedule.warmup_steps:
        return ReduceLROnPlateau(
            optimizer, factor=schedule.factor, patience=schedule.patience, min_lr=schedule.min_lr
        )
    raise NotYetError(
        f"lr_schedule={schedule!r} is not built yet. Use lr_schedule='plateau' without warm-up, or "
        "a callable `optimizer -> torch scheduler`."
    )
