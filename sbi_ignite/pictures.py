"""Draw the curves of trainings: one training with its stages and rounds, or several to compare."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BEST, _BAND, _OTHER_BAND = "C3", "0.93", "0.85"
_MOST_LABELS = 12
"""Runs that a legend names; with more of them it would hide the curves."""


@dataclass(frozen=True)
class Curves:
    """What is drawn of one training, one value per epoch.

    Attributes:
        name: What the training is called where there are several.
        training_loss: Training losses; NaN or missing values are not drawn, likewise below.
        validation_loss: Validation losses.
        learning_rate: Learning rates.
        gradient_norm: Gradient norms.
        stage: Number of the stage, from 1; 0 where it is unknown, () without stages.
        best_epoch: Epoch of the best weights, from 1; 0 without any.
        best_loss: Their loss.
    """

    name: str
    training_loss: Sequence[float] = ()
    validation_loss: Sequence[float] = ()
    learning_rate: Sequence[float] = ()
    gradient_norm: Sequence[float] = ()
    stage: Sequence[int] = ()
    best_epoch: int = 0
    best_loss: float = math.nan

    @classmethod
    def from_rows(cls, name: str, rows: Sequence[Mapping[str, Any]]) -> Curves:
        """Return the curves that lines of metrics.jsonl hold.

        Args:
            name: What the training is called.
            rows: One mapping per epoch.

        Example:
            >>> rows = [{"training_loss": 2.0, "best_training_loss": 2.0}]
            >>> Curves.from_rows("a", rows * 2).best_epoch
            1
        """

        def column(key: str) -> tuple[float, ...]:
            return tuple(row.get(key, math.nan) for row in rows)

        kinds = ("best_validation_loss", "best_training_loss")
        best = next((column(kind) for kind in kinds if _known(column(kind))), ())
        last = next((loss for loss in reversed(best) if math.isfinite(loss)), math.nan)
        return cls(
            name,
            column("training_loss"),
            column("validation_loss"),
            column("learning_rate"),
            column("gradient_norm"),
            tuple(int(row.get("stage", 0)) for row in rows),
            best_epoch=best.index(last) + 1 if math.isfinite(last) else 0,
            best_loss=last,
        )

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return len(self.training_loss)


def draw_training(parts: Sequence[Curves], title: str) -> Figure:
    """Return a figure of one training: losses, and below them learning rate and gradient norm.

    What was not recorded is not drawn. Stages are shaded; with several parts, those are.

    Args:
        parts: The training, or its rounds, which follow each other on the axis.
        title: What stands above.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    below = [name for name in ("learning_rate", "gradient_norm") if _any(parts, name)]
    # Fixed margins, and fixed places of labels and legend: finding good ones doubles the time.
    height = 4.0 + 1.3 * len(below)
    figure = Figure(figsize=(6.4, height))
    figure.subplots_adjust(
        left=0.14, right=0.97, bottom=0.55 / height, top=1 - 0.35 / height, hspace=0.12
    )
    every = figure.subplots(
        1 + len(below), sharex=True, squeeze=False, height_ratios=_heights(below)
    )
    losses, *lower = every[:, 0]
    _draw_losses(losses, parts)
    losses.set_title(title, y=1.0)
    losses.set_ylabel("loss")
    for axes, name in zip(lower, below, strict=True):
        _draw_below(axes, parts, name)
    for axes in (losses, *lower):
        _shade(axes, parts, labelled=axes is losses)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_label_coords(-0.105, 0.5)
    last = (losses, *lower)[-1]
    last.set_xlabel("epoch")
    last.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
    return shown_in_notebooks(figure)


def draw_comparison(runs: Sequence[Curves]) -> Figure:
    """Return a figure that overlays the loss curves of several trainings.

    Validation losses are drawn, or training losses (dashed) of runs without; the best epoch of each
    is marked.

    Args:
        runs: The trainings; those without a finished epoch are left out.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawn = [run for run in runs if run.epochs]
    named = drawn[:_MOST_LABELS]
    rows_of_names = math.ceil(len(named) / 2)
    height = 4.0 + 0.22 * (rows_of_names + (len(named) < len(drawn)))
    figure = Figure(figsize=(7.0, height))
    figure.subplots_adjust(left=0.11, right=0.97, bottom=(height - 3.6) / height, top=0.96)
    axes = figure.add_subplot()
    colors = colormaps["tab10" if len(drawn) <= 10 else "viridis"]
    for number, run in enumerate(drawn):
        color = colors(number if len(drawn) <= 10 else number / (len(drawn) - 1))
        validated = _known(run.validation_loss)
        values = run.validation_loss if validated else run.training_loss
        label = run.name if number < len(named) else None
        style = "-" if validated else "--"
        _draw(axes, 0, values, color=color, linestyle=style, linewidth=1.2, label=label)
        if run.best_epoch:
            axes.plot([run.best_epoch], [run.best_loss], "o", color=color, markersize=4)
    of = "validation loss" if any(_known(run.validation_loss) for run in drawn) else "training loss"
    dashed = any(not _known(run.validation_loss) for run in drawn) and of == "validation loss"
    axes.set(xlabel="epoch", ylabel=of + (" (dashed: training loss)" if dashed else ""))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.spines[["top", "right"]].set_visible(False)
    if drawn:
        more = len(drawn) - len(named)
        figure.legend(
            loc="lower left",
            bbox_to_anchor=(0.1, 0.01),
            ncols=2,
            frameon=False,
            fontsize="small",
            title=f"and {more} more" if more else None,
            alignment="left",
            title_fontsize="small",
        )
    return shown_in_notebooks(figure)


def shown_in_notebooks(figure: Figure) -> Figure:
    """Let notebooks show a figure as a cell's last value, and return it.

    IPython draws figures by itself only where pyplot has been imported.
    """
    # An attribute of the object, because wandb mistakes subclasses of Figure for arrays.
    vars(figure)["_repr_png_"] = partial(as_png, figure)
    return figure


def as_png(figure: Figure) -> bytes:
    """Return a figure as an image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


