"""A value's source in, a name for it out: where each setting came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DEFAULT", "Origin"]

_IN_WORDS = {
    "call": "the call",
    "environment": "the environment variable",
    "file": "the file",
    "recipe": "the recipe",
    "default": "the default",
}


@dataclass(frozen=True)
class Origin:
    """Where the value of one setting came from.

    Args:
        source: The layer: the call, the environment, the file, the recipe or the default.
        where: The place in that layer: an argument ("TrainConfig(batch_size=...)"), the name of an
            environment variable, a file with its table, or a recipe with the number of rows for
            which it was filled in; "" for a default.
    """

    source: Literal["call", "environment", "file", "recipe", "default"]
    where: str = ""

    def __str__(self) -> str:
        return f"{_IN_WORDS[self.source]} {self.where}".rstrip()


DEFAULT = Origin("default")
