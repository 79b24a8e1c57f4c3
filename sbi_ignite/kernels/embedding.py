"""Embed every x once where a loss sets it beside several theta."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

from torch import Tensor, nn


@contextmanager
def embedding_once(embedding: nn.Module, num_rows: int, in_blocks: bool = False) -> Iterator[None]:
    """Let an embedding network compute each of several equal rows once inside the block.

    sbi's atomic loss of NPE_C repeats every x as often as there are atoms, ten times by default,
    and embeds all of them. The result is the same but for rounding; a dropout in the network draws
    one mask for all atoms of an x instead of one for each. The validation loss of FMPE and NPSE
    repeats all x together, once for every time.

    Args:
        embedding: The network. What it is given may have several times `num_rows` rows; anything
            else is computed as usual.
        num_rows: Rows that differ.
        in_blocks: Whether all rows are repeated together, and not each one beside itself.

    Example:
        >>> net, x = nn.Linear(2, 3), torch.randn(4, 2)
        >>> with embedding_once(net, 4):
        ...     net(x.repeat_interleave(10, dim=0)).shape
        torch.Size([40, 3])
    """
    own = vars(embedding).get("forward")  # of a user who has replaced it on this very object
    plain = embedding.forward

    def forward(x: Tensor) -> Tensor:
        times, rest = divmod(len(x), num_rows)
        if times < 2 or rest:
            return plain(x)
        if in_blocks:
            embedded = plain(x[:num_rows])
            return embedded.repeat(times, *[1] * (embedded.ndim - 1))
        return plain(x[::times]).repeat_interleave(times, dim=0)

    embedding.forward = forward
    try:
        yield
    finally:
        del embedding.forward
        if own is not None:
            embedding.forward = own


def has_parameters(embedding: Any) -> TypeGuard[nn.Module]:
    """Return whether an embedding is a network with weights; others cost nothing.

    Example:
        >>> has_parameters(nn.Linear(1, 1)), has_parameters(nn.Identity())
        (True, False)
    """
    return isinstance(embedding, nn.Module) and next(embedding.parameters(), None) is not None
