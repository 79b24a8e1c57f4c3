"""Compute some functions of torch in other ways inside a block of computations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

Ways = Mapping[Callable[..., Any], Callable[..., Any]]
"""For functions of torch, what computes them; it may return `NotImplemented` for some arguments."""


class Replacing(TorchFunctionMode):
    """Compute functions in other ways inside the block, where these can.

    Every call of a function of torch inside the block costs a microsecond or two: enter one block
    for several functions, not one for each.

    Args:
        ways: For each function, what to call in its place with the same positional arguments. Calls
            with keywords are left to torch.

    Example:
        >>> import torch
        >>> with Replacing({torch.tanh: torch.sigmoid}):
        ...     torch.tanh(torch.zeros(1))
        tensor([0.5000])
    """

    def __init__(self, ways: Ways) -> None:
        super().__init__()
        self._ways = ways

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if not kwargs:
            way = self._ways.get(func)
            result = NotImplemented if way is None else way(*args)
            return func(*args) if result is NotImplemented else result
        return func(*args, **kwargs)
