"""Make batches from data sets that are passed to `run_training` in place of loaders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from sbi_ignite.data.in_memory import BatchIndices, OrderedBatches, ShuffledBatches, permutation
from sbi_ignite.data.on_disk import OnDiskBatches
from sbi_ignite.data.simulations import Simulations
from sbi_ignite.data.split import check_split
from sbi_ignite.data.table import StoredPart, Table
from sbi_ignite.data.transformed import WithTransform
from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.settings import Resolved


def loaders_of(settings: Resolved, train: Any, validation: Any) -> tuple[Any, Any]:
    """Return loaders for what was passed as training and validation data; loaders stay as they are.

    A map-style data set without validation data is split by `validation_fraction`. The split and
    the order of batches depend on the seed in the settings alone, so that a run that is resumed
    has the same.

    Args:
        settings: All settings, of which the batch size and the fraction are used.
        train: A data set or a loader, with or without a transform.
        validation: Likewise; None without.

    Raises:
        ArgumentError: If a data set cannot be batched.
        DataError: If it cannot be split.
    """
    transform = train if isinstance(train, WithTransform) else None
    data = train.data if isinstance(train, WithTransform) else train
    if isinstance(data, Dataset):
        num_rows = _length(data, "train_loader")
        rows, kept = torch.arange(num_rows), None
        splits = validation is None and not isinstance(data, IterableDataset)
        if splits:
            rows, kept = _split(settings, num_rows)
        settings = settings.with_recipe(len(rows)) if settings.awaits_recipe else settings
        loader = _batches(settings, data, rows, shuffle=True)
        if kept is not None:
            validation = _batches(settings, data, kept, shuffle=False)
            if transform is not None:
                validation = transform.over(validation, "val_loader", fixed=True)
    else:
        loader = data
    if transform is not None:
        loader = transform.over(loader, "train_loader")
    if isinstance(validation, WithTransform):
        inside = _validation(settings, validation.data)
        return loader, validation.over(inside, "val_loader", fixed=True)
    return loader, _validation(settings, validation)


def _validation(settings: Resolved, data: Any) -> Any:
    if not isinstance(data, Dataset):
        return data
    rows = torch.arange(_length(data, "val_loader"))
    return _batches(settings, data, rows, shuffle=False)


def _length(data: Any, name: str) -> int:
    try:
        length = len(data)
    except (TypeError, NotImplementedError) as error:
        raise ArgumentError(
            f"{name}: expected a data set with a length, got a {type(data).__name__} whose len() "
            f"fails ({error}). Give it a __len__ that returns the number of rows in a pass."
        ) from error
    if length == 0:
        raise ArgumentError(f"{name}: expected at least one row, got an empty data set.")
    return length


def _split(settings: Resolved, num_rows: int) -> tuple[Tensor, Tensor]:
    fraction = settings.train.validation_fraction
    order = permutation(num_rows, _seed(settings), 0, 0)
    num_train = int((1 - fraction) * num_rows)
    where = settings.origin("train.validation_fraction").where
    check_split(num_train, num_rows - num_train, 1, fraction, where)
    return order[:num_train], order[num_train:]


def _seed(settings: Resolved) -> int:
    return settings.train.seed or 0


def _batches(settings: Resolved, data: Any, rows: Tensor, shuffle: bool) -> Any:
    config = settings.train
    size = min(config.batch_size, len(rows))
    kwargs: Mapping[str, Any] = config.dataloader_kwargs or {}
    if isinstance(data, IterableDataset):
        return DataLoader(data, **{"batch_size": size, **kwargs})
    if kwargs:
        own_batches = {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"} & {*kwargs}
        if own_batches:
            return DataLoader(Subset(data, rows.tolist()), **{"batch_size": size, **kwargs})
        return _loader(data, rows, size, _seed(settings) if shuffle else None, kwargs)
    if isinstance(data, Simulations):
        table = Table([StoredPart(data)])
        return OnDiskBatches(table, rows, size, _seed(settings), shuffle=shuffle)
    if isinstance(data, TensorDataset):
        if shuffle:
            return ShuffledBatches(data.tensors, rows, size, _seed(settings))
        return OrderedBatches(data.tensors, rows, size)
    return _loader(data, rows, size, _seed(settings) if shuffle else None, {})


def _loader(
    data: Any, rows: Tensor, size: int, seed: int | None, kwargs: Mapping[str, Any]
) -> DataLoader[Any]:
    return DataLoader(data, batch_sampler=BatchIndices(rows, size, seed), **kwargs)
