"""Compute how many epochs a training takes at least, whatever its losses are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sbi_ignite.settings import EarlyStopping, Resolved, Stage


def sure_epochs(settings: Resolved, steps_per_epoch: int) -> float:
    """Return how many epochs are trained before any rule or stage can end them; may be infinite.

    Args:
        settings: Settings of the training.
        steps_per_epoch: Batches in an epoch.
    """
    config = settings.train
    bounds = [_patience_of(rule) for rule in settings.early_stopping]
    stages = _patience_of_all(config.stages, steps_per_epoch) if config.stages else math.inf
    return min([config.max_epochs, stages, *bounds])


def _patience_of(rule: EarlyStopping) -> float:
    """Return the epochs before a rule can stop a training; 0 if that is unknown."""
    if "patience" in rule.fields:
        return rule.patience
    return math.inf if rule.kind == "never" else 0


def _patience_of_all(stages: Sequence[Stage], steps_per_epoch: int) -> float:
    """Return the epochs that stages take together when each ends as soon as it can."""
    total = 0.0
    for stage in stages:
        least = max(stage.patience, math.ceil(stage.patience_steps / steps_per_epoch))
        bounds = [least, math.inf if stage.max_epochs is None else stage.max_epochs]
        if stage.max_relative_length is not None and total:
            bounds.append(math.ceil(stage.max_relative_length * total))
        total += min(bounds)
    return total
