"""Keep the numbers of a training in memory, to be read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from sbi_ignite.loggers.base import (
    Backend,
    EpochFigure,
    EpochRow,
    RunInfo,
    origins,
    parameters,
    status_of,
)

if TYPE_CHECKING:
    from sbi_ignite.summary import TrainingSummary


class Memory(Backend):
    """Keeps everything in lists, for notebooks and tests.

    Pass one to train() and read it afterwards, or ask for the backend "memory" by name and read
    `Memory.latest`.

    Attributes:
        rows: One dict per epoch: "step" and the metrics.
        iterations: One dict per logged iteration: "iteration" and the metrics.
        figures: What callbacks drew: step, name and figure.
        parameters: Settings and manifest as a flat dict.
        origins: Where each setting came from.
        summary: The summary of a finished training.
        status: "running", "finished", "pruned", "failed" or "killed"; None before the start.

    Example:
        >>> memory = Memory()
        >>> # inference.train(TrainConfig(), logging=memory)
        >>> memory.rows
        []
    """

    name: str = "memory"
    shows_figures = True
    latest: ClassVar[Memory | None] = None
    """The one that started last."""

    def __init__(
        self,
        *,
        run_name: str | None = None,
        tags: Any = None,
        every_n_iterations: int | None = None,
    ) -> None:
        super().__init__(run_name=run_name, tags=tags, every_n_iterations=every_n_iterations)
        self.rows: list[dict[str, Any]] = []
        self.iterations: list[dict[str, Any]] = []
        self.figures: list[tuple[int, str, Any]] = []
        self.parameters: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.summary: TrainingSummary | None = None
        self.status: str | None = None
        self.message = ""

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        """Forget steps that the continued run does not have, keep the others."""
        Memory.latest = self
        self.rows = [row for row in self.rows if row["step"] <= info.last_step_kept]
        self.figures = [kept for kept in self.figures if kept[0] <= info.last_step_kept]
        last = info.last_iteration_kept
        self.iterations = [row for row in self.iterations if row["iteration"] <= last]
        self.parameters, self.origins = parameters(info), origins(info)
        self.status, self.message = "running", ""

    def log_epoch(self, row: EpochRow) -> None:
        """Append a row that is not there yet."""
        if not (row.replayed and any(have["step"] == row.step for have in self.rows)):
            self.rows.append({"step": row.step, **row.values})

    def log_figure(self, figure: EpochFigure) -> None:
        """Keep it."""
        self.figures.append((figure.step, figure.name, figure.figure))

    def log_iteration(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append a row."""
        self.iterations.append({"iteration": iteration, **values})

    def finish(self, summary: TrainingSummary) -> None:
        """Keep the summary."""
        self.summary, self.status = summary, status_of(summary)

    def fail(self, status: str, message: str) -> None:
        """Keep what happened."""
        self.status, self.message = status, message
