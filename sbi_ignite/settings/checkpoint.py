"""Settings for checkpoints: where to save, how often, and whether to resume."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.field_types import Directory, OrNone, PositiveFloat, PositiveInt, choice

__all__ = ["START_ANEW", "CheckpointConfig"]

START_ANEW = 'checkpoint=CheckpointConfig(directory, resume="never")'
"""How a call, instead of continuing a run, moves its files aside and begins anew; for messages."""


class CheckpointConfig(Settings):
    """A run directory, how often to save into it, and whether to continue from it.

    Args:
        directory: The run directory; may be passed by position.
        every_epochs: Epochs between two checkpoints.
        every_seconds: Also save when this many seconds have passed; None: not by time.
        keep_last: How many of the newest checkpoints are kept.
        resume: "auto" continues if there is something to continue, "must" and "never" insist.

    Example:
        >>> CheckpointConfig("runs/exp1", keep_last=3).every_epochs
        1
    """

    leading: ClassVar[tuple[str, ...]] = ("directory",)

    directory: Directory = Field(description="The run directory.")
    every_epochs: PositiveInt = Field(default=1, description="Epochs between two checkpoints.")
    every_seconds: Annotated[PositiveFloat | None, OrNone] = Field(
        default=None, description="Seconds after which to save as well; None: not by time."
    )
    keep_last: PositiveInt = Field(
        default=2, description="How many of the newest checkpoints are kept."
    )
    resume: Annotated[Literal["auto", "must", "never"], choice("auto", "must", "never")] = Field(
        default="auto", description="Whether to continue what the directory holds."
    )

    if TYPE_CHECKING:  # `directory` may be a string and passed by position

        def __init__(
            self,
            directory: str | PathLike[str] | Path,
            *,
            every_epochs: int = 1,
            every_seconds: float | None = None,
            keep_last: int = 2,
            resume: Literal["auto", "must", "never"] = "auto",
        ) -> None: ...
