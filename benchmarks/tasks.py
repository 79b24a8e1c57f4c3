"""Benchmark tasks: their priors, simulators and, where known, posteriors.

`JUDGED` are the tasks on which recipes are compared, as the field defines them: Lueckmann et al.,
"Benchmarking simulation-based inference", AISTATS 2021 (the package sbibm); where a definition
differs from theirs, the simulator's docstring says how and why. `TUNING` are other simulators of
similar kinds, on which the numbers of `TrainConfig.fast()` were chosen, with seeds from
`FIRST_TUNING_SEED` on. No task is in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import (
    Binomial,
    Distribution,
    Independent,
    LogNormal,
    MultivariateNormal,
    StudentT,
    Uniform,
)

FIRST_TUNING_SEED = 100
"""Seeds below judge, seeds from here on tune."""


@dataclass(frozen=True)
class Task:
    """A prior and a simulator.

    Attributes:
        name: What the task is called in tables.
        prior: Distribution of theta, event shape (parameters,).
        simulator: theta of shape (n, parameters) to x of shape (n, data), from torch's global
            random state.
        posterior: (x of shape (data,), n) to n samples of the true posterior; None: not known.

    Example:
        >>> theta, x = JUDGED["two_moons"].pairs(100, seed=0)
        >>> theta.shape, x.shape
        (torch.Size([100, 2]), torch.Size([100, 2]))
    """

    name: str
    prior: Distribution
    simulator: Callable[[Tensor], Tensor]
    posterior: Callable[[Tensor, int], Tensor] | None = None

    def pairs(self, number: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return `number` draws of theta and x, the same ones for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            theta = self.prior.sample((number,))
            return theta, self.simulator(theta)

    def reference_samples(self, x: Tensor, number: int, seed: int) -> Tensor:
        """Return `number` samples of the true posterior given one x, shape (number, parameters).

        Raises:
            ValueError: If the task's posterior is not known.
        """
        if self.posterior is None:
            raise ValueError(f"the posterior of {self.name!r} is not known in closed form")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.posterior(x, number)


def uniform(low: Sequence[float], high: Sequence[float]) -> Distribution:
    """Return a uniform distribution on a box."""
    return Independent(Uniform(torch.tensor(low).float(), torch.tensor(high).float()), 1)


def log_normal(location: Sequence[float], scale: Sequence[float]) -> Distribution:
    """Return independent log-normal distributions."""
    return Independent(LogNormal(torch.tensor(location).float(), torch.tensor(scale).float()), 1)


def standard_normal(size: int, variance: float = 1.0) -> Distribution:
    """Return independent normal distributions around zero."""
    return MultivariateNormal(torch.zeros(size), variance * torch.eye(size))


def _accepted(propose: Callable[[int], tuple[Tensor, Tensor]], number: int) -> Tensor:
    """Return the first `number` accepted proposals; `propose` gives samples and a mask."""
    found: list[Tensor] = []
    while sum(map(len, found)) < number:
        samples, accepted = propose(2 * number)
        found.append(samples[accepted])
    return torch.cat(found)[:number]


# The judged tasks.


def two_moons(theta: Tensor) -> Tensor:
    """Return x of shape (n, 2): a point on a noisy half circle, moved by theta (sbibm T.8)."""
    return _half_circle(len(theta)) + _moved(theta)


def _half_circle(number: int) -> Tensor:
    angle = math.pi * (torch.rand(number) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(number)
    return torch.stack((radius * angle.cos() + 0.25, radius * angle.sin()), dim=1)


def _moved(theta: Tensor) -> Tensor:
    first, second = theta.T
    return torch.stack((-(first + second).abs(), second - first), dim=1) / math.sqrt(2)


def two_moons_posterior(x: Tensor, number: int) -> Tensor:
    """Return exact samples: half circles that theta explains, with either sign of its sum."""

    def propose(tries: int) -> tuple[Tensor, Tensor]:
        points = _half_circle(tries)
        total = points[:, 0] - x[0]
        sign = torch.randint(2, (tries,)) * 2 - 1
        difference = x[1] - points[:, 1]
        theta = torch.stack((sign * total - difference, sign * total + difference), dim=1)
        theta = theta / math.sqrt(2)
        return theta, (total >= 0) & (theta.abs() <= 1).all(dim=1)

    return _accepted(propose, number)


def slcp(theta: Tensor) -> Tensor:
    """Return x of shape (n, 8): four draws of a normal whose moments theta gives (sbibm T.3)."""
    mean, (s1, s2) = theta[:, :2], theta[:, 2:4].T.square()
    correlation = theta[:, 4].tanh()
    noise = torch.randn(len(theta), 4, 2)
    first = s1[:, None] * noise[..., 0]
    rest = (1 - correlation.square()).sqrt()[:, None] * noise[..., 1]
    second = s2[:, None] * (correlation[:, None] * noise[..., 0] + rest)
    return (mean[:, None, :] + torch.stack((first, second), dim=-1)).flatten(1)


def gaussian_linear(theta: Tensor) -> Tensor:
    """Return x of shape (n, 10): theta and noise of the prior's variance, 0.1 (sbibm T.1)."""
    return theta + math.sqrt(0.1) * torch.randn_like(theta)


