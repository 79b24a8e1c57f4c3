"""Print a line per epoch, or show a progress bar in a terminal or notebook."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sbi_ignite.loggers.base import Backend, EpochRow, RunInfo
from sbi_ignite.settings.field_types import NO_LIMIT

if TYPE_CHECKING:
    from sbi_ignite.summary import TrainingSummary

_HEADER = (
    "epoch",
    "training loss",
    "validation loss",
    "best loss",
    "learning rate",
    "patience left",
    "seconds",
)


class Stdout(Backend):
    """Prints: aligned lines into a log file or pipe, a tqdm bar into a terminal or notebook.

    Exactly one of them: the bar where somebody watches and progress is welcome, else the lines.
    """

    name: str = "stdout"
    shows_progress: bool = True
    _bar: Any = None
    _validated: bool = True
    _last: EpochRow | None = None

    def start(self, info: RunInfo, identity: Mapping[str, Any]) -> None:
        """Print the header, or open the bar."""
        self._bar, self._validated, self._last = None, info.validated, None
        if info.show_progress and somebody_watches():
            self._bar = _open_bar(info)
            return
        self._say(_title(info, self.run_name, self.tags))
        self._say("  ".join(self._header()))

    def log_epoch(self, row: EpochRow) -> None:
        """Print a line, or move the bar."""
        if row.replayed:
            return
        self._last = row
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix_str(_short(row))
            return
        cells = _cells(row)
        self._say("  ".join(cells[name].rjust(len(name)) for name in self._header()))

    def log_iteration(self, iteration: int, values: Mapping[str, float]) -> None:
        """Print a line between those of the epochs; the bar shows epochs only."""
        if self._bar is None:
            loss, rate = values["iteration_loss"], values["iteration_learning_rate"]
            self._say(f"       iteration {iteration}: loss {loss:.4f}, learning rate {rate:.3g}")

    def finish(self, summary: TrainingSummary) -> None:
        """Print why and where it ended, also below a bar, which saved notebooks do not keep."""
        self._close_bar()
        last = [f"{kind} loss {loss:.4f}" for kind, loss in summary.last_losses.items()]
        self._say(
            f"stopped by {summary.ended_by} after epoch {summary.epochs_trained}; "
            f"best {summary.best_kind} loss {summary.best_validation_loss:.4f} at epoch "
            f"{summary.best_epoch}" + f"; last {', '.join(last)}" * bool(last)
        )

    def fail(self, status: str, message: str) -> None:
        """Print what happened and how far training had come, also below a bar."""
        self._close_bar()
        row = self._last
        came_to = "" if row is None else f"; after epoch {row.step}: {_short(row)}"
        self._say(f"{status}: {message}{came_to}")

    def _header(self) -> list[str]:
        return [name for name in _HEADER if self._validated or name != "validation loss"]

    def _close_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()

    def _say(self, line: str) -> None:
        print(line, flush=True)


def somebody_watches() -> bool:
    """Say whether the output goes to a terminal or a notebook."""
    return _in_notebook() or bool(getattr(sys.stdout, "isatty", bool)())


def _in_notebook() -> bool:
    """Say whether this runs in a notebook's kernel, without importing IPython to find out."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return hasattr(get_ipython(), "kernel")


def _open_bar(info: RunInfo) -> Any:
    """Return tqdm's bar for notebooks or terminals, with the epochs already done."""
    total = None if info.max_epochs >= NO_LIMIT else info.max_epochs
    shown: dict[str, Any] = {"total": total, "initial": info.epochs_done, "unit": "epoch"}
    description = f"{info.method} round {info.round_index}" if info.round_index else info.method
    if _in_notebook():
        from tqdm.notebook import tqdm as notebook_tqdm

        # Raised without ipywidgets; the bar for terminals works in a notebook too.
        with contextlib.suppress(ImportError):
            return notebook_tqdm(desc=description, **shown)
    from tqdm import tqdm

    return tqdm(desc=description, file=sys.stdout, dynamic_ncols=True, **shown)


def _title(info: RunInfo, run_name: str | None, tags: Mapping[str, str]) -> str:
    """Return the line above the header."""
    marks = [f"{name}={value}" if value else name for name, value in tags.items()]
    begins = f"continues after epoch {info.last_step_kept}" if info.last_step_kept else ""
    words = [info.method, f"round {info.round_index}" if info.round_index else "", run_name, *marks]
    return ", ".join(word for word in (*words, begins) if word)


def _cells(row: EpochRow) -> dict[str, str]:
    v = row.values
    return {
        "epoch": str(row.step),
        "training loss": f"{v['training_loss']:.4f}",
        "validation loss": f"{v.get('validation_loss', math.nan):.4f}",
        "best loss": f"{row.best_loss:.4f}",
        "learning rate": f"{v['learning_rate']:.3g}",
        "patience left": str(v.get("patience_left", "-")),
        "seconds": f"{v['epoch_durations_sec']:.2f}",
    }


def _short(row: EpochRow) -> str:
    v = row.values
    parts = [f"training {v['training_loss']:.3f}"]
    if "validation_loss" in v:
        parts.append(f"validation {v['validation_loss']:.3f}")
    parts += [f"best {row.best_loss:.3f}", f"rate {v['learning_rate']:.3g}"]
    if "patience_left" in v:
        parts.append(f"patience left {v['patience_left']}")
    return ", ".join(parts)
