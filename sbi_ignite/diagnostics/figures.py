"""Draw coverage, ranks and verdicts; figures belong to no pyplot state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sbi_ignite.diagnostics.calibration import coverage_band, coverage_of, rank_band

if TYPE_CHECKING:
    from sbi_ignite.diagnostics.calibration import PosteriorCheck

_LEVELS = np.linspace(0.02, 0.98, 49)
_MOST_IN_LEGEND = 12
_COLORS = {"fine": "0.35", "biased": "C3", "overconfident": "C1", "underconfident": "C0"}


def coverage_figure(
    ranks: NDArray[Any],
    num_posterior_samples: int,
    names: Sequence[str],
    joint: Sequence[tuple[float, float]] = (),
    title: str = "",
) -> Figure:
    """Return a figure of the coverage of every parameter over all credible levels.

    Args:
        ranks: Shape (num_simulations, num_parameters).
        num_posterior_samples: Samples per simulation.
        names: Names of the parameters.
        joint: Pairs of level and joint coverage.
        title: Title of the figure.
    """
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    _draw_coverage(axes, ranks, num_posterior_samples, names, joint)
    axes.set_title(title, loc="left", fontsize=10)
    return figure


def rank_figure(
    ranks: NDArray[Any], num_posterior_samples: int, names: Sequence[str], title: str = ""
) -> Figure:
    """Return a figure of the ranks of every parameter, flat where it is calibrated.

    Args:
        ranks: Shape (num_simulations, num_parameters).
        num_posterior_samples: Samples per simulation.
        names: Names of the parameters.
        title: Title of the figure.
    """
    count = len(names)
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.4 * columns + 0.6, 1.9 * rows + 0.5), layout="constrained")
    bins = max(5, min(20, len(ranks) // 20))
    low, high = rank_band(len(ranks), bins)
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.axhspan(low, high, color="0.88", zorder=0)
        axes.axhline(len(ranks) / bins, color="0.5", linewidth=1, linestyle="--", zorder=1)
        relative = (ranks[:, i] + 0.5) / (num_posterior_samples + 1)
        axes.hist(relative, bins=bins, range=(0, 1), color="C0", alpha=0.75, zorder=2)
        axes.set_title(name, fontsize=9, loc="left")
        axes.set(xlim=(0, 1), xticks=(0, 0.5, 1))
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("rank of the true value", fontsize=9)
    figure.supylabel("simulations", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def check_figure(check: PosteriorCheck) -> Figure:
    """Return a figure of coverage, bias and width of a posterior that was checked."""
    names = [p.name for p in check.parameters]
    height = max(3.8, 0.32 * len(names) + 1.6)
    figure = Figure(figsize=(10.5, height), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.35, 1, 1))
    samples = check.num_posterior_samples
    _draw_coverage(left, check.ranks, samples, names, check.joint_coverage, colored=False)
    places = np.arange(len(names))[::-1]
    for axes, value, error, ideal, label in (
        (middle, "bias", "bias_error", 0.0, "bias (posterior sd)"),
        (right, "width", "width_error", 1.0, "width relative to the correct one"),
    ):
        axes.axvline(ideal, color="0.5", linewidth=1, linestyle="--")
        for place, p in zip(places, check.parameters, strict=True):
            axes.errorbar(
                getattr(p, value),
                place,
                xerr=1.96 * getattr(p, error),
                fmt="o",
                color=_COLORS.get(p.verdict, "C4"),
                markersize=5,
                capsize=2,
            )
        axes.set(xlabel=label, ylim=(-0.7, len(names) - 0.3))
        axes.set_yticks(places, names if axes is middle else [])
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{check.verdict}, judged on {check.num_simulations} simulations",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    return figure


def _draw_coverage(
    axes: Any,
    ranks: NDArray[Any],
    samples: int,
    names: Sequence[str],
    joint: Sequence[tuple[float, float]],
    colored: bool = True,
) -> None:
    """Draw the coverage of every parameter, and jointly, with the band of a calibrated one."""
    low, high = np.transpose([coverage_band(len(ranks), level) for level in _LEVELS])
    axes.fill_between(_LEVELS, low, high, color="0.88", linewidth=0, label="calibrated (95%)")
    axes.plot((0, 1), (0, 1), color="0.5", linewidth=1, linestyle="--")
    curves = np.array([coverage_of(ranks.astype(float), samples, level) for level in _LEVELS])
    few = colored and len(names) <= _MOST_IN_LEGEND
    for i, name in enumerate(names):
        style = {"color": f"C{i % 10}"} if few else {"color": "C0", "alpha": 0.5}
        label = name if few else ("single parameters" if i == 0 else None)
        axes.plot(_LEVELS, curves[:, i], linewidth=1.3, label=label, **style)
    if joint:
        levels, shares = zip(*joint, strict=True)
        axes.plot(levels, shares, color="black", linewidth=1.3, label="jointly (TARP)")
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="credible level",
        ylabel="true values inside",
        aspect="equal",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