def gaussian_linear_posterior(x: Tensor, number: int) -> Tensor:
    """Return exact samples: prior and noise have equal variances, so theta is half of x."""
    return x / 2 + math.sqrt(0.05) * torch.randn(number, len(x))


def gaussian_mixture(theta: Tensor) -> Tensor:
    """Return x of shape (n, 2): theta and noise of deviation 1 or 0.1, half each (sbibm T.7)."""
    return theta + _mixed_noise(len(theta))


def _mixed_noise(number: int) -> Tensor:
    narrow = torch.rand(number, 1) < 0.5
    return torch.where(narrow, 0.1, 1.0) * torch.randn(number, 2)


def gaussian_mixture_posterior(x: Tensor, number: int) -> Tensor:
    """Return exact samples: noise subtracted from x, within the prior."""

    def propose(tries: int) -> tuple[Tensor, Tensor]:
        theta = x - _mixed_noise(tries)
        return theta, (theta.abs() <= 10).all(dim=1)

    return _accepted(propose, number)


def lotka_volterra(theta: Tensor) -> Tensor:
    """Return x of shape (n, 20): noisy prey, then predators, at ten times (sbibm T.10).

    Rates theta = (growth, predation, death, conversion), 30 prey and 1 predator at the start, seen
    at t = 0, 2.1, ..., 18.9 with log-normal noise of 0.1. Integrated in the logarithm, where the
    populations cannot become negative, by the classical Runge-Kutta method.
    """
    growth, predation, death, conversion = theta.T

    def slope(logs: Tensor) -> Tensor:
        prey, predators = logs.clamp(max=25).exp()
        return torch.stack((growth - predation * predators, conversion * prey - death))

    logs = torch.tensor([30.0, 1.0]).log()[:, None].expand(2, len(theta))
    seen = [logs, *_runge_kutta(slope, logs, step=0.0125, steps_between=168, observations=9)]
    populations = torch.stack(seen, dim=-1).clamp(math.log(1e-10), math.log(1e4))
    return (populations + 0.1 * torch.randn_like(populations)).exp().transpose(0, 1).flatten(1)


def sir(theta: Tensor) -> Tensor:
    """Return x of shape (n, 10): summary statistics of an epidemic (after sbibm T.9).

    Rates theta = (infection, recovery) and one infected in a million at the start. As in sbibm,
    1,000 people are tested on a day, of whom Binomial(1000, I / N) are infected. Theirs are ten
    days, of which the first tells nothing; here it is every day of 160, and the statistics are
    log(1 + cases + u) of ten windows of 16 days, with u uniform on (0, 1): counts so made
    continuous have a density, without which the loss of likelihood estimation means nothing.
    """
    infection, recovery = theta.T

    def slope(shares: Tensor) -> Tensor:
        susceptible, infected = shares
        new = infection * susceptible * infected
        return torch.stack((-new, new - recovery * infected))

    start = torch.tensor([1 - 1e-6, 1e-6])[:, None].expand(2, len(theta))
    seen = _runge_kutta(slope, start, step=0.25, steps_between=4, observations=160)
    infected = torch.stack([shares[1] for shares in seen], dim=1).clamp(0, 1)
    cases = Binomial(1000, infected).sample().unflatten(1, (10, 16)).sum(dim=2)
    return (1 + cases + torch.rand_like(cases)).log()


