"""Settings with a recipe and a loader come in; settings for that many rows go out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sbi_ignite.engine.steps import num_rows
from sbi_ignite.exceptions import SettingsError
from sbi_ignite.settings import Resolved


def filled_in(
    settings: Resolved, train_loader: Any, apart_from: Sequence[str] = ("batch_size",)
) -> Resolved:
    """Fill in the recipe by the rows of a loader, whose batch size stays as it is.

    Args:
        settings: All settings; without a recipe, or filled in already, they are returned.
        train_loader: Batches of training data.
        apart_from: Fields that are left alone.

    Raises:
        SettingsError: If the loader does not show how many rows it has.
    """
    if not settings.awaits_recipe:
        return settings
    rows = count_rows(train_loader)
    if rows is None:
        raise SettingsError(
            f"recipe={settings.train.recipe!r} is filled in by the number of training rows, "
            "expected a torch DataLoader or a sequence of batches, got a "
            f"{type(train_loader).__name__}, which does not show it. Name the fields yourself."
        )
    return settings.with_recipe(rows, apart_from=apart_from)


def count_rows(loader: Any) -> int | None:
    """Return how many rows an epoch has; None where a loader does not show it.

    Args:
        loader: Our batches, a torch DataLoader, or a sequence of batches.
    """
    for source in (loader, getattr(loader, "batch_sampler", None)):
        indices = getattr(source, "indices", None)
        if isinstance(indices, Tensor):
            return len(indices)
    if isinstance(loader, Sequence):
        return sum(map(num_rows, loader))
    for source in (getattr(loader, "sampler", None), getattr(loader, "dataset", None)):
        if hasattr(source, "__len__"):
            return len(source)  # type: ignore[arg-type] # just asked
    return None
