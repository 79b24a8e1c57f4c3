"""A value's source in, a name for it out: where each setting came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DEFAULT", "Origin"]

_IN_WORDS = {
    "call": "the call",
    "environment": "the environment variable",
    "file": "the file",
    "default": "the default",
}


@dataclass(frozen=True)
class Origin:
    """Where the value of one setting came from.

    Args:
        source: The layer: the call, the environment, the file or the default.
        where: The place in that layer: an argument ("TrainConfig(batch_size=...)"), the name of an
            environment variable, or a file with its table; "" for a default.
    """

    source: Literal["call", "environment", "file", "default"]
    where: str = ""

    def __str__(self) -> str:
        return f"{_IN_WORDS[self.source]} {self.where}".rstrip()


DEFAULT = Origin("default")
