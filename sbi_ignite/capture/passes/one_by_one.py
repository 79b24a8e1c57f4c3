"""Change a recorded graph in ways that only pay where its operations run one by one."""

from __future__ import annotations

from torch import fx

from sbi_ignite.capture.passes.aliasing import bases, changing
from sbi_ignite.capture.passes.memory_reuse import reuse_memory
from sbi_ignite.capture.passes.number_tensors import make_tensors_of_numbers


def prepare_to_run_one_by_one(graph: fx.Graph) -> None:
    """Let operations write over arguments, and take numbers as tensors.

    A compiler that fuses operations does without both, and is kept from its work by writes.

    Args:
        graph: Changed in place; a second time changes nothing.
    """
    reuse_memory(graph, bases(graph), changing(graph))
    make_tensors_of_numbers(graph)
