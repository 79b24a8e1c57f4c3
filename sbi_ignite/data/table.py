"""A table of rows that lie in files, in memory, or partly in either, read by row numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sbi_ignite.data.files.base import BLOCK_BYTES
from sbi_ignite.data.fingerprint import fingerprint_data
from sbi_ignite.data.simulations import PIECE, Simulations, inside_rows, row_numbers
from sbi_ignite.exceptions import DataError

Transform = Callable[[Tensor, Tensor], "tuple[Tensor, Tensor]"]
"""Draws a batch anew from theta (batch, ...) and x (batch, ...)."""

MASKS = "masks"
"""The field that says, as sbi does, whether a row was drawn from the prior; shape (num_rows, 1)."""


@dataclass(frozen=True)
class StoredPart:
    """Valid rows of simulations in files.

    Attributes:
        simulations: The simulations.
        valid: Numbers of the rows in use, ascending; None for all.
        from_prior: Whether they were drawn from the prior.
        transform: Draws every batch anew; None leaves rows as they are.
    """

    simulations: Simulations
    valid: NDArray[np.int64] | None = None
    from_prior: bool = True
    transform: Transform | None = None

    def __len__(self) -> int:
        return self.simulations.num_rows if self.valid is None else len(self.valid)

    @property
    def random_access(self) -> bool:
        """Whether rows at random read well."""
        return self.simulations.random_access

    def shape(self, field: str) -> tuple[int, ...]:
        """Return the shape of a row of a field."""
        if field == MASKS:
            return (1,)
        sims = self.simulations
        return sims.theta_shape if field == "theta" else sims.x_shape

    def put(
        self,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        into: Mapping[str, NDArray[Any]],
    ) -> None:
        """Put rows into arrays, one for each field, at these places."""
        in_file = rows if self.valid is None else self.valid[rows]
        self.simulations.put(in_file, places, {f: a for f, a in into.items() if f != MASKS})
        if MASKS in into:
            into[MASKS][places] = self.from_prior

    def starts(self) -> NDArray[np.int64]:
        """Return the first row of every block."""
        starts = self.simulations.starts()
        if self.valid is None:
            return starts
        first = np.searchsorted(self.valid, starts)
        return np.unique(first[first < max(1, len(self.valid))])

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return what identifies the rows."""
        found = self.simulations.fingerprint()
        if self.valid is None:
            return found
        return [*found, *fingerprint_data([torch.from_numpy(self.valid)])]


