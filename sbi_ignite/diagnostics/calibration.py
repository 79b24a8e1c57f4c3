"""Judge from ranks whether a posterior is calibrated, and say it in words.

The rank of a true parameter among L posterior samples is uniform on 0, ..., L if it and the samples
come from the same distribution (Talts et al. 2018). Mapped to quantiles of a standard normal, ranks
show what is wrong: their mean is the shift of the truth in standard deviations of the posterior,
their standard deviation is how much wider the posterior should be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, kstwo

from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.html import table
from sbi_ignite.pictures import shown_in_notebooks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Verdict = Literal["fine", "biased", "overconfident", "underconfident", "miscalibrated"]
"""What can be said of a parameter, and of a posterior."""

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Credible levels whose coverage is reported."""

_NULL_DRAWS = 40_000
"""Draws of the statistics of uniform ranks, whose quantiles are their critical values."""

_LEAST = 20
"""Simulations below which nothing can be said."""


@dataclass(frozen=True)
class ParameterCheck:
    """What the ranks of one parameter say.

    Attributes:
        name: The parameter.
        verdict: "fine", "biased", "overconfident" (too narrow), "underconfident" (too wide), or
            "miscalibrated" in another way, such as a wrong shape.
        bias: True values minus posterior, in standard deviations of the posterior.
        bias_error: Its standard error.
        width: Width of the posterior relative to what it should be: 0.5 is half as wide.
        width_error: Its standard error.
        p_bias: Probability of such a bias, or a larger one, if the posterior is calibrated.
        p_width: The same of the width.
        p_shape: The same of the largest distance between the distribution of ranks and a uniform
            one (Kolmogorov-Smirnov).
        coverage: For each of `LEVELS`, the share of true values in the central credible interval.

    Example:
        >>> ranks = np.random.default_rng(0).integers(0, 101, (300, 1))
        >>> check = judged(ranks, 100, ["mu"]).parameters[0]
        >>> check.name, check.verdict
        ('mu', 'fine')
    """

    name: str
    verdict: Verdict
    bias: float
    bias_error: float
    width: float
    width_error: float
    p_bias: float
    p_width: float
    p_shape: float
    coverage: Mapping[float, float]


