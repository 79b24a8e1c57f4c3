"""Rules for when steps are recorded, and how much proof a recording needs."""

from __future__ import annotations

from dataclasses import dataclass

PROOFS = 3
"""Batches on which a recording must give what the eager computation gives."""


@dataclass(frozen=True)
class TracingRules:
    """When to record, and how much proof to ask for.

    Attributes:
        after: Batches of a shape that are computed eagerly first.
        after_if_large: The same for batches of at least `LARGE` rows, if it is more.
        proofs: Batches on which a recording must give what the eager computation gives.
        record_twice: Record on two batches and compare, which reveals Python state that changes
            from batch to batch, wherever it is kept.
        must_pay: Give up recordings that are not faster than the eager computation, as with
            networks that spend their time in large convolutions.
        every_step: Look for changes of the network before every step, not only every epoch.
        capture: Let recordings run as CUDA graphs where possible.
    """

    after: int
    after_if_large: int = 0
    proofs: int = PROOFS
    record_twice: bool = False
    must_pay: bool = False
    every_step: bool = False
    capture: bool = False