def _runge_kutta(
    slope: Callable[[Tensor], Tensor],
    state: Tensor,
    step: float,
    steps_between: int,
    observations: int,
) -> list[Tensor]:
    """Return the states at equally spaced times of an autonomous differential equation."""
    seen = []
    for _ in range(observations):
        for _ in range(steps_between):
            k1 = slope(state)
            k2 = slope(state + step / 2 * k1)
            k3 = slope(state + step / 2 * k2)
            k4 = slope(state + step * k3)
            state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        seen.append(state)
    return seen


# The tasks for tuning.


def ring(theta: Tensor) -> Tensor:
    """Return x of shape (n, 2): theta's distance from zero, sharp, and a side of it, blurred."""
    side = theta @ torch.tensor([0.6, 0.8])
    clean = torch.stack((theta.norm(dim=1), 0.5 * side), dim=1)
    return clean + torch.tensor([0.02, 0.3]) * torch.randn_like(clean)


def three_clusters(theta: Tensor) -> Tensor:
    """Return x of shape (n, 2): theta turned by 0, 120 or 240 degrees, with noise."""
    angle = 2 * math.pi / 3 * torch.randint(3, (len(theta),))
    first, second = theta.T
    turned = (
        first * angle.cos() - second * angle.sin(),
        first * angle.sin() + second * angle.cos(),
    )
    return torch.stack(turned, dim=1) + 0.3 * torch.randn_like(theta)


def oscillator(theta: Tensor) -> Tensor:
    """Return x of shape (n, 15): a damped oscillation of four parameters, seen with noise."""
    frequency, damping, amplitude, offset = theta[:, :, None].unbind(dim=1)
    times = torch.linspace(0.5, 12, 15)
    clean = amplitude * (-damping * times).exp() * (frequency * times).cos() + offset.log()
    return clean + 0.05 * torch.randn_like(clean)


def correlated_linear(theta: Tensor) -> Tensor:
    """Return x of shape (n, 8): sums of neighbouring parameters with correlated noise."""
    mixing = torch.eye(8) + 0.7 * torch.eye(8).roll(1, dims=0)
    noise = 0.5 * torch.randn(len(theta), 8) + 0.3 * torch.randn(len(theta), 1)
    return theta @ mixing + noise


def faint(theta: Tensor) -> Tensor:
    """Return x of shape (n, 6): theta under noise that is half as strong again."""
    return theta + 1.5 * torch.randn_like(theta)


def heavy_tails(theta: Tensor) -> Tensor:
    """Return x of shape (n, 3): theta under noise of Student's t with two degrees of freedom."""
    return theta + 0.3 * StudentT(2.0).sample(theta.shape)


def queue(theta: Tensor) -> Tensor:
    """Return x of shape (n, 5): log quantiles of 50 departure intervals of an M/G/1 queue.

    theta = (shortest service, width of its uniform distribution, arrival rate).
    """
    shortest, width, rate = theta.T
    arrival = departure = torch.zeros(len(theta))
    intervals = []
    for _ in range(50):
        arrival = arrival + torch.empty(len(theta)).exponential_() / rate.clamp(min=1e-3)
        service = shortest + width * torch.rand(len(theta))
        leaves = torch.maximum(arrival, departure) + service
        intervals.append(leaves - departure)
        departure = leaves
    quantiles = torch.stack(intervals, dim=1).quantile(torch.linspace(0, 1, 5), dim=1).T
    return quantiles.clamp(min=1e-3).log()


