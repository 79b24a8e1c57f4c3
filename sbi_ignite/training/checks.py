"""Checks of the arguments of `run_training`, before training starts."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sbi_ignite.exceptions import ArgumentError, SbiIgniteWarning
from sbi_ignite.explain import check_call


def check_arguments(
    model: Any, loss_fn: Any, train_loader: Any, val_loader: Any, optimizer: Any, scheduler: Any
) -> None:
    """Refuse arguments of the wrong type with a message that says what is expected.

    Raises:
        ArgumentError: If an argument has the wrong type.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}.")
    _check_loss_function(loss_fn)
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise ArgumentError(
            f"optimizer: expected a torch Optimizer of the model's parameters, got {optimizer!r}. "
            "Several optimizers become one with several parameter groups; names such as 'adamw' "
            "and callables that make an optimizer go into TrainConfig(optimizer=...)."
        )
    if scheduler is not None:
        check_scheduler(scheduler, "scheduler")
    check_loader(train_loader, "train_loader")
    if val_loader is not None:
        check_loader(val_loader, "val_loader")


def _check_loss_function(loss_fn: Any) -> None:
    """Refuse what cannot be called with a model and a batch."""
    expected = "loss_fn: expected a callable (model, batch) -> losses"
    if not callable(loss_fn):
        raise ArgumentError(f"{expected}, got {loss_fn!r}.")
    is_function = getattr(loss_fn, "__module__", "") == nn.functional.__name__
    if is_function or any(
        kind.__module__ == nn.MSELoss.__module__ for kind in inspect.getmro(type(loss_fn))
    ):
        raise ArgumentError(
            f"{expected}, got {loss_fn!r}, which compares predictions with targets. Wrap it: "
            "lambda model, batch: loss(model(batch[0]), batch[1])."
        )
    for name in ("", "validate"):
        function = getattr(loss_fn, name, None) if name else loss_fn
        if function is None:
            continue
        if not callable(function):
            raise ArgumentError(
                f"loss_fn.validate: expected a method (model, batch) -> losses, got {function!r}. "
                "Rename it, if it is meant for something else."
            )
        called = function.forward if isinstance(function, nn.Module) else function
        check_call(called, 2, expected.replace("loss_fn", f"loss_fn.{name}") if name else expected)


def check_loader(loader: Any, name: str) -> None:
    """Refuse anything but an iterable of batches with a length of at least one.

    Args:
        loader: What was passed as batches.
        name: The argument it was passed as.

    Raises:
        ArgumentError: If it is anything else.
    """
    expected = f"{name}: expected an iterable of batches with a length, such as a torch DataLoader"
    countable = hasattr(loader, "__iter__") and hasattr(loader, "__len__")
    if not countable or isinstance(loader, str | bytes | Mapping):
        raise ArgumentError(f"{expected}, got {type(loader).__name__}.")
    try:
        length = len(loader)
    except Exception as error:
        raise ArgumentError(
            f"{expected}, got a {type(loader).__name__} whose len() fails ({error}). Give its "
            "dataset a __len__ that returns the number of rows, or train on a list of batches."
        ) from error
    if length == 0:
        raise ArgumentError(f"{name}: expected at least one batch, got none.")