@dataclass(frozen=True)
class PartInMemory:
    """Rows of tensors.

    Attributes:
        tensors: Tensors by the name of the field, which share their first dimension.
        transform: Nothing is drawn anew.
    """

    tensors: Mapping[str, Tensor]
    transform: None = None

    random_access = True

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def shape(self, field: str) -> tuple[int, ...]:
        """Return the shape of a row of a field."""
        return tuple(self.tensors[field].shape[1:])

    def put(
        self,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        into: Mapping[str, NDArray[Any]],
    ) -> None:
        """Put rows into arrays, one for each field, at these places."""
        numbers = torch.from_numpy(rows)
        for field, array in into.items():
            tensor = self.tensors[field].detach()
            array[places] = tensor.index_select(0, numbers.to(tensor.device)).cpu().numpy()

    def starts(self) -> NDArray[np.int64]:
        """Return the first row of every block."""
        size = sum(t[:1].numel() * t.element_size() for t in self.tensors.values())
        return np.arange(0, max(1, len(self)), max(1, BLOCK_BYTES // max(1, size)), dtype=np.int64)

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return what identifies the rows."""
        return fingerprint_data(list(self.tensors.values()))


Part = StoredPart | PartInMemory


class Table:
    """Rows of several parts, numbered through.

    Args:
        parts: The parts, which agree in the shapes of their rows.
        fields: What a batch consists of, in this order.

    Attributes:
        num_rows: How many rows there are.
    """

    def __init__(self, parts: Sequence[Part], fields: Sequence[str] = ("theta", "x")) -> None:
        self.parts, self.fields = tuple(parts), tuple(fields)
        self._begin = np.cumsum([0, *map(len, self.parts)])
        self.num_rows = int(self._begin[-1])
        for part in self.parts[1:]:
            for field in self.fields:
                if part.shape(field) != self.parts[0].shape(field):
                    raise DataError(
                        f"Simulations of several calls differ in the shape of {field}: "
                        f"{self.parts[0].shape(field)} and {part.shape(field)}."
                    )

    def __len__(self) -> int:
        return self.num_rows

    @property
    def name(self) -> str:
        """Where the rows are, for messages."""
        names = [p.simulations.name for p in self.parts if isinstance(p, StoredPart)]
        return ", ".join(names) or "the simulations"

    @property
    def random_access(self) -> bool:
        """Whether rows at random read well."""
        return all(part.random_access for part in self.parts)

    @property
    def transforms(self) -> bool:
        """Whether batches are drawn anew."""
        return any(part.transform is not None for part in self.parts)

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return sum(4 * int(np.prod(self.shape(field))) for field in self.fields)

    def shape(self, field: str) -> tuple[int, ...]:
        """Return the shape of a row of a field."""
        return self.parts[0].shape(field)

    def read(
        self,
        rows: NDArray[np.int64],
        fields: Sequence[str] | None = None,
        into: Mapping[str, NDArray[Any]] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return rows with these numbers, in this order, as they are stored.

        Args:
            rows: Row numbers, shape (num_read,).
            fields: What to read; None for all fields.
            into: Arrays to read into, as `empty` makes them, whose memory is that of the tensors
                that are returned; None makes new ones.
        """
        fields = self.fields if fields is None else tuple(fields)
        arrays = self.empty(len(rows), fields) if into is None else into
        if len(self.parts) == 1:
            self.parts[0].put(rows, np.arange(len(rows)), arrays)
        else:
            of_part = self._part_of(rows)
            for i in np.unique(of_part).tolist():
                here = np.flatnonzero(of_part == i)
                self.parts[i].put(rows[here] - self._begin[i], here, arrays)
        return tuple(torch.from_numpy(arrays[field]) for field in fields)

    def empty(self, num_rows: int, fields: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Return arrays for rows of these fields, without values."""
        return {
            field: np.empty((num_rows, *self.shape(field)), bool if field == MASKS else np.float32)
            for field in (self.fields if fields is None else fields)
        }

    def transformed(self, rows: NDArray[np.int64], batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Draw a batch anew, from torch's global generator and whatever the transforms use.

        Args:
            rows: Row numbers, shape (batch,).
            batch: What `read` returned for them.
        """
        if not self.transforms:
            return batch
        of_part = self._part_of(rows)
        fields = dict(zip(self.fields, batch, strict=True))
        for i in np.unique(of_part).tolist():
            part = self.parts[i]
            if part.transform is None:
                continue
            here = torch.from_numpy(np.flatnonzero(of_part == i))
            drawn = apply_transform(part.transform, fields["theta"][here], fields["x"][here])
            for field, values in zip(("theta", "x"), drawn, strict=True):
                if len(here) == len(rows):
                    fields[field] = values
                elif values.shape[1:] != fields[field].shape[1:]:
                    raise DataError(
                        f"transform: expected {field} of shape {tuple(fields[field].shape[1:])} "
                        f"as in the rows of other calls, got {tuple(values.shape[1:])}. Give every "
                        "append_simulations_from() of this trainer the same transform."
                    )
                else:
                    fields[field] = fields[field].index_copy(0, here, values)
        return tuple(fields[field] for field in self.fields)

    def _part_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._begin, rows, side="right") - 1

    def starts(self) -> NDArray[np.int64]:
        """Return the first row of every block that reads well, shape (num_blocks,)."""
        return np.concatenate(
            [p.starts() + b for p, b in zip(self.parts, self._begin, strict=False) if len(p)]
        )

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return what identifies the rows of all parts."""
        return [entry for part in self.parts for entry in part.fingerprint()]

    @property
    def rows_in_piece(self) -> int:
        """How many rows to go through at a time."""
        return max(1, PIECE // max(1, self.row_bytes))

    def column(self, field: str) -> Column:
        """Return one field of all rows."""
        return Column(self, field)


def apply_transform(transform: Transform, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Call a transform and check what it returns.

    Raises:
        DataError: If that is not theta and x with the rows that it was given.
    """
    drawn = transform(theta, x)
    right = (
        isinstance(drawn, tuple | list)
        and len(drawn) == 2
        and all(isinstance(t, Tensor) and len(t) == len(theta) for t in drawn)
    )
    if not right:
        shown = (
            [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in drawn]
            if isinstance(drawn, tuple | list)
            else type(drawn).__name__
        )
        raise DataError(
            f"transform: expected a pair (theta, x) of tensors with {len(theta)} rows, got {shown}."
        )
    return drawn[0].detach(), drawn[1].detach()


class Column:
    """One field of a table, which looks like a tensor to code that indexes it.

    `column[rows]` reads these rows; `column.to(device)` reads all. `torch.cat` joins columns, and
    columns with tensors, without reading them.

    Args:
        table: The table.
        field: Which field.
    """

    def __init__(self, table: Table, field: str) -> None:
        self.table, self.field = table, field

    def __repr__(self) -> str:
        return f"{self.field} {tuple(self.shape)} of {self.table.name}"

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def shape(self) -> torch.Size:
        """Shape of all rows."""
        return torch.Size((len(self), *self.table.shape(self.field)))

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def device(self) -> torch.device:
        """Where rows are when they have been read."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of rows that have been read."""
        return torch.bool if self.field == MASKS else torch.float32

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or one of its numbers."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Return how many numbers there are."""
        return self.shape.numel()

    def __getitem__(self, rows: Any) -> Tensor:
        if isinstance(rows, tuple):
            return self[rows[0]][inside_rows(rows)]
        (found,) = self.table.read(row_numbers(rows, len(self)), (self.field,))
        return found[0] if isinstance(rows, int) else found

    def to(self, device: Any) -> Tensor:
        """Read all rows and return them on a device."""
        return self[:].to(device)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Column | Any:
        if func is torch.cat and len(args) == 1 and not kwargs:
            return joined(args[0])
        return NotImplemented


def joined(pieces: Sequence[Any]) -> Column:
    """Join columns of the same field, and tensors, without reading anything."""
    field = next(piece.field for piece in pieces if isinstance(piece, Column))
    parts: list[Part] = []
    for piece in pieces:
        if isinstance(piece, Column):
            parts.extend(piece.table.parts)
        else:
            parts.append(PartInMemory({field: piece}))
    return Column(Table(parts, (field,)), field)


def table_of(columns: Sequence[Any], names: Sequence[str]) -> Table:
    """Return the table behind lists of columns and tensors, one list per call.

    Args:
        columns: For each call, its columns or tensors, one per name.
        names: The fields.
    """
    parts: list[Part] = []
    for one in columns:
        if isinstance(one[0], Column):
            parts.extend(one[0].table.parts)
        else:
            parts.append(PartInMemory(dict(zip(names, one, strict=True))))
    return Table(parts, names)


def is_stored(tensors: Sequence[Any]) -> bool:
    """Return whether what a trainer trains on lies in files."""
    return bool(tensors) and isinstance(tensors[0], Column)


class TableRows(Dataset[tuple[Tensor, ...]]):
    """Rows of a table as a torch data set, for users' DataLoaders with their workers.

    Args:
        table: The table.
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """Return several rows at once."""
        return list(zip(*self.table.read(np.asarray(rows, dtype=np.int64)), strict=True))
