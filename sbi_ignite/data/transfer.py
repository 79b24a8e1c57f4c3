"""Move simulations, or batches of them, to the device that trains.

Small data move to the device once and are sliced there. Larger data stay on the host: every batch
is gathered in pinned memory and copied while the device works on earlier ones, so that no step
waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SHARE_OF_MEMORY = 0.5
"""How much of a device's free memory data may take: the rest is for the network and its work."""

SLOTS = 4
"""Batches in pinned memory, at most: one is gathered while earlier ones are copied."""


def placed(tensors: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Return tensors on a CUDA device where they fit into it; else as they are.

    Args:
        tensors: Tensors that share their first dimension.
        device: Where they will be needed.

    Example:
        >>> x = torch.zeros(3)
        >>> placed([x], torch.device("cpu"))[0] is x
        True
    """
    missing = sum(t.numel() * t.element_size() for t in tensors if t.device != device)
    if device.type != "cuda" or missing > SHARE_OF_MEMORY * free_memory(device):
        return tuple(tensors)
    return tuple(tensor.to(device) for tensor in tensors)


def indexed(device: str | torch.device) -> torch.device:
    """Return a device as tensors report theirs: "cuda" becomes the current card.

    Example:
        >>> indexed("cpu")
        device(type='cpu')
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def free_memory(device: torch.device) -> int:
    """Return how many bytes of a CUDA device are free, what torch holds in reserve included."""
    free, _ = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + reserved


class Staging:
    """Rows of tensors on the host, copied to a CUDA device without waiting for it.

    Args:
        tensors: Tensors on the host that share their first dimension.
        most_rows: Rows of a batch, at most.
        batches: Batches in a pass: no more than this many have to wait in pinned memory.
        device: Where batches go.
    """

    def __init__(
        self, tensors: Sequence[Tensor], most_rows: int, batches: int, device: torch.device
    ) -> None:
        self._tensors, self._device = tuple(tensors), device
        self._slots = [
            tuple(
                torch.empty((most_rows, *t.shape[1:]), dtype=t.dtype, pin_memory=True)
                for t in self._tensors
            )
            for _ in range(min(SLOTS, batches))
        ]
        self._copied = [torch.cuda.Event() for _ in self._slots]
        self._stream = torch.cuda.Stream(device)
        self._turn = 0

    def __call__(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the batch of these row numbers, shape (num_rows,), on the device."""
        turn, self._turn = self._turn, (self._turn + 1) % len(self._slots)
        copied = self._copied[turn]
        copied.synchronize()  # the slot's last batch has left it
        gathered = [
            torch.index_select(tensor, 0, rows, out=slot[: len(rows)])
            for tensor, slot in zip(self._tensors, self._slots[turn], strict=True)
        ]
        with torch.cuda.stream(self._stream):
            batch = tuple(t.to(self._device, non_blocking=True) for t in gathered)
            copied.record(self._stream)
        now = torch.cuda.current_stream(self._device)
        now.wait_event(copied)
        for tensor in batch:
            tensor.record_stream(now)  # its memory is not reused before this stream is done
        return batch
