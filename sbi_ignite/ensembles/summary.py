"""The summary of an ensemble, to read, print and plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sbi_ignite.html import table
from sbi_ignite.pictures import shown_in_notebooks
from sbi_ignite.summary import TrainingSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class MemberSummary:
    """What became of one member.

    Attributes:
        index: Its number, from 0.
        seed: The seed of its training, which gives its numbers also when it is trained alone.
        summary: Its summary; None if it failed.
        weight: Its weight in the ensemble; 0 if it failed.
        error: The error that ended it; "" if it did not fail.
        advice: What to do about it.
        trace: The traceback of the error.
    """

    index: int
    seed: int
    summary: TrainingSummary | None
    weight: float = 0.0
    error: str = ""
    advice: str = ""
    trace: str = field(default="", repr=False)

    def _cells(self) -> tuple[str, ...]:
        if self.summary is None:
            return (f"member {self.index}", "failed", "", "", "", f"{self.error}. {self.advice}.")
        s = self.summary
        loss = f"{s.best_validation_loss:.4f}"
        return (
            f"member {self.index}",
            loss,
            str(s.best_epoch),
            str(s.epochs_trained),
            f"{self.weight:.3f}",
            s.ended_by,
        )


@dataclass(frozen=True)
class Spread:
    """How far the posteriors of an ensemble's members are apart, for one observation.

    The distance of two members is the mean over the parameters of the Wasserstein-1 distance
    between their marginals, in units of the posterior's standard deviation (the root mean square
    of the members'). 0.1 says that, on average, the marginals are shifted or stretched by a tenth
    of their width.

    Attributes:
        distances: The distance of every two members, shape (members, members).
        marginals: The mean distance over all pairs, one per parameter.
        noise: The distance that the same number of draws from one and the same member shows.
        members: Numbers of the members, in the order of `distances`.

    Example:
        >>> Spread(((0.0, 0.3), (0.3, 0.0)), (0.3,), 0.03, (0, 1)).mean
        0.3
    """

    distances: tuple[tuple[float, ...], ...]
    marginals: tuple[float, ...]
    noise: float
    members: tuple[int, ...]

    @property
    def mean(self) -> float:
        """The mean distance over all pairs."""
        return sum(self.marginals) / len(self.marginals)

    def __str__(self) -> str:
        """Return one sentence."""
        return (
            f"{self.mean:.3f} posterior standard deviations between two members on average "
            f"(sampling noise {self.noise:.3f})"
        )

    def _repr_html_(self) -> str:
        """Return the distances as notebooks show them."""
        head = ("", *(f"member {i}" for i in self.members))
        rows = (
            (f"member {i}", *(f"{d:.3f}" for d in row))
            for i, row in zip(self.members, self.distances, strict=True)
        )
        return table(f"Spread: {self}", [head, *rows])


@dataclass(frozen=True, repr=False)
class EnsembleSummary:
    """What training an ensemble did.

    Attributes:
        method: Name of the trainer.
        members: One entry per member, also for those that failed.
        seed: Seed of the ensemble, from which everything can be repeated.
        weighting: "equal" or "validation".
        seconds: Time that it took.
        n_jobs: Members that were trained at a time.
        backend: Where: "sequential", or the name of joblib's backend.
        spread: How far the members' posteriors are apart; None before `Ensemble.spread`.
        stacked: Whether members were trained stacked, and why or why not; "" if not asked for.

    Example:
        >>> one = TrainingSummary(method="NPE_C", epochs_trained=1, best_epoch=1,
        ...     best_validation_loss=0.5, training_loss=(0.7,), validation_loss=(0.5,),
        ...     learning_rate=(5e-4,), gradient_norm=(1.0,), epoch_durations_sec=(0.1,),
        ...     stop_reason="max_epochs")
        >>> summary = EnsembleSummary("NPE_C", (MemberSummary(0, 7, one, weight=1.0),), seed=1)
        >>> summary.losses
        (0.5,)
    """

    method: str
    members: tuple[MemberSummary, ...]
    seed: int
    weighting: str = "equal"
    seconds: float = 0.0
    n_jobs: int = 1
    backend: str = "sequential"
    spread: Spread | None = None
    stacked: str = ""

    @property
    def summaries(self) -> tuple[TrainingSummary, ...]:
        """Summaries of the members that have not failed."""
        return tuple(m.summary for m in self.members if m.summary is not None)

    @property
    def failed(self) -> tuple[MemberSummary, ...]:
        """Members that have failed."""
        return tuple(m for m in self.members if m.summary is None)

    @property
    def losses(self) -> tuple[float, ...]:
        """Best validation loss of each member that has not failed."""
        return tuple(summary.best_validation_loss for summary in self.summaries)

    @property
    def complete(self) -> bool:
        """Whether no member failed or was cut short by time or a signal."""
        return not self.failed and all(summary.complete for summary in self.summaries)

    def __repr__(self) -> str:
        """Return one line; all values are in `to_dict()`."""
        losses = ", ".join(f"{loss:.4f}" for loss in self.losses)
        return (
            f"EnsembleSummary(method={self.method!r}, members={len(self.members)}, "
            f"failed={len(self.failed)}, best_validation_losses=({losses}), seed={self.seed})"
        )

    def __str__(self) -> str:
        """Return a short table."""
        rows = self._rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([self._title(), *lines, *self._last_lines()])

    def _repr_html_(self) -> str:
        """Return the short table, as notebooks show it."""
        return table(". ".join([self._title(), *self._last_lines()]), self._rows())

    def _title(self) -> str:
        return (
            f"EnsembleSummary: {len(self.members)} members of {self.method}, seed {self.seed}, "
            f"{self.seconds:.1f} s ({self.backend}, n_jobs={self.n_jobs})"
        )

    def _rows(self) -> list[tuple[str, ...]]:
        kind = self.summaries[0].best_kind if self.summaries else "validation"
        head = ("", f"best {kind} loss", "best epoch", "epochs", "weight", "stopped by")
        return [head, *(member._cells() for member in self.members)]

    def _last_lines(self) -> list[str]:
        spread = [] if self.spread is None else [f"spread: {self.spread}"]
        return [*([f"trained {self.stacked}"] if self.stacked else []), *spread]

    def plot(self) -> Figure:
        """Return a figure of the loss curves of all members, with each one's best epoch marked.

        The figure belongs to no pyplot state; save it with `figure.savefig("loss.png")`. A notebook
        shows it as a cell's last value.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for number, summary in enumerate(self.summaries):
            color = f"C{number % 10}"
            epochs = range(1, len(summary.training_loss) + 1)
            axes.plot(epochs, summary.training_loss, color=color, linewidth=0.8, linestyle=":")
            shown = summary.validation_loss if summary.validated else summary.training_loss
            axes.plot(epochs, shown, color=color, linewidth=1.2)
            if summary.best_epoch:
                axes.plot([summary.best_epoch], [summary.best_validation_loss], "o", color=color)
        axes.plot([], [], color="0.3", linestyle=":", label="training")
        axes.plot([], [], color="0.3", label="validation, with the best epoch")
        title = f"{self.method}: {len(self.summaries)} members"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        axes.set(xlabel="epoch", ylabel="loss", title=title + failed)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return shown_in_notebooks(figure)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain data, ready for JSON."""
        members = [
            {**vars(m), "summary": None if m.summary is None else m.summary.to_dict()}
            for m in self.members
        ]
        spread = None if self.spread is None else {**vars(self.spread), "mean": self.spread.mean}
        return {**vars(self), "members": members, "spread": spread}


def spread_of(samples: Mapping[int, Any]) -> Spread:
    """Return how far apart samples of several posteriors are.

    Args:
        samples: By number of the member, arrays of shape (num_samples, dim_theta) of equal length.

    Example:
        >>> import numpy as np
        >>> draws = np.random.default_rng(0).normal(size=(2, 1000, 1))
        >>> apart = spread_of({0: draws[0], 1: draws[1] + 1.0})
        >>> round(apart.mean, 1), apart.noise < 0.1
        (1.0, True)
    """
    import numpy as np
    from scipy.stats import wasserstein_distance

    members = list(samples)
    scale = np.sqrt(np.mean([np.var(samples[i], axis=0) for i in members], axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    scaled = {i: samples[i] / scale for i in members}

    def apart(first: Any, second: Any) -> list[float]:
        columns = zip(first.T, second.T, strict=True)
        return [float(wasserstein_distance(a, b)) for a, b in columns]

    pairs = {
        (a, b): apart(scaled[a], scaled[b])
        for position, a in enumerate(members)
        for b in members[position + 1 :]
    }
    means = {pair: float(np.mean(values)) for pair, values in pairs.items()}
    matrix = tuple(
        tuple(means.get((a, b), means.get((b, a), 0.0)) for b in members) for a in members
    )
    # Halves have half as many draws, whose distance is larger by the square root of two.
    halves = [apart(scaled[i][0::2], scaled[i][1::2]) for i in members]
    noise = float(np.mean([_of_equal(half) for half in halves])) / np.sqrt(2)
    marginals = tuple(map(float, np.mean(list(pairs.values()), axis=0)))
    return Spread(matrix, marginals, float(noise), tuple(members))


def _of_equal(distances: Sequence[float]) -> float:
    return sum(distances) / len(distances)
