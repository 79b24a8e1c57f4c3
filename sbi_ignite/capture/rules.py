"""Rules for when steps are recorded, and how much proof a recording needs."""

from __future__ import annotations

from dataclasses import dataclass

PROOFS = 3
"""Batches on which a recording must give what the eager computation gives."""

ROUNDING = 1e-3
"""Largest difference of a compiled step from the eager one, relative to the norm of a gradient or
the mean size of losses. Rounding was seen to make up to 1e-5 of it; a wrong kernel makes more."""

ROUNDING_IN_BF16 = 0.05
"""The same where products are computed in bfloat16, of 8 bits."""


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
        fuse: Let recordings be compiled into fused kernels where possible. Each batch is then
            computed by these from the first one on, so that a training that is resumed takes the
            same steps as one that was not interrupted.
        rounding: Largest relative difference of what fused kernels give.
    """

    after: int
    after_if_large: int = 0
    proofs: int = PROOFS
    record_twice: bool = False
    must_pay: bool = False
    every_step: bool = False
    capture: bool = False
    fuse: bool = False
    rounding: float = ROUNDING
