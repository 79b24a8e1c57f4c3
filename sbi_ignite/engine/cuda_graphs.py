"""A recorded computation comes in; the same one, launched on the GPU by a single call, goes out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from sbi_ignite.engine.graphs import Graph
from sbi_ignite.engine.watching import NotTraceable

WARM_UPS = 3
"""Runs before the capture, as torch advises, in which libraries choose and prepare kernels."""


class CudaGraph:
    """A recorded computation as a CUDA graph: the same kernels, without a launch for each.

    Kernels in a CUDA graph read and write at fixed addresses. Inputs are therefore copied to where
    they were at the capture, and outputs are copied from there, all but the first in one piece;
    once a parameter has moved, the recording as it is takes over. Capturing runs the computation:
    whoever does it restores the random states and what the computation writes to.

    Args:
        graph: The recorded computation.
        inputs: CUDA tensors to capture it with.

    Raises:
        NotTraceable: If a tensor lies elsewhere than on one CUDA device.
    """

    def __init__(self, graph: Graph, inputs: Sequence[Tensor]) -> None:
        if any(not tensor.is_cuda for tensor in (*graph.captured, *inputs)):
            raise NotTraceable("it computes with tensors that are not on the GPU")
        self.recorded = graph
        self._inputs = [tensor.clone() for tensor in inputs]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                graph(self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._addresses = self._now()
        self._launch = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile: a checkpoint is written, say.
        with torch.cuda.graph(self._launch, capture_error_mode="thread_local"):
            self._first, *self._rest = graph(self._inputs)
            self._together = None
            if len({rest.dtype for rest in self._rest}) == 1 and _is_plain(self._rest):
                self._together = _flatten_dense_tensors(self._rest)

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run it, see `Graph`."""
        if self._now() != self._addresses:
            return self.recorded(inputs)
        torch._foreach_copy_(self._inputs, list(inputs))  # pyright: ignore[reportPrivateImportUsage] # as torch's optimizers do
        self._launch.replay()
        # Apart from the rest: losses are kept for a while, gradients only until the next step.
        first = self._first.clone()
        if self._together is None:
            return (first, *(output.clone() for output in self._rest))
        return (first, *_unflatten_dense_tensors(self._together.clone(), self._rest))

    def _now(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self.recorded.captured]


def _is_plain(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.is_contiguous() and tensor.numel() for tensor in tensors)
