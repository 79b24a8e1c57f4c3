"""Hooks through which a host library decides about its own trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sbi_ignite.callback import TrainingState
from sbi_ignite.handlers.best_weights import BestWeights
from sbi_ignite.handlers.rules.base import Rule
from sbi_ignite.runs.snapshot import Snapshot
from sbi_ignite.summary import TrainingSummary
from sbi_ignite.training.state import Stateful
from sbi_ignite.training.steps import Step


@dataclass(frozen=True)
class Place:
    """Where a training stands among the trainings of its host.

    Attributes:
        method: Name of the method in summary, logs and run directory; None takes the model's class.
        directory: Run directory; None takes the one in the settings.
        manifest: What run directory and loggers record besides settings and versions.
        round_index: Round of a sequential method, from 0.
        first_step: Epochs of earlier rounds, so that rounds share one axis.
        first_iteration: Optimizer steps of earlier rounds.
        logged_to: `Loggers.state_dict()` of the previous round, whose runs are continued.
        show_progress: Whether a progress bar is welcome.
    """

    method: str | None = None
    directory: Path | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    round_index: int = 0
    first_step: int = 0
    first_iteration: int = 0
    logged_to: Mapping[str, Any] = field(default_factory=dict)
    show_progress: bool = True


@dataclass(frozen=True)
class Steps:
    """How batches are computed if not by the usual forward, backward and step.

    Attributes:
        train: Process function of the training engine; None takes the usual step.
        validate: Process function of the validation engine; None likewise.
        traceable: Whether network and loss are known to compute every batch in the same way, so
            that `compile="auto"` may replace them by a recording.
        same_draws: Whether the loss draws random numbers that must be the same in all processes
            that train together.
    """

    train: Step | None = None
    validate: Step | None = None
    traceable: bool = False
    same_draws: bool = False


class TrainingHooks:
    """Decisions that a host library makes instead of the settings; the defaults make none.

    A host derives from this class and passes an instance to `assemble`. sbi's trainers do so in
    `inference/`.

    Attributes:
        place: Where the training stands among the trainings of its host.
        steps: How batches are computed.
        loggers: Loggers besides those that the settings name.
        parts: More objects with a state, saved and continued with the training.
        resume_from: Snapshot of an earlier call that is continued exactly; None starts anew.
    """

    place: Place = Place()
    steps: Steps = Steps()
    loggers: Sequence[Any] = ()
    parts: Mapping[str, Stateful] = {}
    resume_from: Mapping[str, Any] | None = None

    keep_snapshot: Callable[[Snapshot], None] | None = None
    """Receives snapshots at ends of epochs, see `Snapshots`, from which a later call continues."""

    def state(self, model: Any) -> TrainingState:
        """Return the numbers to count on from, if an earlier call began the training."""
        return TrainingState(model=model)

    def rules(self) -> Sequence[Rule] | None:
        """Return stopping rules; None takes those that the settings name."""
        return None

    def best_weights(self) -> BestWeights:
        """Return the keeper of the best weights."""
        return BestWeights()

    def on_epoch_validated(self, epoch_started: float) -> None:
        """Look at an epoch before any rule is asked.

        Args:
            epoch_started: The current time less the duration of the epoch, in seconds since 1970.
        """

    def on_summary(self, summary: TrainingSummary) -> None:
        """Keep the summary of the training, before loggers finish; also after Ctrl-C."""

    def on_end(self, logged_to: Mapping[str, Any]) -> None:
        """Keep, at a regular end, what a later round needs to continue the same loggers."""