def check_model(model: nn.Module) -> None:
    """Refuse a model that cannot be trained.

    Raises:
        ArgumentError: If it has no parameters that require gradients, or parameters without values,
            or if gradients are switched off.
    """
    if not torch.is_grad_enabled():
        where = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        raise ArgumentError(
            "Training computes gradients, which are switched off where it was called, as by "
            f"torch.{where}(). Call it outside."
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ArgumentError(
                f"model: expected parameters with a shape, {name} has none yet. Call the model on "
                "a batch once, which initialises its lazy modules."
            )
        if tensor.is_meta:
            raise ArgumentError(
                f"model: expected parameters with values, {name} is on the device 'meta'. Call "
                "model.to_empty(device='cpu') and initialise or load its weights."
            )
        if tensor.is_inference():
            raise ArgumentError(
                f"model: expected ordinary parameters, {name} was made under "
                "torch.inference_mode() and cannot be trained. Build the model outside."
            )
    parameters = list(model.parameters())
    if not parameters:
        raise ArgumentError(
            f"model: expected a module with parameters to train, got a {type(model).__name__} "
            "without any."
        )
    if not any(parameter.requires_grad for parameter in parameters):
        raise ArgumentError(
            f"model: expected at least one parameter to train, all {len(parameters)} of this "
            f"{type(model).__name__} are frozen. Call requires_grad_() on what is to be trained."
        )


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimizer that does not train the model, and warn if it trains only a part of it.

    It may also hold parameters that are not the model's, such as a weight inside the loss.

    Args:
        model: The model, on the device where it is trained.
        optimizer: Its optimizer.

    Raises:
        ArgumentError: If it holds none of the trainable parameters, needs a closure, or raises the
            loss.
    """
    name = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ArgumentError(
            f"optimizer: expected one that steps on gradients, got {name}, which needs a closure "
            "to evaluate the loss several times a step. Take Adam, AdamW or SGD."
        )
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    rising = {id(p) for g in optimizer.param_groups if g.get("maximize") for p in g["params"]}
    if trainable and trainable & held and trainable & held <= rising:
        raise ArgumentError(
            f"optimizer: expected one that lowers the loss, whose lowest value decides about the "
            f"best weights and when to stop, got {name} with maximize=True. Leave it out, and "
            "return -value from loss_fn for a value to be maximized."
        )
    missing = len(trainable - held)
    if missing == len(trainable):
        raise ArgumentError(
            f"optimizer: expected one of the model's parameters, got {name} with {len(held)} "
            f"tensors, none of which is among the {len(trainable)} that the model can train. Make "
            f"it from this very model: {name}(model.parameters(), ...)."
        )
    if missing:
        warnings.warn(
            f"optimizer: {missing} of the model's {len(trainable)} trainable parameters are not in "
            "it and stay as they are. requires_grad_(False) says the same of them, and saves time.",
            SbiIgniteWarning,
            stacklevel=4,
        )


def check_schedulers(schedulers: Iterable[Any], optimizer: Optimizer, given: bool) -> None:
    """Refuse schedulers that set the rates of another optimizer, or watch the loss upside down.

    Args:
        schedulers: torch's, or users' own, which need not say whose rates they set.
        optimizer: The optimizer that is used.
        given: Whether the scheduler was passed as an argument.

    Raises:
        ArgumentError: If a scheduler does.
    """
    groups = {id(group) for group in optimizer.param_groups}
    for scheduler in schedulers:
        if getattr(scheduler, "mode", "min") == "max" and isinstance(scheduler, ReduceLROnPlateau):
            raise ArgumentError(
                f"scheduler: expected "
                f'{type(scheduler).__name__}(mode="min"), because it is stepped with the '
                'validation loss, got mode="max", which lowers the rate while the loss falls. '
                'Leave mode out, or take mode="min".'
            )
        other = getattr(scheduler, "optimizer", None)
        if not isinstance(other, Optimizer) or other is optimizer:
            continue
        # An optimizer that wraps another one shares its groups.
        if groups.isdisjoint(map(id, other.param_groups)):
            remedy = (
                "Make it from the optimizer that you pass."
                if given
                else "Pass its optimizer too, or TrainConfig(lr_schedule=...), a callable that "
                "makes a scheduler for an optimizer."
            )
            raise ArgumentError(
                f"scheduler: expected one of the optimizer that is used, got "
                f"{type(scheduler).__name__} of another one ({type(other).__name__}), whose rates "
                f"change nothing. {remedy}"
            )


def check_scheduler(scheduler: Any, name: str) -> None:
    """Refuse what cannot be stepped.

    Args:
        scheduler: What was passed as a scheduler.
        name: Where it came from, for the error.

    Raises:
        ArgumentError: If it has no method `step`, or one that needs arguments.
    """
    if not callable(getattr(scheduler, "step", None)):
        raise ArgumentError(
            f"{name}: expected a torch scheduler, got {scheduler!r}. Names such as 'plateau' and "
            "callables that make a scheduler go into TrainConfig(lr_schedule=...)."
        )
    if isinstance(scheduler, ReduceLROnPlateau):
        return  # which gets the validation loss
    try:
        signature = inspect.signature(scheduler.step)
    except (TypeError, ValueError):
        return  # built-in functions may have no signature
    try:
        signature.bind()
    except TypeError as error:
        raise ArgumentError(
            f"{name}: expected a scheduler whose step() needs no argument, got "
            f"{type(scheduler).__name__} with step{signature} ({error}). Derive it from torch's "
            "ReduceLROnPlateau, whose step() gets the validation loss, or wrap it."
        ) from None
