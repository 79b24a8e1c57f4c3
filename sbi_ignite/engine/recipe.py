"""Fill in a recipe by the number of training rows."""

from __future__ import annotations

from collections.abc import Sequence

from sbi_ignite.data.source import Batches
from sbi_ignite.exceptions import SettingsError
from sbi_ignite.settings import Resolved


def filled_in(
    settings: Resolved, batches: Batches, apart_from: Sequence[str] = ("batch_size",)
) -> Resolved:
    """Fill in the recipe by the rows of the training data, whose batch size stays as it is.

    Args:
        settings: All settings; without a recipe, or filled in already, they are returned.
        batches: Batches of training data.
        apart_from: Fields that are left alone.

    Raises:
        SettingsError: If the batches do not show how many rows they have.
    """
    if not settings.awaits_recipe:
        return settings
    if batches.num_rows is None:
        raise SettingsError(
            f"recipe={settings.train.recipe!r} is filled in by the number of training rows, "
            f"and {batches.name} does not show it. Expected a torch DataLoader or a sequence of "
            "batches; or set learning_rate, batch_size and the other fields yourself."
        )
    return settings.with_recipe(batches.num_rows, apart_from=apart_from)
