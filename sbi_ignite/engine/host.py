"""What a library brings along that trains through `run_training` comes in; one value goes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sbi_ignite.callback import TrainingState
from sbi_ignite.engine.state import Stateful
from sbi_ignite.engine.steps import Step
from sbi_ignite.handlers.best_weights import BestWeights
from sbi_ignite.handlers.stopping import Rule
from sbi_ignite.runs.snapshot import Snapshot
from sbi_ignite.settings import Resolved


@dataclass(frozen=True)
class Host:
    """What a library that trains through `run_training` may bring along instead of the defaults.

    Attributes:
        method: Name of the method in the summary; None takes the model's class.
        settings: Settings that are resolved already.
        state: State to count on from, for a training that an earlier call began.
        rules: Stopping rules instead of those that the settings name.
        best_weights: Keeper of the best weights.
        train_step: Process function of the training engine.
        validation_step: Process function of the validation engine.
        resume_from: Snapshot of an earlier call to continue exactly.
        parts: More objects with a state, saved and continued with the training.
        on_epoch_end: Called after validation, before any rule is asked, with the current time
            (seconds since 1970) minus the duration of the epoch.
        keep_snapshot: Receives snapshots of ends of epochs, the last one among them, from which a
            later call can go on, also after an exception; see `Snapshots`.
        loggers: Loggers besides those that the settings name.
        identity: What `keep_identity` received in the round before; loggers go on with its runs.
        keep_identity: Receives what a later round needs to log to the same runs.
        directory: Run directory instead of the one in the settings.
        manifest: What the run directory and loggers are told besides settings and versions.
        round_index: Round of a sequential method, from 0.
        first_step: Epochs of earlier rounds, so that rounds share one axis.
        first_iteration: Optimizer steps of earlier rounds.
        show_progress: Whether a progress bar is welcome.
        traceable: Whether network and loss are known to be the same computation for every batch, so
            that `compile="auto"` may replace them by a recording.
    """

    method: str | None = None
    settings: Resolved | None = None
    state: TrainingState | None = None
    rules: Sequence[Rule] | None = None
    best_weights: BestWeights | None = None
    train_step: Step | None = None
    validation_step: Step | None = None
    resume_from: Mapping[str, Any] | None = None
    parts: Mapping[str, Stateful] = field(default_factory=dict)
    on_epoch_end: Callable[[float], None] | None = None
    keep_snapshot: Callable[[Snapshot], None] | None = None
    loggers: Sequence[Any] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    keep_identity: Callable[[dict[str, Any]], None] | None = None
    directory: Path | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    round_index: int = 0
    first_step: int = 0
    first_iteration: int = 0
    show_progress: bool = True
    traceable: bool = False
