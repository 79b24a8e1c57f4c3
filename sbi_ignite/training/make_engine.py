"""Make ignite engines that know our events and log nothing by themselves."""

from __future__ import annotations

import logging

from ignite.engine import Engine

from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.training.steps import Step

_logger = logging.getLogger("sbi_ignite.training")
# ignite logs errors that are raised anyway; to see them twice, add a handler to this logger.
_logger.addHandler(logging.NullHandler())
_logger.propagate = False


def make_engine(step: Step) -> Engine:
    """Return an engine around a process function."""
    engine = Engine(step)
    engine.logger = _logger
    engine.register_events(*TrainingEvents)
    return engine
