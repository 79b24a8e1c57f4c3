"""Ways to run a recorded graph, behind one protocol: `base.Executor`."""

from __future__ import annotations

from sbi_ignite.capture.executors.base import Executor, Run
from sbi_ignite.capture.executors.cuda_graphs import CudaGraphs
from sbi_ignite.capture.executors.generated_python import GeneratedPython
from sbi_ignite.capture.executors.inductor import Inductor
from sbi_ignite.capture.executors.torchscript import TorchScript


def executors_for(as_cuda_graphs: bool, fused: bool = False) -> tuple[Executor, ...]:
    """Return the ways to run recordings, fastest first; they are tried until one works.

    Args:
        as_cuda_graphs: Whether recordings are to run as CUDA graphs where possible.
        fused: Whether they are to be compiled into fused kernels where possible.

    Example:
        >>> [executor.name for executor in executors_for(as_cuda_graphs=False)]
        ['torchscript', 'generated_python']
    """
    one_by_one = (TorchScript(), GeneratedPython())
    if fused:
        return (Inductor(), *one_by_one)
    if not as_cuda_graphs:
        return one_by_one
    return tuple(way for inner in one_by_one for way in (CudaGraphs(inner), inner))


__all__ = [
    "CudaGraphs",
    "Executor",
    "GeneratedPython",
    "Inductor",
    "Run",
    "TorchScript",
    "executors_for",
]
