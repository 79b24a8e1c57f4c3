"""Cut a training short at a point where it can be continued."""

from __future__ import annotations

from ignite.engine import Engine

from sbi_ignite.callback import TrainingState
from sbi_ignite.random_state import put_awaited_in_force

CUT_SHORT = ("time_limit", "signal")
"""Reasons to stop that do not apply to a later start."""


def ends_epoch(engine: Engine) -> bool:
    """Say whether the iteration that has just ended is the last of its epoch."""
    length = engine.state.epoch_length
    return length is not None and engine.state.iteration % length == 0


def stop_after_batch(engine: Engine, state: TrainingState, reason: str) -> None:
    """End training now, in mid-epoch; after an epoch's last batch, once that epoch is validated.

    ignite would never validate an epoch that was ended after its last batch, not even on resume.

    Args:
        engine: The training engine, at the end of an iteration.
        state: Where the reason is noted.
        reason: One of `CUT_SHORT`.
    """
    put_awaited_in_force()  # what is saved now has the training's own random states
    state.stop(reason)
    if not ends_epoch(engine):
        engine.terminate()
