"""What is known about an operation of torch, its arguments and its results.

Most of it comes from schemas, which compute their answers anew on every query: a recording makes
some thousand queries about a few dozen operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

from sbi_ignite.capture.private_torch import OpOverload, is_composite, schema_of

aten = torch.ops.aten

WRITES_UNANNOUNCED: Mapping[Any, Sequence[int]] = {
    aten.native_batch_norm.default: (3, 4),
    aten.cudnn_batch_norm.default: (3, 4),
}
"""Operations that write to arguments, by position, without saying so in their schema."""

SHARES_UNANNOUNCED: Mapping[Any, int] = {
    aten._unsafe_view.default: 0,
    aten._reshape_alias.default: 0,
}
"""Operations whose result shares memory with an argument, by position, without saying so."""


class Argument(NamedTuple):
    """What a schema says about an argument.

    Attributes:
        name: Its name.
        type: Its type.
        default: Its value if it is not given.
        is_written: Whether the operation writes to it.
        is_shared: Whether results may share its memory.
    """

    name: str
    type: Any
    default: Any
    is_written: bool
    is_shared: bool

    def given(self, position: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what a call passes for it; None if it passes nothing."""
        return args[position] if position < len(args) else kwargs.get(self.name)


class Operation(NamedTuple):
    """What is known about an operation.

    Attributes:
        name: Its name, without that of the overload.
        schema: Its full schema, as text.
        arguments: Its arguments, in order.
        written: The positions of those that it writes to.
        aliased: The positions of those that it writes to, or whose memory results may share.
        results: The types of its results.
        returns_views: Whether its schema says that results share memory with arguments.
        draws: Whether it draws random numbers.
        is_composite: Whether it is composed of other operations.
        reads: Whether what comes next depends on values that it reads.
        shapes_by_values: Whether the shapes of its results depend on values.
    """

    name: str
    schema: str
    arguments: tuple[Argument, ...]
    written: tuple[int, ...]
    aliased: tuple[int, ...]
    results: tuple[Any, ...]
    returns_views: bool
    draws: bool
    is_composite: bool
    reads: bool
    shapes_by_values: bool


@cache
def operation(function: OpOverload) -> Operation:
    """Return what is known about an operation.

    Example:
        >>> about = operation(torch.ops.aten.add_.Tensor)
        >>> about.name, about.written, about.returns_views
        ('aten::add_', (0,), True)
    """
    schema = schema_of(function)
    unannounced = WRITES_UNANNOUNCED.get(function, ())
    shares = SHARES_UNANNOUNCED.get(function)
    arguments = tuple(
        Argument(
            argument.name,
            argument.type,
            argument.default_value,
            is_written=position in unannounced
            or (argument.alias_info is not None and argument.alias_info.is_write),
            is_shared=position == shares or argument.alias_info is not None,
        )
        for position, argument in enumerate(schema.arguments)
    )
    return Operation(
        schema.name,
        str(schema),
        arguments,
        written=tuple(i for i, argument in enumerate(arguments) if argument.is_written),
        aliased=tuple(i for i, a in enumerate(arguments) if a.is_written or a.is_shared),
        results=tuple(returned.type for returned in schema.returns),
        returns_views=any(returned.alias_info is not None for returned in schema.returns),
        draws=torch.Tag.nondeterministic_seeded in function.tags,
        is_composite=is_composite(function),
        reads=torch.Tag.data_dependent_output in function.tags,
        shapes_by_values=torch.Tag.dynamic_output_shape in function.tags,
    )