def bernoulli_glm(theta: Tensor) -> Tensor:
    """Return x of shape (n, 6): the sufficient statistics of 100 logistic responses."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2021)
        stimulus = torch.randn(100, 6)
    responses = torch.bernoulli((theta @ stimulus.T).sigmoid())
    return responses @ stimulus / 10


def location_scale(theta: Tensor) -> Tensor:
    """Return x of shape (n, 9): three draws of a 3-D normal; one scale grows with a parameter."""
    mean = torch.stack((theta[:, 0], theta[:, 1], theta[:, 0] * theta[:, 1]), dim=1)
    scale = torch.stack((theta[:, 2].square(), theta[:, 3].exp(), theta[:, 2].abs()), dim=1)
    noise = torch.randn(len(theta), 3, 3)
    return (mean[:, None] + (0.05 + scale[:, None]) * noise).flatten(1)


def contaminated(theta: Tensor) -> Tensor:
    """Return x of shape (n, 3): theta with noise of 0.1, in three of ten rows of 1.5."""
    wide = torch.rand(len(theta), 1) < 0.3
    return theta + torch.where(wide, 1.5, 0.1) * torch.randn_like(theta)


def outliers(theta: Tensor) -> Tensor:
    """Return x of shape (n, 2): sum and difference, each an outlier one time in five."""
    first, second = theta.T
    clean = torch.stack((first + second, first - second), dim=1)
    wide = torch.rand(len(theta), 2) < 0.2
    return clean + torch.where(wide, 2.0, 0.15) * torch.randn_like(clean)


def two_instruments(theta: Tensor) -> Tensor:
    """Return x of shape (n, 2): theta turned by 30 degrees, noise of 0.15 or 1.2."""
    cos, sin = math.cos(math.pi / 6), math.sin(math.pi / 6)
    first, second = theta.T
    fine = torch.rand(len(theta), 1) < 0.4
    turned = torch.stack((cos * first - sin * second, sin * first + cos * second), dim=1)
    return turned + torch.where(fine, 0.15, 1.2) * torch.randn_like(theta)


JUDGED = {
    task.name: task
    for task in (
        Task("two_moons", uniform([-1] * 2, [1] * 2), two_moons, two_moons_posterior),
        Task("slcp", uniform([-3] * 5, [3] * 5), slcp),
        Task(
            "gaussian_linear",
            standard_normal(10, 0.1),
            gaussian_linear,
            gaussian_linear_posterior,
        ),
        Task(
            "gaussian_mixture",
            uniform([-10] * 2, [10] * 2),
            gaussian_mixture,
            gaussian_mixture_posterior,
        ),
        Task(
            "lotka_volterra",
            log_normal([-0.125, -3, -0.125, -3], [0.5] * 4),
            lotka_volterra,
        ),
        Task("sir", log_normal([math.log(0.4), math.log(0.125)], [0.5, 0.2]), sir),
    )
}
"""Tasks on which recipes are judged, with seeds below `FIRST_TUNING_SEED`."""

TUNING = {
    task.name: task
    for task in (
        Task("ring", uniform([-2] * 2, [2] * 2), ring),
        Task("three_clusters", uniform([-5] * 2, [5] * 2), three_clusters),
        Task(
            "oscillator",
            log_normal([0.4, -1.5, 0.0, 0.0], [0.3, 0.5, 0.4, 0.5]),
            oscillator,
        ),
        Task("correlated_linear", standard_normal(8), correlated_linear),
        Task("faint", standard_normal(6), faint),
        Task("heavy_tails", uniform([-5] * 3, [5] * 3), heavy_tails),
        Task("queue", uniform([0, 0, 0], [10, 10, 1 / 3]), queue),
        Task("bernoulli_glm", standard_normal(6), bernoulli_glm),
        Task("location_scale", uniform([-2] * 4, [2] * 4), location_scale),
        Task("contaminated", uniform([-6] * 3, [6] * 3), contaminated),
        Task("outliers", uniform([-8] * 2, [8] * 2), outliers),
        Task("two_instruments", uniform([-12] * 2, [12] * 2), two_instruments),
    )
}
"""Tasks on which recipes may be chosen, with seeds from `FIRST_TUNING_SEED` on."""
