"""The verdict on posteriors that are known: right, too narrow, too wide, shifted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import binom

from sbi_ignite import ArgumentError, PosteriorCheck
from sbi_ignite.diagnostics.calibration import coverage_band, coverage_of, judged
from sbi_ignite.diagnostics.draws import Draws, joint_coverage_of, own_random_state, ranks_of

NAMES = ("mu", "nu", "rho")
NOISE = 0.5


def check(
    seed: int,
    num_simulations: int = 300,
    width: float = 1.0,
    shift: float = 0.0,
    correlation: float = 0.0,
    samples: int = 100,
    false_alarm: float = 0.05,
) -> PosteriorCheck:
    """Judge a Gaussian posterior whose first parameter is off; x = theta + noise, theta ~ N(0, 1).

    Args:
        seed: Seed of simulations and samples.
        num_simulations: Simulations.
        width: Width of the first parameter's posterior relative to the right one.
        shift: By how many of its standard deviations it lies below the right one.
        correlation: Wrong correlation of all parameters.
        samples: Posterior samples per simulation.
        false_alarm: Rate of false alarms that is asked for.
    """
    with own_random_state(seed):
        theta = torch.randn(num_simulations, 3)
        x = theta + NOISE * torch.randn_like(theta)
        deviation = NOISE / (1 + NOISE**2) ** 0.5
        common = torch.randn(samples, num_simulations, 1)
        drawn = torch.randn(samples, num_simulations, 3)
        drawn = (1 - correlation) ** 0.5 * drawn + correlation**0.5 * common
        drawn[..., 0] = width * drawn[..., 0] - shift
        draws = Draws(x / (1 + NOISE**2) + deviation * drawn)
        ranks, joint = ranks_of(theta, x, draws), joint_coverage_of(theta, x, draws)
    return judged(ranks, samples, NAMES, joint=joint, false_alarm=false_alarm)


def alarms(runs: int, **kwargs: float) -> int:
    """Return how many of some checks of a calibrated posterior are not called fine."""
    return sum(check(seed, **kwargs).verdict != "fine" for seed in range(runs))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_simulations", "false_alarm"),
    [(50, 0.05), (300, 0.05), pytest.param(300, 0.2, marks=pytest.mark.slow)],
)
def test_a_calibrated_posterior_is_called_otherwise_no_more_often_than_stated(
    num_simulations: int, false_alarm: float
):
    """Over 200 seeds; more alarms than allowed here would come about once in a thousand times."""
    found = alarms(200, num_simulations=num_simulations, false_alarm=false_alarm)
    assert found <= binom.ppf(0.999, 200, false_alarm)
    if false_alarm == 0.2:
        assert found >= 10  # and the rate is not far below what is stated


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("wrong", "verdict", "width", "bias"),
    [
        ({"width": 0.7}, "overconfident", 0.7, 0.0),
        ({"width": 1.4}, "underconfident", 1.4, 0.0),
        ({"shift": 0.5}, "biased", 1.0, 0.5),
        ({"shift": -0.5}, "biased", 1.0, -0.5),
    ],
)
def test_what_is_wrong_is_named_and_measured(
    seed: int, wrong: dict[str, float], verdict: str, width: float, bias: float
):
    """For the parameter that is off, and for no other; numbers within four standard errors."""
    found = check(seed, **wrong)  # type: ignore[arg-type]
    first, *others = found.parameters
    assert found.verdict == first.verdict == verdict
    assert {p.verdict for p in others} == {"fine"}
    assert first.width == pytest.approx(width, abs=4 * first.width_error)
    assert first.bias == pytest.approx(bias, abs=4 * first.bias_error)


def test_a_narrow_and_shifted_posterior_is_not_called_fine_and_both_are_measured():
    found = check(0, width=0.6, shift=0.4, samples=1_000)
    first = found.parameters[0]
    assert first.verdict in ("biased", "overconfident")
    assert first.width == pytest.approx(0.6, abs=0.1)
    assert first.bias > 0.3
    assert "biased, true values lie" in str(found)
    assert "and overconfident, it is" in str(found)


def test_wrong_correlations_are_seen_by_the_joint_test_alone():
    found = check(0, num_simulations=1_000, correlation=0.9)
    assert {p.verdict for p in found.parameters} == {"fine"}
    assert found.verdict == "miscalibrated"
    assert "joint coverage (TARP)" in str(found)


def test_the_words_say_what_how_much_and_how_sure():
    narrow = str(check(0, width=0.7))
    assert narrow.startswith(
        "Overconfident, judged on 300 simulations: mu: overconfident, it is 0."
    )
    assert "times as wide as it should be" in narrow
    assert "a calibrated posterior fails at most 5% of such checks" in narrow
    shifted = str(check(0, shift=0.5))
    assert "mu: biased, true values lie 0." in shifted
    assert "standard deviations above the posterior" in shifted
    fine = str(check(0))
    assert fine.startswith("Fine: 300 simulations show no miscalibration. A bias of 0.")
    assert fine.splitlines()[2].split()[:2] == ["parameter", "bias"]
    assert [line.split()[0] for line in fine.splitlines()[3:]] == list(NAMES)


def test_what_would_have_been_seen_is_seen_in_nine_of_ten_checks():
    """The size that the words name for a posterior called fine, put to the test."""
    text = check(0).in_words()
    bias = float(text.split("A bias of ")[1].split(" ")[0])
    seen = sum(check(seed, shift=bias).verdict == "biased" for seed in range(100, 160))
    assert seen >= 45


def test_coverage_is_that_of_the_posterior():
    """Of one half as wide as it should be, an interval of 90 % holds 59 % of true values."""
    found = check(3, num_simulations=4_000, width=0.5)
    assert found.parameters[0].coverage[0.9] == pytest.approx(0.589, abs=0.03)
    assert found.parameters[1].coverage[0.9] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("samples", [20, 99, 100, 1_000])
def test_uniform_ranks_have_the_nominal_coverage_at_every_level(samples: int):
    ranks = np.arange(samples + 1)[:, None].astype(float)
    for level in (0.1, 0.5, 0.9, 0.95):
        assert coverage_of(ranks, samples, level)[0] == pytest.approx(level, abs=1e-12)


def test_the_band_of_coverage_is_the_binomial_one():
    low, high = coverage_band(200, 0.9)
    assert binom.cdf(round(200 * low) - 1, 200, 0.9) < 0.025
    assert binom.sf(round(200 * high), 200, 0.9) < 0.025


def test_the_check_is_plain_data_and_a_picture_and_a_table():
    found = check(0, width=0.7)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["verdict"] == "overconfident"
    assert plain["parameters"][0]["name"] == "mu"
    figure = found.plot()
    assert [a.get_xlabel() for a in figure.axes] == [
        "credible level",
        "bias (posterior sd)",
        "width relative to the correct one",
    ]
    figure.canvas.draw()
    assert "<td>overconfident</td>" in found._repr_html_()
    assert repr(found) == "PosteriorCheck('overconfident', num_simulations=300)"


def test_too_little_and_nonsense_are_refused():
    ranks = np.zeros((10, 1), dtype=int)
    with pytest.raises(ArgumentError, match="at least 20 simulations"):
        judged(ranks, 100, ["a"])
    with pytest.raises(ArgumentError, match="at least 20 simulations and 20 posterior samples"):
        judged(np.zeros((50, 1), dtype=int), 5, ["a"])
    with pytest.raises(ArgumentError, match="false_alarm: expected a number between 0 and 1"):
        judged(np.zeros((50, 1), dtype=int), 50, ["a"], false_alarm=2)
