"""What all ways to run a recorded graph have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, fx

from sbi_ignite.capture.recording import Recording

Run = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
"""Takes inputs with the shapes, strides, types and devices of the recording; returns outputs
without autograd history."""


class Executor(Protocol):
    """A way to run recorded graphs.

    Random draws equal those of the recorded computation bit for bit, and so do results unless the
    executor says that it rounds differently; the code that uses a recording verifies this. To add
    an executor, write a module in this package and name it in `executors_for`.
    """

    @property
    def name(self) -> str:
        """Its name in summaries and messages."""
        ...

    @property
    def exact(self) -> bool:
        """Whether it runs the same operations with the same kernels, in the same order."""
        ...

    def missing(self) -> str:
        """Return what keeps it from working here, "" if it works; this is tried, not assumed."""
        ...

    def prepare(self, recording: Recording, graph: fx.Graph, inputs: Sequence[Tensor]) -> Run:
        """Return a function that runs a graph.

        Args:
            recording: What is known about the graph.
            graph: Flat; its placeholders are the captured tensors, then the inputs; its functions
                are operations of torch or `operator.getitem`. It may be changed in place.
            inputs: The tensors it was recorded with.

        Raises:
            NotTraceable: If this graph cannot be run in this way.
        """
        ...