# --- inside


def _heights(below: Sequence[str]) -> list[float]:
    return [3.0, *(1.0 for _ in below)]


def _starts(parts: Sequence[Curves]) -> Iterator[tuple[int, Curves]]:
    """Yield each part with the number of epochs before it."""
    before = 0
    for part in parts:
        yield before, part
        before += part.epochs


def _known(values: Sequence[float]) -> bool:
    return any(math.isfinite(value) for value in values)


def _any(parts: Sequence[Curves], name: str) -> bool:
    return any(_known(getattr(part, name)) for part in parts)


def _draw(axes: Axes, before: int, values: Sequence[float], **style: Any) -> None:
    """Draw one curve; a single value gets a dot, since a line of one point is invisible."""
    epochs = range(before + 1, before + 1 + len(values))
    axes.plot(epochs, values, marker="." if len(values) == 1 else None, **style)


def _draw_losses(axes: Axes, parts: Sequence[Curves]) -> None:
    for kind, color in (("training", "C0"), ("validation", "C1")):
        label: str | None = kind
        for before, part in _starts(parts):
            values = getattr(part, f"{kind}_loss")
            if _known(values):
                _draw(axes, before, values, color=color, label=label)
                label = None
    for before, part in _starts(parts):
        if part.best_epoch:
            epoch = before + part.best_epoch
            where = f"{part.name}, " if len(parts) > 1 else ""
            label = f"best: {where}epoch {part.best_epoch}, {part.best_loss:.3f}"
            axes.plot([epoch], [part.best_loss], "o", color=_BEST, label=label)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper right", edgecolor="none", fontsize="small")


def _draw_below(axes: Axes, parts: Sequence[Curves], name: str) -> None:
    from matplotlib.ticker import NullFormatter

    for before, part in _starts(parts):
        values = getattr(part, name)
        if _known(values):
            _draw(axes, before, values, color="C2" if name == "learning_rate" else "C4")
    finite = [v for part in parts for v in getattr(part, name) if math.isfinite(v)]
    if min(finite) > 0 and max(finite) > 5 * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())  # its labels would not fit the margin
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel(name.replace("_", "\n"), fontsize="small")
    axes.tick_params(axis="y", labelsize="small")


def _shade(axes: Axes, parts: Sequence[Curves], labelled: bool) -> None:
    """Shade every other stage or round, and mark the best epoch."""
    regions = [*_regions(parts)]
    if labelled and len(regions) > 1:
        axes.margins(y=0.1)  # room for their names below the curves
    for number, (first, last, name) in enumerate(regions):
        if number % 2:
            axes.axvspan(first - 0.5, last + 0.5, color=_BAND, linewidth=0, zorder=0)
        if labelled and len(regions) > 1:
            axes.annotate(
                name,
                ((first + last) / 2, 0.01),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                fontsize="x-small",
                color="0.35",
                annotation_clip=False,
            )
    for before, part in _starts(parts):
        if part.best_epoch:
            axes.axvline(before + part.best_epoch, color="0.6", linewidth=1, linestyle="--")


def _regions(parts: Sequence[Curves]) -> Iterator[tuple[int, int, str]]:
    """Yield first epoch, last epoch and name: of rounds if there are several, else of stages."""
    if len(parts) > 1:
        for before, part in _starts(parts):
            if part.epochs:
                yield before + 1, before + part.epochs, part.name
        return
    for part in parts:
        numbered = enumerate(part.stage, start=1)
        for stage, epochs in groupby(numbered, key=lambda pair: pair[1]):
            held = [epoch for epoch, _ in epochs]
            if stage:
                yield held[0], held[-1], f"stage {stage}"
