"""The summary of a finished training, to read, print and plot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from sbi_ignite.html import table
from sbi_ignite.pictures import Curves, draw_training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 96
"""Columns of a printed summary."""


@dataclass(frozen=True, repr=False)
class TrainingSummary:
    """What one call of `train()` or `run_training()` did.

    Attributes:
        method: Name of the trainer or of the model's class.
        epochs_trained: Finished epochs, over all legs of a resumed training.
        best_epoch: Epoch whose weights were returned, or at whose end they were averaged, counted
            from 1; 0 if there was none.
        best_validation_loss: Validation loss of those weights; that of a mean may be above the
            lowest one, see `Stage`. Where nothing was validated, their training loss.
        training_loss: One value per epoch, likewise the four below.
        validation_loss: NaN throughout where there was no validation data.
        learning_rate: Rate of the first parameter group.
        gradient_norm: Mean norm before clipping; NaN where it could not be measured.
        epoch_durations_sec: Seconds of training and validation.
        stop_reason: "patience", "lr_threshold", "max_epochs", "time_limit", "signal", "rule",
            "callback" or "pruned".
        stop_message: Words given with the request to stop, "" without any.
        complete: False where a longer run was cut short by time or a signal.
        resumed_from_epoch: Epoch from which this call continued; 0 for a fresh start.
        run_directory: Where the run's files are; None without checkpoints.
        device: Where the network was trained.
        world_size: Number of processes.
        executor: How training steps were computed: "torchscript" (recorded once and repeated
            by its interpreter), "generated_python" (the same in Python), "cuda_graph", "inductor",
            "stacked" (together with those of other members of an ensemble) or "eager" (by torch,
            operation by operation). Results do not depend on it, except with "inductor" and
            "stacked", which round differently.
        executor_reason: Why not in a faster way, or in the one that `compile` asked for; "" where
            there is nothing to say.
        config: All settings as plain data, each with its value and origin.
        validated: Whether there was validation data.
        stage: Number of the stage that each epoch belonged to, from 1; 0 where it is unknown, ()
            without stages.
        metrics: What callbacks logged: for each name pairs of epoch, counted from 1, and value.
        init_from: What `init_from=` began with: its "source", a fingerprint of the "weights", and
            of a run directory its "run", "method" and "epoch"; None without.
        validation_set: Fingerprint of the user's own validation set under "data", a shape and a
            digest for every tensor; None where the simulations were split.

    Example:
        >>> summary = TrainingSummary(method="NPE_C", epochs_trained=1, best_epoch=1,
        ...     best_validation_loss=0.5, training_loss=(0.7,), validation_loss=(0.5,),
        ...     learning_rate=(5e-4,), gradient_norm=(1.0,), epoch_durations_sec=(0.1,),
        ...     stop_reason="max_epochs")
        >>> summary.to_dict()["best_epoch"]
        1
    """

    method: str
    epochs_trained: int
    best_epoch: int
    best_validation_loss: float
    training_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    learning_rate: tuple[float, ...]
    gradient_norm: tuple[float, ...]
    epoch_durations_sec: tuple[float, ...]
    stop_reason: str
    stop_message: str = ""
    complete: bool = True
    resumed_from_epoch: int = 0
    run_directory: str | None = None
    device: str = "cpu"
    world_size: int = 1
    executor: str = ""
    executor_reason: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    validated: bool = True
    metrics: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    init_from: Mapping[str, Any] | None = None
    validation_set: Mapping[str, Any] | None = None
    stage: tuple[int, ...] = ()

    def __repr__(self) -> str:
        """Return one line; all values are in `to_dict()`."""
        return (
            f"TrainingSummary(method={self.method!r}, epochs_trained={self.epochs_trained}, "
            f"best_epoch={self.best_epoch}, best_{self.best_kind}_loss="
            f"{self.best_validation_loss:.4f}, stop_reason={self.stop_reason!r})"
        )

    def __str__(self) -> str:
        """Return a short table."""
        rows = self._rows()
        width = max(map(len, rows)) + 2
        lines = []
        for name, value in rows.items():
            is_path = name == "run directory"  # which stays in one piece
            first, *rest = [value] if is_path else wrap(value, _WIDTH - width) or [""]
            lines += [f"{name:<{width}}{first}", *(" " * width + part for part in rest)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the short table, as notebooks show it."""
        return table("TrainingSummary", self._rows().items())

    @property
    def status(self) -> str:
        """The status in run.json, "complete", "pruned", or "interrupted" if it can be continued."""
        if not self.complete:
            return "interrupted"
        return "pruned" if self.stop_reason == "pruned" else "complete"

    @property
    def best_kind(self) -> str:
        """The loss that chose the best weights, "validation", or without such data "training"."""
        return "validation" if self.validated else "training"

    @property
    def ended_by(self) -> str:
        """The stop reason, with the words that were given."""
        return self.stop_reason + (f" ({self.stop_message})" if self.stop_message else "")

    @property
    def last_losses(self) -> dict[str, float]:
        """Losses of the last epoch, if there was one, by "training" and "validation"."""
        kinds = {"training": self.training_loss[-1:]}
        if self.validated:
            kinds["validation"] = self.validation_loss[-1:]
        return {kind: loss for kind, losses in kinds.items() for loss in losses}

    def _rows(self) -> dict[str, str]:
        seconds = sum(self.epoch_durations_sec)
        rows = {
            "method": self.method,
            "epochs trained": f"{self.epochs_trained}{self._resumed()}",
            "best epoch": str(self.best_epoch),
            f"best {self.best_kind} loss": f"{self.best_validation_loss:.4f}",
            **{f"final {kind} loss": f"{loss:.4f}" for kind, loss in self.last_losses.items()},
            "final learning rate": f"{self.learning_rate[-1]:.3g}" if self.learning_rate else "-",
            "stopped by": self.ended_by,
            "complete": "yes" if self.complete else "no, it can be continued",
            "time in epochs": f"{seconds:.1f} s",
            "device": self.device + (f", {self.world_size} processes" * (self.world_size > 1)),
        }
        if self.init_from is not None:
            rows["began with"] = (
                f"weights {self.init_from['weights'][:8]} of {self.init_from['source']}"
            )
        if self.validation_set is not None:
            rows["validated on"] = f"{self.validation_set['data'][0]['shape'][0]} rows of its own"
        if self.executor:
            because = f" ({self.executor_reason})" if self.executor_reason else ""
            rows["steps computed"] = self.executor + because
        if self.run_directory is not None:
            rows["run directory"] = self.run_directory
        return rows

    def _resumed(self) -> str:
        if not self.resumed_from_epoch:
            return ""
        if self.resumed_from_epoch == self.epochs_trained and self.complete:
            return " (none in this call: the run was complete and is returned as it was)"
        return f" (resumed from {self.resumed_from_epoch})"

    def plot(self) -> Figure:
        """Return a figure of the losses, with learning rate and gradient norm below them.

        The best epoch is marked, and stages are shaded. What was not recorded is not drawn.

        The figure belongs to no pyplot state; save it with `figure.savefig("loss.png")`. A notebook
        shows it as a cell's last value.
        """
        return draw_training([self.curves], f"{self.method}: {self.in_a_line}")

    @property
    def in_a_line(self) -> str:
        """How many epochs were trained and what stopped them, in a few words."""
        epochs = f"{self.epochs_trained} epoch{'' if self.epochs_trained == 1 else 's'}"
        return f"{epochs}, stopped by {self.stop_reason}"

    @property
    def curves(self) -> Curves:
        """What `plot` draws."""
        return Curves(
            self.method,
            self.training_loss,
            self.validation_loss if self.validated else (),
            self.learning_rate,
            self.gradient_norm,
            self.stage,
            self.best_epoch,
            self.best_validation_loss,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain data (lists instead of tuples), ready for JSON."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in plain.items()}
