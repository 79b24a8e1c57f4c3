"""Checks of the first batch of a training, its losses and its gradients."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Optimizer, SparseAdam

from sbi_ignite.capture.loss_values import EXPECTED
from sbi_ignite.data.source import known_rows, num_rows
from sbi_ignite.exceptions import ArgumentError, SbiIgniteWarning


def check_batch(batch: Any, source: str) -> None:
    """Refuse a batch that torch cannot compute gradients with.

    Args:
        batch: The batch.
        source: Name of where the batch comes from.

    Raises:
        ArgumentError: If its tensors were made under `torch.inference_mode()`.
    """
    if any(tensor.is_inference() for tensor in _tensors(batch)):
        raise ArgumentError(
            f"{source}: expected ordinary tensors, got tensors made under "
            "torch.inference_mode(), which torch computes no gradients with. Make them outside, or "
            "pass clones of them."
        )


def check_shape(losses: Tensor, batch: Any) -> None:
    """Refuse losses that are not one, or several, per row of a batch.

    The number of rows is known if the batch is a tensor or a container of tensors: the
    number of losses must then be a multiple of the rows of one of these tensors.

    Args:
        losses: What the loss function returned.
        batch: The batch.

    Raises:
        ArgumentError: If they have more than one dimension, or a different number of rows.
    """
    if losses.ndim == 0 or losses.numel() == 0:
        return
    shape, rows = tuple(losses.shape), num_rows(batch)
    if losses.ndim > 1:
        how = "losses.squeeze(1)" if shape[1:] == (1,) else "losses.flatten(1).mean(dim=1)"
        broadcast = (
            " Or did a prediction of shape (batch, 1) meet a target of shape (batch,)?"
            if shape == (rows, rows)
            else ""
        )
        raise ArgumentError(
            f"{EXPECTED}, got shape {shape} for a batch of {rows} rows. Return {how}.{broadcast}"
        )
    sizes = {len(tensor) for tensor in _tensors(batch) if tensor.ndim}
    if sizes and not any(size and len(losses) % size == 0 for size in sizes):
        raise ArgumentError(
            f"{EXPECTED}, got shape {shape} for a batch of {rows} rows. Return one loss for every "
            "row, as .mean(dim=1) of losses of shape (batch, dim), or one .mean() of all."
        )


def warn_if_uncounted(losses: Tensor, batch: Any) -> None:
    """Say if the mean of an epoch's losses cannot be one over its rows.

    Args:
        losses: What the loss function returned.
        batch: The batch.
    """
    if losses.ndim == 0 and known_rows(batch) is None:
        warnings.warn(
            f"loss_fn returns one loss per batch, and the rows of a {type(batch).__name__} without "
            "tensors cannot be counted: losses of an epoch are means over its batches, in which a "
            "smaller last batch counts like the others. Return one loss for every row to have "
            "means over rows.",
            SbiIgniteWarning,
            stacklevel=2,
        )


def check_gradients(model: nn.Module, optimizer: Optimizer, clip_max_norm: float | None) -> None:
    """Refuse gradients that train nothing, or that clipping or the optimizer cannot handle.

    Args:
        model: The network, after a backward pass.
        optimizer: Its optimizer.
        clip_max_norm: What the gradients' norm is clipped to, if it is.

    Raises:
        ArgumentError: If no parameter of the model has a gradient, or one is of a kind, sparse or
            dense, that is in the way.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if id(parameter) in trained and parameter.grad is not None
    }
    if not gradients:
        raise ArgumentError(
            "loss_fn: expected losses that depend on the parameters of `model`, got losses that "
            "depend on none of those that are trained. Compute them from the model that is handed "
            "to loss_fn(model, batch)."
        )
    dense = [name for name, grad in gradients.items() if grad.layout == torch.strided]
    if dense and isinstance(optimizer, SparseAdam):
        raise ArgumentError(
            f"optimizer: expected one for dense gradients, such as torch.optim.Adam, got "
            f"{type(optimizer).__name__} for {_listed(dense)}. It takes sparse gradients alone, "
            "which nn.Embedding(..., sparse=True) has; torch.optim.Adagrad and SGD take both."
        )
    sparse = [name for name, grad in gradients.items() if grad.layout != torch.strided]
    if not sparse:
        return
    named = f"sparse gradients of {', '.join(sparse)}"
    if clip_max_norm is not None:
        raise ArgumentError(
            f"clip_max_norm={clip_max_norm:g}: expected dense gradients, got {named}, whose norm "
            "torch does not take. Make the embedding with sparse=False, or pass clip_max_norm=None "
            "and an optimizer for sparse gradients, such as torch.optim.Adagrad."
        )
    if not _takes_sparse(optimizer):
        raise ArgumentError(
            f"optimizer: expected one for sparse gradients, such as torch.optim.Adagrad, got "
            f"{type(optimizer).__name__} for {named}. Or make the embedding with sparse=False."
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} others" if len(names) > 4 else "")


def _takes_sparse(optimizer: Optimizer) -> bool:
    """Return whether an optimizer takes sparse gradients; all but torch's are assumed to."""
    if not type(optimizer).__module__.startswith("torch.optim"):
        return True
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return isinstance(optimizer, SparseAdam | Adagrad | SGD) and not fused


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors in a batch that is a tensor or consists of containers."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from (tensor for value in batch.values() for tensor in _tensors(value))
    elif isinstance(batch, list | tuple):
        yield from (tensor for value in batch for tensor in _tensors(value))
