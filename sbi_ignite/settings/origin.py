"""Where each setting came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DEFAULT", "Origin"]

_IN_WORDS = {
    "call": "the call",
    "environment": "the environment variable",
    "file": "the file",
    "recipe": "the recipe",
    "optimizer": "the optimizer",
    "loader": "the loader",
    "default": "the default",
}


@dataclass(frozen=True)
class Origin:
    """Where the value of one setting came from.

    Args:
        source: The layer: the call, the environment, the file, the recipe or the default;
            "optimizer" and "loader" for what such an object decides where no setting does.
        where: The place in that layer: an argument ("TrainConfig(batch_size=...)"), the name of an
            environment variable, a file with its table, a recipe with the number of rows for which
            it was filled in, or where the object came from; "" for a default.
    """

    source: Literal["call", "environment", "file", "recipe", "optimizer", "loader", "default"]
    where: str = ""

    def __str__(self) -> str:
        return f"{_IN_WORDS[self.source]} {self.where}".rstrip()

    def of(self, field: str) -> Origin:
        """Narrow the origin of nested settings to that of one of their fields.

        Args:
            field: The field's name.

        Returns:
            The environment variable of that field alone, where there is one; else this origin.

        Example:
            >>> Origin("environment", "A__FACTOR, A__KIND").of("kind").where
            'A__KIND'
        """
        if self.source != "environment":
            return self
        ending = f"__{field}".upper()
        own = [name for name in self.where.split(", ") if name.upper().endswith(ending)]
        return Origin("environment", own[0]) if own else self


DEFAULT = Origin("default")
