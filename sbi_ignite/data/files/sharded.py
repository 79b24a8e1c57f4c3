"""Several files as one: rows joined in the sorted order of the names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbi_ignite.data.files.base import FIELDS, Source
from sbi_ignite.exceptions import DataError


class ShardedSource(Source):
    """The rows of several sources.

    Args:
        name: The pattern, for messages.
        parts: The sources, in order; they agree in shapes and dtypes.
    """

    def __init__(self, name: str, parts: Sequence[Source]) -> None:
        self.name = name
        first = parts[0]
        for part in parts[1:]:
            for what in ("shapes", "dtypes"):
                for field in FIELDS:
                    here, there = getattr(part, what)[field], getattr(first, what)[field]
                    if here != there:
                        raise DataError(
                            f"{name}: expected the same {what[:-1]} of {field} in all files, got "
                            f"{there} in {first.name} and {here} in {part.name}. Open them apart, "
                            "or convert one of them."
                        )
        self.parts = [part for part in parts if part.num_rows]
        self._begin = np.cumsum([0, *(part.num_rows for part in self.parts)])
        self.num_rows = int(self._begin[-1])
        self.shapes, self.dtypes = first.shapes, first.dtypes
        self.block_rows = max(part.block_rows for part in parts)
        self.random_access = all(part.random_access for part in parts)
        self.cost = first.cost

    def starts(self) -> NDArray[np.int64]:
        """Return the first row of every block."""
        if not self.parts:
            return np.zeros(1, dtype=np.int64)
        starts = [p.starts() + b for p, b in zip(self.parts, self._begin, strict=False)]
        return np.concatenate(starts)

    def read(
        self, start: int, stop: int, fields: Sequence[str] = FIELDS
    ) -> tuple[NDArray[Any], ...]:
        """Return rows of each field."""
        pieces = []
        for i, part in enumerate(self.parts):
            first, last = max(start, self._begin[i]), min(stop, self._begin[i + 1])
            if first < last:
                inside = int(first - self._begin[i]), int(last - self._begin[i])
                pieces.append(part.read(*inside, fields))
        return _joined(pieces, self, fields)

    def put(
        self,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        into: Mapping[str, NDArray[Any]],
    ) -> None:
        """Put rows with these numbers into arrays."""
        bounds = np.searchsorted(rows, self._begin)
        for i, part in enumerate(self.parts):
            here = slice(int(bounds[i]), int(bounds[i + 1]))
            if here.start < here.stop:
                part.put(rows[here] - self._begin[i], places[here], into)

    def close(self) -> None:
        """Close all files."""
        for part in self.parts:
            part.close()


def _joined(
    pieces: list[tuple[NDArray[Any], ...]], source: Source, fields: Sequence[str]
) -> tuple[NDArray[Any], ...]:
    if len(pieces) == 1:
        return pieces[0]
    if not pieces:
        return tuple(np.empty((0, *source.shapes[f]), dtype=source.dtypes[f]) for f in fields)
    return tuple(np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
