"""All private names of torch that optimizers and flat memory use, and what replaces each.

Names are probed instead of torch's version. Each has a replacement that gives the same numbers;
where it is slower, `slower_steps` says so, and so does the training's summary.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.adam import adam
from torch.optim.adamw import adamw

NAMES: Mapping[str, str] = {
    "torch._foreach_copy_": "copies gradients into the flat tensor by one call",
    "torch._foreach_mul_": "scales gradients by one call",
    "torch._foreach_lerp_": "moves an average of weights by one call",
    "torch._fused_adam_": "takes Adam's fused step without the checks around it",
    "torch._fused_adamw_": "takes AdamW's fused step without the checks around it",
    "torch._utils._flatten_dense_tensors": "joins tensors by one call",
    "torch._utils._unflatten_dense_tensors": "parts tensors by one call",
    "torch.optim.optimizer._global_optimizer_pre_hooks": "tells whether others watch steps",
    "torch.optim.optimizer._global_optimizer_post_hooks": "tells whether others watch steps",
}
"""Private names, and what each is needed for."""

torch_optimizer = import_module("torch.optim.optimizer")
_GLOBAL_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
_OWN_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def slower_steps(stepped: Optimizer) -> str:
    """Return why this torch slows an optimizer's steps down; "" if it does not.

    Args:
        stepped: The optimizer; all but Adam and AdamW are stepped by torch anyway.
    """
    if type(stepped) not in (Adam, AdamW):
        return ""
    missing = [
        f"torch.optim.optimizer.{n}" for n in _GLOBAL_HOOKS if not hasattr(torch_optimizer, n)
    ]
    missing += [f"Optimizer.{name}" for name in _OWN_HOOKS if not hasattr(stepped, name)]
    missing += [] if hasattr(torch, "_foreach_copy_") else ["torch._foreach_copy_"]
    missing += [] if hasattr(torch.empty(0), "_version") else ["Tensor._version"]
    return f"torch {torch.__version__} has no {', '.join(missing)}" if missing else ""


def is_watched(stepped: Optimizer) -> bool:
    """Return whether hooks on steps are registered, or could be without our seeing them."""
    return bool(
        getattr(stepped, "_optimizer_step_pre_hooks", True)
        or getattr(stepped, "_optimizer_step_post_hooks", True)
        or getattr(torch_optimizer, "_global_optimizer_pre_hooks", True)
        or getattr(torch_optimizer, "_global_optimizer_post_hooks", True)
    )


version_of: Callable[[Tensor], object] = (
    operator.attrgetter("_version")
    if hasattr(torch.empty(0), "_version")
    else lambda tensor: object()
)
"""Returns a value that changes with every write to a tensor; on every call if torch does not track
writes."""


def mark_as_stepped(stepped: Optimizer) -> None:
    """Tell torch's schedulers, which check for it, that the optimizer has stepped."""
    stepped._opt_called = True  # type: ignore[attr-defined] # known to schedulers only


def copy_each(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy tensors in place."""
    together = getattr(torch, "_foreach_copy_", None)
    if together is not None:
        together(to, values)
        return
    for tensor, value in zip(to, values, strict=True):
        tensor.copy_(value)


def multiply_each(tensors: Sequence[Tensor], factor: float | Tensor) -> None:
    """Multiply tensors in place by a number."""
    together = getattr(torch, "_foreach_mul_", None)
    if together is not None:
        together(tensors, factor)
        return
    for tensor in tensors:
        tensor.mul_(factor)


def lerp_each(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Move tensors in place part of the way towards others."""
    together = getattr(torch, "_foreach_lerp_", None)
    if together is not None:
        together(tensors, ends, weight)
        return
    for tensor, end in zip(tensors, ends, strict=True):
        tensor.lerp_(end, weight)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Return a copy of tensors as one tensor, shape (num_numbers,)."""
    together = _utils("_flatten_dense_tensors")
    if together is not None:
        return together(tensors)
    return torch.cat([tensor.contiguous().view(-1) for tensor in tensors])


def parted(flat: Tensor, like: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return views of a flat tensor that have the shapes of others, in their order."""
    together = _utils("_unflatten_dense_tensors")
    if together is not None:
        views = together(flat, like)
        # Until torch 2.6, all tensors without numbers become one of shape (0,).
        return [
            v if v.shape == t.shape else v.view(t.shape) for v, t in zip(views, like, strict=True)
        ]
    pieces = flat.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def _utils(name: str) -> Callable[..., Any] | None:
    return getattr(getattr(torch, "_utils", None), name, None)


def decouples_decay(stepped: Optimizer) -> bool:
    """Return whether weight decay is AdamW's; before torch 2.7, AdamW is separate from Adam."""
    group = stepped.param_groups[0]
    return bool(group.get("decoupled_weight_decay", isinstance(stepped, AdamW)))


def adam_numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a group of Adam's or AdamW's, by torch's names for arguments."""
    beta1, beta2 = group["betas"]
    return {
        "amsgrad": False,
        "beta1": beta1,
        "beta2": beta2,
        "lr": group["lr"],
        "weight_decay": group["weight_decay"],
        "eps": group["eps"],
        "maximize": group["maximize"],
    }


def adam_step(
    tensors: Sequence[list[Tensor]],
    steps: Tensor,
    numbers: Mapping[str, Any],
    decoupled: bool,
    fused: bool,
    several: bool,
) -> None:
    """Take the step of torch's Adam or AdamW.

    Args:
        tensors: Parameters, gradients, both moments, and the largest second moments (none).
        steps: How many steps were taken, shape (num_parameters,), all equal; incremented.
        numbers: The other keyword arguments of torch's functions.
        decoupled: Whether weight decay is AdamW's.
        fused: Whether to use the fused kernel.
        several: Whether to handle several tensors at a time.
    """
    kernel = fused_kernel(decoupled)
    if fused and kernel is not None:
        # This is what torch's own function does in the end, in a third of the time.
        steps.add_(1)
        kernel(*tensors, [steps[0]], **numbers, grad_scale=None, found_inf=None)
        return
    options = {**numbers, "foreach": several, "fused": fused}
    if decoupled and _ADAM_DOES_BOTH:
        options["decoupled_weight_decay"] = True
    function: Callable[..., None] = adamw if decoupled and not _ADAM_DOES_BOTH else adam
    function(*tensors, [steps[0]], **options)
    steps.fill_(steps[0])


def fused_kernel(decoupled: bool) -> Callable[..., None] | None:
    """Return the kernel of a fused step, which takes lists of tensors; None if torch has none."""
    return getattr(torch, "_fused_adamw_" if decoupled else "_fused_adam_", None)


_ADAM_DOES_BOTH = "decoupled_weight_decay" in inspect.signature(adam).parameters
