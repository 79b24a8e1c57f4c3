"""Report how steps are computed, and why not in a faster way."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import NamedTuple

from sbi_ignite.exceptions import SbiIgniteWarning

logger = logging.getLogger("sbi_ignite.capture")


class Report(NamedTuple):
    """How the steps of a training were computed.

    Attributes:
        executor: "torchscript", "generated_python", "cuda_graph", "inductor", "stacked" or "eager".
        reason: Why not in a faster way, or not in the requested one; "" if there is no reason.
    """

    executor: str
    reason: str = ""


class Compiled:
    """Whether the steps of a training are compiled, remembered across interruptions."""

    def __init__(self) -> None:
        self._is: bool | None = None
        self._was: bool | None = None

    def note(self, compiled: bool) -> None:
        """Note how steps are computed from now on.

        Warns:
            SbiIgniteWarning: If those before an interruption were computed in the other way.
        """
        self._is = compiled
        if self._was not in (None, compiled):
            self._was = None
            how = "without a compiler" if compiled else "by a compiled step"
            warnings.warn(
                f"compile='inductor': until the interruption steps were computed {how}, and now "
                "they are not. The numbers of this run may differ in the last bits from "
                "those of an uninterrupted run.",
                SbiIgniteWarning,
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, bool | None]:
        """Return how steps are computed; None before the first."""
        return {"compiled": self._was if self._is is None else self._is}

    def load_state_dict(self, state: Mapping[str, bool | None]) -> None:
        """Remember how steps were computed."""
        self._was = state["compiled"]


class SlowerWays:
    """Log once per training if recordings run in a slower way."""

    def __init__(self) -> None:
        self._said: set[Report] = set()

    def __call__(self, found: Report, torch_lacks_something: bool) -> None:
        """Log what was found; nothing is logged without a reason."""
        if not found.reason or found in self._said:
            return
        self._said.add(found)
        level = logging.WARNING if torch_lacks_something else logging.INFO
        logger.log(level, "Recorded steps run as %s: %s.", found.executor, found.reason)


class Refusals:
    """Say once per training why a way of computing is given up.

    Args:
        mode: The setting that asked for it; None only logs the reason.
    """

    def __init__(self, mode: str | None) -> None:
        self._mode, self._told = mode, False

    def __call__(self, reason: str) -> None:
        """Report a reason."""
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
    """Return an error's first two lines as one; torch's compiler names the error in the second."""
    return " ".join(str(error).split("\n")[:2]).strip()
