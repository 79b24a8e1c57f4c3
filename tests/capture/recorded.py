"""Record functions and run the recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sbi_ignite.capture.executors import Executor, GeneratedPython, Run, TorchScript
from sbi_ignite.capture.recorder import record
from sbi_ignite.capture.recording import Recording

EXECUTORS = (TorchScript(), GeneratedPython())
"""What can run recordings on a CPU."""


@dataclass(frozen=True)
class Recorded:
    """A recording that runs.

    Attributes:
        about: What is known about it.
        run: Runs it.
        code: What the executor runs, as text.
    """

    about: Recording
    run: Run
    code: str

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.run(inputs)


def recorded(
    function: Callable[..., list[Tensor]],
    inputs: Sequence[Tensor],
    own: Iterable[Tensor] = (),
    executor: Executor = EXECUTORS[0],
) -> Recorded:
    """Return the recording of a function, to be run by an executor."""
    about, graph = record(function, inputs, own)
    run = executor.prepare(about, graph, inputs)
    code = "\n".join(f"{node.target} {node.args} {node.kwargs}" for node in graph.nodes)
    return Recorded(about, run, code)
