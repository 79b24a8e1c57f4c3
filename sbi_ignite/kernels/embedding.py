"""Embed every x once where a loss sets it beside several theta."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def embedding_once(embedding: nn.Module, num_rows: int) -> Iterator[None]:
    """Let an embedding network compute each of several equal rows once inside the block.

    sbi's atomic loss of NPE_C repeats every x as often as there are atoms, ten times by default,
    and embeds all of them. The result is the same but for rounding; a dropout in the network draws
    one mask for all atoms of an x instead of one for each.

    Args:
        embedding: The network. What it is given may have several times `num_rows` rows, equal ones
            beside each other; anything else is computed as usual.
        num_rows: Rows that differ.

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
        return plain(x[::times]).repeat_interleave(times, dim=0)

    embedding.forward = forward
    try:
        yield
    finally:
        del embedding.forward
        if own is not None:
            embedding.forward = own
