"""Fill in a recipe according to the number of training rows."""

from __future__ import annotations

from collections.abc import Sequence

from sbi_ignite.data.source import Batches
from sbi_ignite.exceptions import SettingsError
from sbi_ignite.settings import Resolved


def filled_in(
    settings: Resolved, batches: Batches, apart_from: Sequence[str] = ("batch_size",)
) -> Resolved:
    """Fill in the recipe for the number of training rows; the batch size stays as it is.

    Args:
        settings: All settings; returned as they are without a recipe, or if it is filled in.
        batches: Batches of training data.
        apart_from: Fields to leave alone.

    Raises:
        SettingsError: If the number of rows cannot be told from the batches.
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
