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
    they were at the capture, and outputs are copied from there: the first, losses that are kept for
    a while, on its own, gradients in one piece. Once a tensor has moved, the recording as it is
    takes over. Capturing runs the computation: whoever does it restores the random states and what
    the computation writes to.

    Args:
        graph: The recorded computation.
        inputs: CUDA tensors to capture it with.

    Raises:
        NotTraceable: If a tensor other than a single number lies elsewhere than on the GPU, or an
            operation waits for it.
    """

    def __init__(self, graph: Graph, inputs: Sequence[Tensor]) -> None:
        # Numbers on the host become part of the kernels that are launched with them.
        self._numbers = [t for t in graph.captured if t.ndim == 0 and not t.is_cuda]
        others = [t for t in graph.captured if t.ndim or t.is_cuda]
        if not all(tensor.is_cuda for tensor in (*others, *inputs)):
            raise NotTraceable("it computes with tensors that are not on the GPU")
        if graph.waits:
            raise NotTraceable("one of its operations waits for the GPU")
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
            self._outputs = graph(self._inputs)
            first, *rest = self._outputs
            self._many = [t for t in rest if t.is_contiguous() and t.dtype == first.dtype]
            self._together = _flatten_dense_tensors(self._many) if self._many else None
        many = {id(tensor) for tensor in self._many}
        self._is_one_of_many = [id(tensor) in many for tensor in self._outputs]

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run it, see `Graph`."""
        if self._now() != self._addresses:
            return self.recorded(inputs)
        torch._foreach_copy_(self._inputs, list(inputs))  # pyright: ignore[reportPrivateImportUsage] # as torch's optimizers do
        self._launch.replay()
        copies = iter(())
        if self._together is not None:
            copies = iter(_unflatten_dense_tensors(self._together.clone(), self._many))
        outputs = zip(self._outputs, self._is_one_of_many, strict=True)
        return tuple(next(copies) if of_many else output.clone() for output, of_many in outputs)

    def _now(self) -> list[int]:
        """Return where tensors lie, and how often numbers on the host have been changed."""
        versions = [number._version for number in self._numbers]
        return [*(tensor.data_ptr() for tensor in self.recorded.captured), *versions]
