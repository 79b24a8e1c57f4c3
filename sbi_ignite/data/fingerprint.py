"""Fingerprints of simulations, by which a run recognises its data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 24
"""Bytes that are hashed, and brought over from a GPU, at a time."""


def fingerprint_data(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Return dtype, shape and digest of the values for every tensor.

    Args:
        tensors: Tensors of any shape on any device, for example theta and x.

    Example:
        >>> fingerprint_data([torch.zeros(2, 3)])[0]["shape"]
        [2, 3]
    """
    return [
        {"dtype": str(t.dtype), "shape": list(t.shape), "digest": _digest_of(t)} for t in tensors
    ]


def _digest_of(tensor: Tensor) -> str:
    """Hash chunk by chunk, in as many threads as torch may use, then the chunks' digests."""
    rows = tensor.detach().reshape(-1)
    step = max(1, CHUNK // max(1, rows.element_size()))
    pieces = [rows[begin : begin + step] for begin in range(0, len(rows), step)]
    if len(pieces) < 2:
        digests = [_digest_of_piece(piece) for piece in pieces]
    else:
        with ThreadPoolExecutor(max_workers=min(8, len(pieces))) as pool:
            digests = list(pool.map(_digest_of_piece, pieces))
    return hashlib.sha256(b"".join(digests)).hexdigest()[:32]


def _digest_of_piece(piece: Tensor) -> bytes:
    values = piece.cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(values.data).digest()
