"""A mapping for frozen settings, which hashes by content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn


class FrozenDict(dict[str, Any]):
    """A dict that cannot change after construction and hashes by content."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("this mapping belongs to frozen settings; change a copy: dict(mapping)")

    if not TYPE_CHECKING:  # a checker would compare each with the base's signature
        __setitem__ = __delitem__ = __ior__ = _refuse
        clear = pop = popitem = update = setdefault = _refuse

    # every value that holds this mapping promises to be hashable by content
    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return content_hash(dict(self))

    def __copy__(self) -> FrozenDict:
        return self

    # dict subclasses are otherwise pickled and deep-copied item by item through __setitem__
    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        return FrozenDict, (dict(self),)


def content_hash(value: object) -> int:
    """Hash a value by its content, dicts and lists included.

    Args:
        value: Any value; what cannot be hashed counts by its type alone.

    Returns:
        The same number for equal values.
    """
    if isinstance(value, Mapping):
        return hash(frozenset((key, content_hash(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return hash(tuple(content_hash(item) for item in value))
    try:
        return hash(value)
    except TypeError:
        return hash(type(value))
