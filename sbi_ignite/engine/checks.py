"""The arguments of `run_training` come in; nothing goes out, or an error before training starts."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from sbi_ignite.exceptions import ArgumentError


def check_arguments(
    model: Any, loss_fn: Any, train_loader: Any, val_loader: Any, optimizer: Any, scheduler: Any
) -> None:
    """Refuse arguments of the wrong type with a sentence that says what is expected."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}.")
    if not callable(loss_fn):
        raise ArgumentError(
            f"loss_fn: expected a callable (model, batch) -> losses, got {loss_fn!r}."
        )
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise ArgumentError(
            f"optimizer: expected a torch Optimizer of the model's parameters, got {optimizer!r}. "
            "Names such as 'adamw' go into TrainConfig(optimizer=...)."
        )
    if scheduler is not None and not callable(getattr(scheduler, "step", None)):
        raise ArgumentError(
            f"scheduler: expected a torch scheduler, got {scheduler!r}. Names such as 'plateau' go "
            "into TrainConfig(lr_schedule=...)."
        )
    loaders: dict[str, Any] = {"train_loader": train_loader}
    if val_loader is not None:
        loaders["val_loader"] = val_loader
    for name, loader in loaders.items():
        if not (hasattr(loader, "__iter__") and hasattr(loader, "__len__")):
            raise ArgumentError(
                f"{name}: expected an iterable of batches with a length, such as a torch "
                f"DataLoader, got {type(loader).__name__}."
            )
        if len(loader) == 0:
            raise ArgumentError(f"{name}: expected at least one batch, got none.")
