"""A tracker for sbi's trainers that keeps nothing, where their own would write files."""

from __future__ import annotations

from typing import Any


class NoTracker:
    """Implements sbi's `Tracker` protocol and keeps nothing."""

    log_dir = None

    def log_metric(self, name: str, value: Any, step: int | None = None) -> None:
        """Keep nothing."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Keep nothing."""

    def log_params(self, params: Any) -> None:
        """Keep nothing."""

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        """Keep nothing."""

    def flush(self) -> None:
        """Keep nothing."""
