"""Launch a recorded computation on the GPU with a single call."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import compress
from typing import ClassVar

import torch
from torch import Tensor, fx

from sbi_ignite.capture.executors.base import Executor, Run
from sbi_ignite.capture.guards import NotTraceable
from sbi_ignite.capture.private_torch import copy_each
from sbi_ignite.capture.recording import Recording
from sbi_ignite.optim.memory_layout import Aligned

WARM_UPS = 3
"""Runs before the capture, as torch advises, in which libraries choose and prepare kernels."""


class CudaGraphs:
    """Runs recordings as CUDA graphs.

    Args:
        inner: Runs them operation by operation, during capture and once a tensor has moved.
    """

    name = "cuda_graph"
    exact = True

    def __init__(self, inner: Executor) -> None:
        self._inner = inner

    def missing(self) -> str:
        """Return what keeps CUDA graphs or the inner executor from working."""
        return self._inner.missing()

    def prepare(self, recording: Recording, graph: fx.Graph, inputs: Sequence[Tensor]) -> Run:
        """Return a function that runs a graph, see `Executor`.

        Raises:
            NotTraceable: If a tensor other than a single number is not on the GPU, or an operation
                waits for the GPU.
        """
        if inputs:
            recording = _with_constants_at(recording, inputs[0].device)
        check_capturable(recording, inputs)
        return CudaGraph(recording, self._inner.prepare(recording, graph, inputs), inputs)


def check_capturable(recording: Recording, inputs: Sequence[Tensor]) -> None:
    """Refuse recordings that CUDA cannot capture.

    Raises:
        NotTraceable: If CUDA cannot, saying why.
    """
    on_device = [tensor for tensor in recording.captured if tensor.ndim or tensor.is_cuda]
    if not all(tensor.is_cuda for tensor in (*on_device, *inputs)) or not inputs:
        raise NotTraceable("it computes with tensors that are not on the GPU")
    if recording.waits:
        raise NotTraceable("one of its operations waits for the GPU")
    if CudaGraph.has_failed:
        raise NotTraceable("an earlier capture has failed")


class CudaGraph:
    """A recorded computation as a CUDA graph: the same kernels, without a launch for each.

    Kernels in a CUDA graph read and write at fixed addresses. Inputs are therefore copied to where
    they were during capture, and outputs are copied out: the first one, losses that are kept for a
    while, on its own, gradients in one piece. Once a tensor has moved, the plain recording takes
    over. Capturing runs the computation: the caller must restore the random states and everything
    that the computation writes to.

    Args:
        recording: What is known about the computation.
        run: Runs it operation by operation.
        inputs: CUDA tensors to capture it with.

    Raises:
        NotTraceable: If an operation waits for the GPU.
    """

    has_failed: ClassVar[bool] = False
    """Whether a capture has failed in this process: torch may not be able to do another one."""

    def __init__(self, recording: Recording, run: Run, inputs: Sequence[Tensor]) -> None:
        # Numbers on the host are baked into the kernels that are launched with them.
        self._numbers = [t for t in recording.captured if t.ndim == 0 and not t.is_cuda]
        self._captured, self._run = recording.captured, run
        self._inputs = [tensor.clone() for tensor in inputs]
        with torch.cuda.device(inputs[0].device):
            self._capture()

    def _capture(self) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            first, *rest = self._run(self._inputs)  # libraries may synchronize on first use
            with _waiting_refused():
                for _ in range(WARM_UPS - 1):
                    first, *rest = self._run(self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._among = [t.is_contiguous() and t.dtype == first.dtype for t in rest]
        many = list(compress(rest, self._among))
        self._places = Aligned(many) if many else None
        self._addresses = self._now()
        self._launch = torch.cuda.CUDAGraph()
        CudaGraph.has_failed = True
        # Other threads may use the GPU meanwhile, to write a checkpoint for example.
        with (
            _nothing_collected(),
            torch.cuda.graph(self._launch, stream=aside, capture_error_mode="thread_local"),
        ):
            self._first, *self._rest = self._run(self._inputs)
            if self._places is not None:
                self._together = self._places.joined(list(compress(self._rest, self._among)))
        CudaGraph.has_failed = False

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run it, see `Run`."""
        if self._now() != self._addresses:
            return self._run(inputs)
        copy_each(self._inputs, list(inputs))
        self._launch.replay()
        first, copies = self._first.clone(), iter(())
        if self._places is not None:
            copies = iter(self._places.parted(self._together.clone()))
        rest = zip(self._rest, self._among, strict=True)
        return (first, *(next(copies) if among else output.clone() for output, among in rest))

    def _now(self) -> list[float]:
        """Return the addresses of tensors, and the values of numbers on the host."""
        addresses = [tensor.data_ptr() for tensor in self._captured]
        return [*addresses, *(number.item() for number in self._numbers)]


def _with_constants_at(recording: Recording, device: torch.device) -> Recording:
    """Return a recording whose constants are on a device; indices usually are not."""
    captured = list(recording.captured)
    for position in recording.constants:
        captured[position] = captured[position].to(device)
    return replace(recording, captured=tuple(captured))


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Raise `NotTraceable` where something waits for the GPU, before it ruins a capture."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        except RuntimeError as error:
            raise NotTraceable("one of its operations waits for the GPU") from error
        finally:
            torch.cuda.set_sync_debug_mode(before)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Keep Python from freeing an older CUDA graph during a capture, which would abort it."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
