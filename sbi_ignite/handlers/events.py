"""Events of a training beyond ignite's own, to which handlers attach."""

from __future__ import annotations

from ignite.engine import EventEnum


class TrainingEvents(EventEnum):
    """Events that the training engine fires besides ignite's `Events`.

    Attributes:
        BACKWARD_COMPLETED: Gradients are computed, the optimizer has not stepped yet.
        VALIDATED: An epoch is over and its losses are in the training state.
    """

    BACKWARD_COMPLETED = "backward_completed"
    VALIDATED = "validated"
