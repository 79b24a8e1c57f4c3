"""Simulators whose moments and posteriors are known come out as known."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.tasks import JUDGED, TUNING, lotka_volterra, sir

ALL = {**JUDGED, **TUNING}
SIZES = {
    "two_moons": (2, 2),
    "slcp": (5, 8),
    "gaussian_linear": (10, 10),
    "gaussian_mixture": (2, 2),
    "lotka_volterra": (4, 20),
    "sir": (2, 10),
}


@pytest.mark.parametrize("name", ALL)
def test_pairs_are_finite_and_the_same_for_the_same_seed_alone(name):
    theta, x = ALL[name].pairs(50, seed=100)
    assert len(theta) == len(x) == 50
    assert (theta.shape[1], x.shape[1]) == SIZES.get(name, (theta.shape[1], x.shape[1]))
    assert theta.isfinite().all()
    assert x.isfinite().all()
    torch.rand(1)
    again, other = ALL[name].pairs(50, seed=100), ALL[name].pairs(50, seed=101)
    assert torch.equal(x, again[1])
    assert not torch.equal(x, other[1])


def test_simulating_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    JUDGED["slcp"].pairs(5, seed=0)
    TUNING["bernoulli_glm"].pairs(5, seed=100)
    assert torch.equal(before, torch.get_rng_state())


def test_no_task_both_tunes_and_judges():
    assert not JUDGED.keys() & TUNING.keys()


def repeated(theta, number=40_000):
    return torch.tensor([theta]).expand(number, -1)


def test_slcp_has_the_moments_that_theta_gives():
    torch.manual_seed(0)
    x = JUDGED["slcp"].simulator(repeated([0.5, -1.0, 1.2, -0.8, 0.7])).unflatten(1, (4, 2))
    s1, s2, correlation = 1.2**2, 0.8**2, math.tanh(0.7)
    expected = torch.tensor([[s1**2, correlation * s1 * s2], [correlation * s1 * s2, s2**2]])
    assert torch.allclose(x.flatten(0, 1).mean(0), torch.tensor([0.5, -1.0]), atol=0.02)
    assert torch.allclose(x[:, 2].T.cov(), expected, atol=0.05)
    assert torch.stack((x[:, 0, 0], x[:, 1, 0])).corrcoef()[0, 1].abs() < 0.03


def test_two_moons_data_lie_around_half_a_circle():
    torch.manual_seed(0)
    x = JUDGED["two_moons"].simulator(repeated([0.3, 0.1]))
    center = torch.tensor([0.25 - 0.4 / math.sqrt(2), -0.2 / math.sqrt(2)])
    radius = (x - center).norm(dim=1)
    assert radius.mean() == pytest.approx(0.1, abs=1e-3)
    assert radius.std() == pytest.approx(0.01, abs=1e-3)
    assert (x[:, 0] > center[0]).float().mean() > 0.99


def test_lotka_volterra_keeps_its_invariant():
    """Without noise, d x - c ln x + b y - a ln y stays what it was at the start."""
    theta = repeated([0.8, 0.04, 0.9, 0.06], number=2_000)
    torch.manual_seed(0)
    prey, predators = lotka_volterra(theta).log().mean(0).exp().unflatten(0, (2, 10))
    a, b, c, d = theta[0]
    invariant = d * prey - c * prey.log() + b * predators - a * predators.log()
    assert prey[0] == pytest.approx(30, rel=0.02)
    assert predators[0] == pytest.approx(1, rel=0.02)
    assert torch.allclose(invariant, invariant[0], rtol=0.03)


def test_an_epidemic_peaks_where_it_should():
    """At the peak, the susceptible share is recovery / infection (Kermack and McKendrick 1927)."""
    torch.manual_seed(0)
    infection, recovery = 0.4, 0.125
    means = (sir(repeated([infection, recovery], number=500)).exp() - 1.5).mean(0) / 16_000
    inverse = recovery / infection
    highest_share = 1 - inverse + inverse * math.log(inverse)
    assert 0.8 * highest_share < means.max() < highest_share
    assert means[0] < 1e-3
    assert means[-1] < 0.01


def test_the_linear_posterior_is_the_conjugate_one():
    x = torch.linspace(-1, 1, 10)
    samples = JUDGED["gaussian_linear"].reference_samples(x, 50_000, seed=0)
    precision = 1 / 0.1 + 1 / 0.1
    assert torch.allclose(samples.mean(0), (x / 0.1) / precision, atol=0.005)
    assert torch.allclose(samples.T.cov(), torch.eye(10) / precision, atol=0.002)


@pytest.mark.parametrize("name", ["two_moons", "gaussian_mixture"])
def test_posterior_samples_are_those_whose_simulations_come_near(name):
    """Rejection with a small tolerance is what a posterior means; borders of the prior count."""
    task = JUDGED[name]
    size, tolerance = (1, 0.02) if name == "two_moons" else (10, 0.1)
    observed = torch.tensor([-0.1, 0.3]) if name == "two_moons" else torch.tensor([9.8, -3.0])
    theta, x = task.pairs(2_000_000, seed=0)
    near = theta[(x - observed).norm(dim=1) < tolerance]
    samples = task.reference_samples(observed, 20_000, seed=0)
    assert len(near) > 100
    assert (samples.abs() <= size).all()
    scale = samples.std(0)
    deviation = 4 / math.sqrt(len(near))
    assert ((near.mean(0) - samples.mean(0)).abs() < deviation * scale + tolerance).all()
    assert ((near.std(0) / scale).log().abs() < 2 * deviation).all()


def test_an_unknown_posterior_is_said():
    with pytest.raises(ValueError, match="slcp"):
        JUDGED["slcp"].reference_samples(torch.zeros(8), 1, seed=0)
