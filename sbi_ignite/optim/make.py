"""Make the optimizer that the training settings ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.explain import PLAIN_ERRORS, explain
from sbi_ignite.settings import TrainConfig
from sbi_ignite.settings.serialization import qualified_name

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def make_optimizer(config: TrainConfig, parameters: Iterable[Tensor]) -> Optimizer:
    """Return the optimizer that the settings ask for.

    With `sbi_compat`, the step uses the same arithmetic as sbi's; otherwise it is fused.

    Args:
        config: Gives optimizer, learning_rate, weight_decay and sbi_compat.
        parameters: The network's parameters.

    Raises:
        ArgumentError: If a callable fails, or returns something other than an optimizer.
    """
    parameters = list(parameters)
    if callable(config.optimizer):
        try:
            optimizer = config.optimizer(parameters)
        except PLAIN_ERRORS as error:
            name = qualified_name(config.optimizer)
            what = (
                f"optimizer: expected a callable that makes a torch optimizer of the "
                f"{len(parameters)} parameters that it is given, {name} failed"
            )
            explain(error, what, "Bind its other arguments with functools.partial or a lambda.")
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(
                "optimizer: expected a callable that returns a torch optimizer, it returned "
                f"{optimizer!r}."
            )
        return optimizer
    # On the CPU, foreach is bitwise equal to the default and saves a loop over parameters.
    cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    faster = ({"foreach": True} if cpu else {}) if config.sbi_compat else {"fused": True}
    if not all(parameter.is_floating_point() for parameter in parameters):
        faster = {}
    return OPTIMIZERS[config.optimizer](
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, **faster
    )
