"""Embed every x once where a loss sets it beside several theta."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeGuard

from nflows.transforms.made import MADE
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
    plain = embedding.forward

    def forward(x: Tensor) -> Tensor:
        times, rest = divmod(len(x), num_rows)
        if times < 2 or rest:
            return plain(x)
        if in_blocks:
            embedded = plain(x[:num_rows])
            return embedded.repeat(times, *[1] * (embedded.ndim - 1))
        return plain(x[::times]).repeat_interleave(times, dim=0)

    with _computed_by(embedding, forward):
        yield


@contextmanager
def contexts_once(net: nn.Module, num_rows: int) -> Iterator[None]:
    """Let masked autoregressive networks of nflows compute each of several equal contexts once.

    What a network makes of its context is a fifth of its operations: as `embedding_once`, for what
    comes after the embedding.

    Args:
        net: Has such networks as parts. The contexts that they are given may have several times
            `num_rows` rows, equal ones beside each other.
        num_rows: Rows that differ.
    """
    with ExitStack() as stack:
        for part in net.modules():
            if type(part) is MADE and hasattr(part, "context_layer"):
                stack.enter_context(_computed_by(part, _made_forward(part, num_rows)))
        yield


def _made_forward(made: Any, num_rows: int) -> Callable[..., Tensor]:
    """Return nflows' `MADE.forward` for contexts that may be repeated."""
    plain = made.forward

    def forward(inputs: Tensor, context: Tensor | None = None) -> Tensor:
        times, rest = divmod(len(inputs), num_rows)
        if context is None or len(context) != len(inputs) or times < 2 or rest:
            return plain(inputs, context)
        of_context = made.activation(made.context_layer(context[::times]))
        hidden = made.initial_layer(inputs).unflatten(0, (num_rows, times))
        hidden = (hidden + of_context.unsqueeze(1)).flatten(0, 1)
        if not made.use_residual_blocks:
            hidden = made.activation(hidden)
        for block in made.blocks:
            hidden = block(hidden, context)
        return made.final_layer(hidden)

    return forward


@contextmanager
def _computed_by(part: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Let another function compute a part of a network inside the block."""
    own = vars(part).get("forward")  # of a user who has replaced it on this very object
    part.forward = forward
    try:
        yield
    finally:
        del part.forward
        if own is not None:
            part.forward = own


def has_parameters(embedding: Any) -> TypeGuard[nn.Module]:
    """Return whether an embedding is a network with weights; others cost nothing.

    Example:
        >>> has_parameters(nn.Linear(1, 1)), has_parameters(nn.Identity())
        (True, False)
    """
    return isinstance(embedding, nn.Module) and next(embedding.parameters(), None) is not None
