"""Say which way steps are computed, and why not in a faster one."""

from __future__ import annotations

import logging
import warnings
from typing import NamedTuple

from sbi_ignite.exceptions import SbiIgniteWarning

logger = logging.getLogger("sbi_ignite.capture")


class Report(NamedTuple):
    """Which way the steps of a training were computed.

    Attributes:
        executor: "torchscript", "generated_python", "cuda_graph", "inductor" or "eager".
        reason: Why not in a faster way, or in the one that was asked for; "" where it was.
    """

    executor: str
    reason: str = ""


class SlowerWays:
    """Log in which slower way recordings run, once in a training."""

    def __init__(self) -> None:
        self._said: set[Report] = set()

    def __call__(self, found: Report, torch_lacks_something: bool) -> None:
        """Take what was found; nothing is said without a reason."""
        if not found.reason or found in self._said:
            return
        self._said.add(found)
        level = logging.WARNING if torch_lacks_something else logging.INFO
        logger.log(level, "Recorded steps run as %s: %s.", found.executor, found.reason)


class Refusals:
    """Say why a way of computing is given up, once in a training.

    Args:
        mode: The setting that asked for it; None says it to the log only.
    """

    def __init__(self, mode: str | None) -> None:
        self._mode, self._told = mode, False

    def __call__(self, reason: str) -> None:
        """Take a reason."""
        if self._told:
            logger.debug("Not as compile asks: %s.", reason)
            return
        self._told = True
        if self._mode is None:
            logger.info("Steps are computed in a slower way than compile='auto' could: %s.", reason)
            return
        warnings.warn(
            f"compile={self._mode!r}: {reason}. Training goes on without it, and its results are "
            "not affected.",
            SbiIgniteWarning,
            stacklevel=2,
        )


def in_a_line(error: Exception) -> str:
    """Return what an error says first; torch's compiler needs two lines to say what it was."""
    return " ".join(str(error).split("\n")[:2]).strip()