@dataclass(frozen=True, repr=False)
class PosteriorCheck:
    """Whether a posterior is calibrated, by simulations whose parameters are known.

    Print it for the verdict in words; `plot()` shows it.

    Attributes:
        verdict: "fine" if every parameter is and the joint test agrees; else that of the parameter
            with the smallest p-value, or "miscalibrated" if only the joint test objects.
        parameters: What was found for each parameter.
        num_simulations: How many simulations were checked.
        num_posterior_samples: Samples drawn for each of them.
        false_alarm: Probability, at most, that a calibrated posterior is not called fine.
        p_joint: Probability of such a distance or a larger one between expected and nominal joint
            coverage (TARP) if the posterior is calibrated; None if it was not computed.
        joint_coverage: The joint coverage: pairs of nominal level and share of true values.
        ranks: Rank of every true value, shape (num_simulations, num_parameters).
        note: What to know about how the samples were drawn, "" if nothing.

    Example:
        >>> ranks = np.random.default_rng(0).integers(0, 101, (300, 1))
        >>> judged(ranks, 100, ["mu"]).verdict
        'fine'
    """

    verdict: Verdict
    parameters: tuple[ParameterCheck, ...]
    num_simulations: int
    num_posterior_samples: int
    false_alarm: float
    p_joint: float | None = None
    joint_coverage: Sequence[tuple[float, float]] = ()
    ranks: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    note: str = ""

    def __repr__(self) -> str:
        """Return one line."""
        return f"PosteriorCheck({self.verdict!r}, num_simulations={self.num_simulations})"

    def __str__(self) -> str:
        """Return the verdict in words, then a row for each parameter."""
        width = max(len("parameter"), *(len(p.name) for p in self.parameters))
        header = (
            f"{'parameter':<{width}}  {'bias (sd)':>14}  {'width':>14}  {'in 90%':>6}  "
            f"{'p':>6}  verdict"
        )
        lines = [self.in_words(), "", header]
        for p in self.parameters:
            bias = f"{p.bias:+.2f} ± {p.bias_error:.2f}"
            wide = f"{p.width:.2f} ± {p.width_error:.2f}"
            least = min(p.p_bias, p.p_width, p.p_shape)
            inside = p.coverage[0.9]
            lines.append(
                f"{p.name:<{width}}  {bias:>14}  {wide:>14}  {inside:>6.1%}  {least:>6.2g}  "
                f"{p.verdict}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the rows as a table, as notebooks show it."""
        rows = [
            (
                p.name,
                f"{p.bias:+.2f} ± {p.bias_error:.2f}",
                f"{p.width:.2f} ± {p.width_error:.2f}",
                f"{p.coverage[0.9]:.1%}",
                p.verdict,
            )
            for p in self.parameters
        ]
        head = ("parameter", "bias (sd)", "width", "in 90%", "verdict")
        return table(self.in_words(), [head, *rows])

    def in_words(self) -> str:
        """Return the verdict as sentences, with its uncertainty."""
        tested = f"{self.num_simulations} simulations"
        rate = f"{self.false_alarm:.0%}"
        sure = f"a calibrated posterior fails at most {rate} of such checks"
        if self.verdict == "fine":
            bias = max(
                _detectable(p.bias_error, self.false_alarm, self._tests) for p in self.parameters
            )
            wide = max(
                _detectable(p.width_error, self.false_alarm, self._tests) for p in self.parameters
            )
            text = (
                f"Fine: {tested} show no miscalibration. A bias of {bias:.2f} standard deviations "
                f"or a width off by {wide:.0%} would most likely have been seen; {sure}."
            )
        else:
            level = self.false_alarm / self._tests
            found = [f"{p.name}: {_said(p, level)}" for p in self.parameters if p.verdict != "fine"]
            joint = "the joint coverage (TARP) is off although no single parameter is"
            said = "; ".join(found) or joint
            text = f"{self.verdict.capitalize()}, judged on {tested}: {said} ({sure})."
        return f"{text} {self.note}".rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the ranks as plain data, ready for JSON."""
        return {
            "verdict": self.verdict,
            "num_simulations": self.num_simulations,
            "num_posterior_samples": self.num_posterior_samples,
            "false_alarm": self.false_alarm,
            "p_joint": self.p_joint,
            "joint_coverage": [list(pair) for pair in self.joint_coverage],
            "note": self.note,
            "parameters": [
                {**vars(p), "coverage": {str(level): v for level, v in p.coverage.items()}}
                for p in self.parameters
            ],
        }

    def plot(self) -> Figure:
        """Return a figure of coverage, and of bias and width of every parameter.

        The grey band has the coverage of a calibrated posterior in 95 % of checks, at each level.
        """
        from sbi_ignite.diagnostics.figures import check_figure

        return shown_in_notebooks(check_figure(self))

    @property
    def _tests(self) -> int:
        return num_tests(len(self.parameters), joint=self.p_joint is not None)


def judged(
    ranks: NDArray[Any],
    num_posterior_samples: int,
    names: Sequence[str],
    *,
    false_alarm: float = 0.05,
    joint: Sequence[tuple[float, float]] = (),
    note: str = "",
) -> PosteriorCheck:
    """Judge a posterior by the ranks of true parameters.

    Three statistics of every parameter (mean and standard deviation of normal scores, distance
    from uniform) and one of the joint coverage are tested. The probability of a false alarm is
    shared among them (Bonferroni), which holds however they depend on each other.

    Args:
        ranks: How many of the samples are below the true value, shape (num_simulations,
            num_parameters).
        num_posterior_samples: Samples per simulation.
        names: Names of the parameters.
        false_alarm: Probability of a false alarm, for the posterior as a whole.
        joint: Pairs of nominal level and joint coverage, from `run_tarp`; none skips that test.
        note: What to know about the samples.

    Raises:
        ArgumentError: If there are too few simulations or samples, or `false_alarm` is no
            probability.
    """
    num_simulations, num_parameters = ranks.shape
    if num_simulations < _LEAST or num_posterior_samples < _LEAST:
        raise ArgumentError(
            f"expected at least {_LEAST} simulations and {_LEAST} posterior samples of each, which "
            f"say little enough, got {num_simulations} and {num_posterior_samples}."
        )
    if not 0 < false_alarm < 1:
        raise ArgumentError(f"false_alarm: expected a number between 0 and 1, got {false_alarm!r}.")
    level = false_alarm / num_tests(num_parameters, joint=bool(joint))
    parameters = tuple(
        _parameter(name, ranks[:, i], num_posterior_samples, level) for i, name in enumerate(names)
    )
    p_joint = None
    if joint:
        # On a grid of levels the distance is at most that of the whole curve, and p at least as
        # large.
        distance = max(abs(share - nominal) for nominal, share in joint)
        steps = 1 / num_posterior_samples  # in which levels are counted
        p_joint = float(kstwo.sf(max(distance - steps, 0.0), num_simulations))
    return PosteriorCheck(
        verdict=_of_all(parameters, p_joint, level),
        parameters=parameters,
        num_simulations=num_simulations,
        num_posterior_samples=num_posterior_samples,
        false_alarm=false_alarm,
        p_joint=p_joint,
        joint_coverage=tuple(joint),
        ranks=np.asarray(ranks, dtype=np.int64),
        note=note,
    )


def num_tests(num_parameters: int, joint: bool) -> int:
    """Return how many statistics are tested."""
    return 3 * num_parameters + joint


def coverage_of(ranks: NDArray[Any], num_posterior_samples: int, level: float) -> NDArray[Any]:
    """Return the share of true values inside the central credible interval of a level.

    The interval lies between samples, so that its nominal level is k / (L + 1); the two nearest
    levels that the number of samples L allows are interpolated between.

    Args:
        ranks: Shape (num_simulations, num_parameters).
        num_posterior_samples: Samples per simulation.
        level: The level, between 0 and 1.

    Returns:
        Shape (num_parameters,).

    Example:
        >>> coverage_of(np.arange(101)[:, None], 100, 0.9).round(3)
        array([0.9])
    """
    centre = num_posterior_samples / 2
    distance = np.abs(ranks - centre)
    # Half of the interval's size in ranks; those at its ends are inside by a fraction.
    half = level * (num_posterior_samples + 1) / 2
    return np.clip(half - distance + 0.5, 0.0, 1.0).mean(axis=0)


def coverage_band(
    num_simulations: int, level: float, probability: float = 0.95
) -> tuple[float, float]:
    """Return where the coverage of a calibrated posterior lies with some probability.

    Args:
        num_simulations: Simulations that are counted.
        level: Credible level.
        probability: That of the band.

    Example:
        >>> low, high = coverage_band(200, 0.9)
        >>> round(low, 3), round(high, 3)
        (0.855, 0.94)
    """
    low, high = binom.interval(probability, num_simulations, level)
    return float(low) / num_simulations, float(high) / num_simulations


def rank_band(
    num_simulations: int, num_bins: int, probability: float = 0.95
) -> tuple[float, float]:
    """Return how many ranks of a calibrated posterior fall into a bin, with some probability."""
    low, high = binom.interval(probability, num_simulations, 1 / num_bins)
    return float(low), float(high)


def _parameter(name: str, ranks: NDArray[Any], samples: int, level: float) -> ParameterCheck:
    scores = _scores(samples)[ranks.astype(np.int64)]
    count, spread = len(ranks), float(_scores(samples).std())
    bias, deviation = float(scores.mean()), float(scores.std())
    null = _null(count, samples)
    p_bias = _two_sided(null[0], bias)
    p_width = _two_sided(null[1], deviation)
    p_shape = float(kstwo.sf(_distance(ranks, samples), count))
    relative = deviation / spread
    # A posterior that is too narrow has a spread of scores above 1.
    width = 1 / relative if relative > 0 else np.inf
    verdict: Verdict = "fine"
    if min(p_bias, p_width, p_shape) < level:
        verdict = "miscalibrated"
        if min(p_bias, p_width) < level:
            verdict = "overconfident" if relative > 1 else "underconfident"
            if p_bias <= p_width:
                verdict = "biased"
    return ParameterCheck(
        name=name,
        verdict=verdict,
        bias=bias,
        bias_error=deviation / np.sqrt(count),
        width=float(width),
        width_error=float(width) / np.sqrt(2 * count),
        p_bias=p_bias,
        p_width=p_width,
        p_shape=p_shape,
        coverage={
            q: float(coverage_of(ranks[:, None].astype(float), samples, q)[0]) for q in LEVELS
        },
    )


def _of_all(parameters: Sequence[ParameterCheck], p_joint: float | None, level: float) -> Verdict:
    worst = [p for p in parameters if p.verdict != "fine"]
    if worst:
        return min(worst, key=lambda p: min(p.p_bias, p.p_width, p.p_shape)).verdict
    return "miscalibrated" if p_joint is not None and p_joint < level else "fine"


@lru_cache(maxsize=16)
def _scores(samples: int) -> NDArray[Any]:
    """Return the normal score of every rank 0, ..., L, shape (L + 1,)."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((rank + 0.5) / (samples + 1)) for rank in range(samples + 1)])


@lru_cache(maxsize=16)
def _null(count: int, samples: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return sorted means and standard deviations of the scores of uniform ranks."""
    random = np.random.default_rng(20201127)
    means, deviations = np.empty(_NULL_DRAWS), np.empty(_NULL_DRAWS)
    scores = _scores(samples)
    step = max(1, 2_000_000 // count)
    for begin in range(0, _NULL_DRAWS, step):
        end = min(begin + step, _NULL_DRAWS)
        drawn = scores[random.integers(0, samples + 1, (end - begin, count))]
        means[begin:end], deviations[begin:end] = drawn.mean(axis=1), drawn.std(axis=1)
    return np.sort(means), np.sort(deviations)


def _two_sided(null: NDArray[Any], value: float) -> float:
    """Return the two-sided p-value of a statistic by its sorted draws."""
    below = int(np.searchsorted(null, value, side="right"))
    above = len(null) - int(np.searchsorted(null, value, side="left"))
    return min(1.0, 2 * (min(below, above) + 1) / (len(null) + 1))


def _distance(ranks: NDArray[Any], samples: int) -> float:
    """Return the largest distance between the distribution of ranks and the uniform one."""
    counts = np.bincount(ranks.astype(np.int64), minlength=samples + 1)
    empirical = counts.cumsum() / len(ranks)
    return float(np.abs(empirical - np.arange(1, samples + 2) / (samples + 1)).max())


def _said(p: ParameterCheck, level: float) -> str:
    """Say everything that is wrong with a parameter at a level of significance."""
    found = []
    if p.p_bias < level:
        side = "above" if p.bias > 0 else "below"
        found.append(
            f"biased, true values lie {abs(p.bias):.2f} ± {p.bias_error:.2f} standard deviations "
            f"{side} the posterior"
        )
    if p.p_width < level:
        kind = "overconfident" if p.width < 1 else "underconfident"
        found.append(
            f"{kind}, it is {p.width:.2f} ± {p.width_error:.2f} times as wide as it should be"
        )
    return " and ".join(found) or f"its ranks are not uniform (p = {p.p_shape:.2g})"


def _detectable(error: float, false_alarm: float, tests: int) -> float:
    """Return the size that is seen in nine of ten checks."""
    normal = NormalDist()
    return error * (normal.inv_cdf(1 - false_alarm / tests / 2) + normal.inv_cdf(0.9))
