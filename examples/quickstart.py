"""Infer the rates at which lynx and hares live and die from counts of their pelts.

The Hudson's Bay Company counted the pelts that trappers brought in from 1900 to 1920. This script
fits the predator-prey model of Lotka and Volterra to them by neural posterior estimation, and
compares the result with the one that was published by B. Carpenter ("Predator-Prey Population
Dynamics", Stan case study, 2018), who used the same model and priors, and Hamiltonian Monte Carlo.

    python examples/quickstart.py
    python examples/quickstart.py --simulations 2000 --max-epochs 2 --out /tmp/a-quick-look

Simulations are cheap here, and only one record was observed. So the network learns from records
that resemble it, in three rounds: the first looks everywhere that the prior allows, the others only
where the one before found the posterior. Parameters are handled as logarithms.

Two things make the noise levels come out right. Noise is what a smooth curve leaves over, so the
network's summary of a record has the size of its residuals from a curve that it learns to fit. And
the records of the last round are near the observed one: among records that differ a lot, a network
takes some of the noise of this one for yet another curve, and finds too little noise.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib
import torch
from matplotlib.figure import Figure
from sbi.analysis import pairplot
from sbi.neural_nets import posterior_nn
from sbi.utils import MultipleIndependent
from torch import Tensor, nn
from torch.distributions import Distribution, LogNormal, Normal, TransformedDistribution, Uniform
from torch.distributions.transforms import CumulativeDistributionTransform, ExpTransform
from torch.optim.lr_scheduler import CosineAnnealingLR

from sbi_ignite import (
    NPE,
    EarlyStopping,
    LoggingConfig,
    LossArgsNPE,
    PosteriorCheck,
    TrainConfig,
    TrainingSummary,
    check_posterior,
)

DATA = Path(__file__).parent / "data" / "hudson_bay_lynx_hare.csv"
YEARS = range(1900, 1921)
STEPS_PER_YEAR = 5  # of the integrator
SIMULATIONS_AT_ONCE = 100_000
MOST_BATCHES = 40  # of so many simulations
CHECKED = 300  # simulations on which the posterior is checked


class Parameter(NamedTuple):
    """What is inferred: its name, meaning and prior, and the published posterior."""

    name: str
    meaning: str
    prior: Distribution
    published_mean: float
    published_sd: float


PARAMETERS = (
    Parameter("alpha", "births of hares", Normal(1.0, 0.5), 0.549, 0.065),
    Parameter("beta", "hares lost per lynx", Normal(0.05, 0.05), 0.028, 0.004),
    Parameter("gamma", "deaths of lynxes", Normal(1.0, 0.5), 0.797, 0.091),
    Parameter("delta", "lynxes gained per hare", Normal(0.05, 0.05), 0.024, 0.004),
    Parameter("hares", "thousands in 1900", LogNormal(math.log(10), 1.0), 33.960, 2.909),
    Parameter("lynxes", "thousands in 1900", LogNormal(math.log(10), 1.0), 5.949, 0.533),
    Parameter("sigma hares", "noise of log counts", LogNormal(-1.0, 1.0), 0.248, 0.045),
    Parameter("sigma lynxes", "noise of log counts", LogNormal(-1.0, 1.0), 0.252, 0.044),
)


SMALLEST = torch.tensor(1e-4)
"""Rates below it are cut off, since the normal priors reach below zero."""


class Round(NamedTuple):
    """A round of simulations and training.

    Attributes:
        share: Its simulations, as a share of those of the last round.
        factor: Its records are within this factor of the observed one.
    """

    share: float
    factor: float


ROUNDS = (Round(1 / 3, 10), Round(1 / 3, 4), Round(1, 3))


def log_prior() -> MultipleIndependent:
    """Return the prior of the parameters' logarithms."""
    logarithms = []
    for parameter in PARAMETERS:
        prior = parameter.prior.expand((1,))
        quantile = Uniform(prior.cdf(SMALLEST), torch.ones(1), validate_args=False)
        to_logarithm = [CumulativeDistributionTransform(prior).inv, ExpTransform().inv]
        logarithms.append(TransformedDistribution(quantile, to_logarithm, validate_args=False))
    return MultipleIndependent(logarithms)


class Region:
    """The prior inside a box around samples, whose edges follow their correlations.

    What a posterior is inside such a box does not depend on what the prior is outside.

    Args:
        samples: Logarithms of parameters, shape (n, 8).
        prior: The prior.
    """

    def __init__(self, samples: Tensor, prior: MultipleIndependent) -> None:
        self._prior, self._centre = prior, samples.mean(0)
        self._edges = torch.linalg.cholesky(torch.cov(samples.T))
        ends = self._along_edges(samples).quantile(torch.tensor([0.001, 0.999]), dim=0)
        self._low, self._high = ends
        weight = prior.log_prob(self._in_box(20_000))
        self._largest = weight.max()
        inside = self.holds(prior.sample((20_000,))).float().mean()
        self._is_small = inside < (weight - self._largest).exp().mean()

    def sample(self, shape: tuple[int]) -> Tensor:
        """Return draws of the prior inside the box, shape (up to n, 8)."""
        if not self._is_small:
            theta = self._prior.sample(shape)
            return theta[self.holds(theta)]
        theta = self._in_box(shape[0])
        return theta[torch.rand(len(theta)).log() < self._prior.log_prob(theta) - self._largest]

    def holds(self, theta: Tensor) -> Tensor:
        """Return which parameters of shape (n, 8) are inside, shape (n,)."""
        along = self._along_edges(theta)
        return ((along >= self._low) & (along <= self._high)).all(dim=1)

    def _in_box(self, count: int) -> Tensor:
        along = self._low + (self._high - self._low) * torch.rand(count, len(self._low))
        return self._centre + along @ self._edges.T

    def _along_edges(self, theta: Tensor) -> Tensor:
        off = (theta - self._centre).T
        return torch.linalg.solve_triangular(self._edges, off, upper=False).T


def next_year(theta: Tensor, state: Tensor) -> Tensor:
    """Solve du/dt = (alpha - beta v) u, dv/dt = (delta u - gamma) v for hares u and lynxes v.

    Integrating log u and log v keeps both positive. All rows advance together, by Runge-Kutta
    steps of fourth order.

    Args:
        theta: Logarithms of the parameters, shape (n, 8).
        state: Logarithms of u and v, shape (2, n).

    Returns:
        The same a year later.
    """
    alpha, beta, gamma, delta = theta[:, :4].exp().T
    step = 1 / STEPS_PER_YEAR

    def slope(state: Tensor) -> Tensor:
        hares, lynxes = state.exp()
        return torch.stack([alpha - beta * lynxes, delta * hares - gamma])

    for _ in range(STEPS_PER_YEAR):
        a = slope(state)
        b = slope(state + step / 2 * a)
        c = slope(state + step / 2 * b)
        d = slope(state + step * c)
        state = state + step / 6 * (a + 2 * b + 2 * c + d)
    return state


def populations(theta: Tensor) -> Tensor:
    """Return logarithms of hares and lynxes in each year, shape (n, 21, 2).

    Args:
        theta: Logarithms of the parameters, shape (n, 8).
    """
    years = [theta[:, 4:6].T]
    for _ in YEARS[1:]:
        years.append(next_year(theta, years[-1]))
    return torch.stack(years).permute(2, 0, 1)


def counted(theta: Tensor, expected: Tensor) -> Tensor:
    """Return logarithms of pelt counts: those expected, shape (n, ..., 2), and noise."""
    noise = theta[:, 6:8].exp().reshape(-1, *(1,) * (expected.ndim - 2), 2)
    return expected + noise * torch.randn_like(expected)


def simulate(theta: Tensor) -> Tensor:
    """Return logarithms of pelt counts, shape (n, 42), for parameters of shape (n, 8)."""
    return counted(theta, populations(theta)).flatten(1)


def simulate_near(
    observed: Tensor, sample: Callable[[Any], Tensor], num_simulations: int, factor: float
) -> tuple[Tensor, Tensor]:
    """Return parameters and simulations whose counts are all within a factor of the observed ones.

    Which simulations are kept depends on x alone, so p(theta | x) is the same with and without the
    others, for every x that is near. A simulation ends in the first year that is not near. Where so
    few are near that it would take long, the factor is widened.

    Args:
        observed: Logarithms of the observed counts, shape (42,).
        sample: Draws parameters.
        num_simulations: How many to return.
        factor: The factor.

    Returns:
        Parameters of shape (num_simulations, 8) and simulations of shape (num_simulations, 42).
    """
    kept_theta, kept_x, found = [], [], 0
    while found < num_simulations:
        theta = sample((SIMULATIONS_AT_ONCE,))
        state, x = theta[:, 4:6].T, torch.empty(len(theta), 0)
        for year, near_to in enumerate(observed.reshape(-1, 2)):
            if year:
                state = next_year(theta, state)
            now = counted(theta, state.T)
            near = ((now - near_to).abs() < math.log(factor)).all(dim=1)
            theta, state = theta[near], state[:, near]
            x = torch.cat([x[near], now[near]], dim=1)
        if len(theta) < num_simulations / MOST_BATCHES:
            kept_theta, kept_x, found, factor = [], [], 0, 1.3 * factor
            continue
        kept_theta.append(theta)
        kept_x.append(x)
        found += len(theta)
    return torch.cat(kept_theta)[:num_simulations], torch.cat(kept_x)[:num_simulations]


class Summary(nn.Module):
    """Summarizes a record: a code of the curve that fits it, and the size of what is left over.

    Args:
        num_codes: Numbers that describe the curve.
        hidden_features: Units of the hidden layers.
    """

    def __init__(self, num_codes: int = 16, hidden_features: int = 128) -> None:
        super().__init__()
        size = 2 * len(YEARS)
        self.encoder = nn.Sequential(
            nn.Linear(size, hidden_features),
            nn.ELU(),
            nn.Linear(hidden_features, hidden_features),
            nn.ELU(),
            nn.Linear(hidden_features, num_codes),
        )
        self.curve = nn.Sequential(
            nn.Linear(num_codes, hidden_features), nn.ELU(), nn.Linear(hidden_features, size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return summaries of shape (..., num_codes + 2) of records of shape (..., 42)."""
        code = self.encoder(x)
        left_over = (x - self.curve(code)).unflatten(-1, (len(YEARS), 2))
        return torch.cat([code, (left_over.square().mean(-2) + 1e-4).log()], dim=-1)


def train(theta: Tensor, x: Tensor, epochs: int) -> tuple[NPE, Any]:
    """Return a trainer, and its network, which has learned the posterior of these simulations."""
    build = posterior_nn("zuko_maf", hidden_features=256, num_transforms=2, embedding_net=Summary())
    inference = NPE(density_estimator=build, show_progress_bars=False)
    network = inference.append_simulations(theta, x).train(
        TrainConfig(
            batch_size=500,
            learning_rate=2e-3,
            max_epochs=epochs,
            lr_schedule=lambda optimizer: CosineAnnealingLR(optimizer, epochs),
        ),
        LossArgsNPE(exclude_invalid_x=True),
        early_stopping=EarlyStopping.validation_loss(patience=5),
        logging=LoggingConfig(backend="stdout"),
    )
    return inference, network


def one_round(
    observed: Tensor,
    sample: Callable[[Any], Tensor],
    num_simulations: int,
    factor: float,
    epochs: int,
) -> tuple[NPE, Tensor]:
    """Simulate near the observed record, train, and return the trainer and posterior samples.

    Args:
        observed: Logarithms of the observed counts, shape (42,).
        sample: Draws parameters.
        num_simulations: Simulations.
        factor: Their records are within this factor of the observed one.
        epochs: Epochs.
    """
    print(f"\nRecords within a factor of {factor:g} of the observed one", flush=True)
    started = time.perf_counter()
    theta, x = simulate_near(observed, sample, num_simulations, factor)
    print(f"{len(x):,} simulations in {time.perf_counter() - started:.1f} s", flush=True)
    inference, network = train(theta, x, epochs)
    return inference, network.sample((6_000,), condition=observed[None])[:, 0].detach()


def infer(
    observed: Tensor, num_simulations: int, epochs: int
) -> tuple[Tensor, TrainingSummary, PosteriorCheck]:
    """Simulate and train in rounds.

    Args:
        observed: Logarithms of the observed counts, shape (42,).
        num_simulations: Those of the last round.
        epochs: Epochs of each round.

    Returns:
        Up to 5,000 samples of the posterior, what the last training did, and a check of its network
        on simulations that it has not seen.
    """
    prior = log_prior()
    first, *later = ROUNDS
    sample: Callable[[Any], Tensor] = prior.sample
    few = round(first.share * num_simulations)
    inference, samples = one_round(observed, sample, few, first.factor, epochs)
    for share, factor in later:
        region = Region(samples, prior)
        sample, number = region.sample, round(share * num_simulations)
        inference, samples = one_round(observed, sample, number, factor, epochs)
        samples = samples[region.holds(samples)]
    theta, x = simulate_near(observed, sample, CHECKED, ROUNDS[-1].factor)
    names = [parameter.name for parameter in PARAMETERS]
    check = check_posterior(inference, theta, x, num_posterior_samples=100, parameter_names=names)
    summary = inference.training_summary
    assert summary is not None  # train() has set it; said for type checkers
    return samples[:5_000], summary, check


def read_pelts(path: Path) -> Tensor:
    """Return the counts of hares and lynxes in thousands, shape (21, 2)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return torch.tensor([[float(row["hare"]), float(row["lynx"])] for row in rows])


def comparison(samples: Tensor) -> str:
    """Return a table of our posterior beside the published one.

    Args:
        samples: Parameters, not their logarithms, shape (n, 8).
    """
    header = f"{'':14}{'':24}{'this run':>16}{'published':>18}{'difference':>14}"
    lines = [header, "-" * len(header)]
    for parameter, mean, sd in zip(PARAMETERS, samples.mean(0), samples.std(0), strict=True):
        name, meaning, _, published_mean, published_sd = parameter
        ours, theirs = f"{mean:.3f} ± {sd:.3g}", f"{published_mean:.3f} ± {published_sd:.3f}"
        difference = f"{(mean - published_mean) / published_sd:+.1f} sd"
        lines.append(f"{name:14}{meaning:24}{ours:>16}{theirs:>18}{difference:>14}")
    return "\n".join(lines)


def plot_posterior(samples: Tensor) -> Figure:
    """Return the marginals of one and of two parameters, with the published means."""
    figure, _ = pairplot(
        samples,
        points=torch.tensor([parameter.published_mean for parameter in PARAMETERS]),
        limits=samples.quantile(torch.tensor([0.002, 0.998]), dim=0).T,
        labels=[parameter.name.replace(" ", "\n") for parameter in PARAMETERS],
        diag="kde",
        upper="contour",
        upper_kwargs={"levels": [0.5, 0.9]},
        figsize=(12, 12),
        fig_kwargs={
            "title": "Posterior, regions of 50% and 90% (blue), and published means (orange)",
            "fig_subplots_adjust": {"top": 0.94, "bottom": 0.06, "left": 0.04, "right": 0.98},
        },
    )
    return cast(Figure, figure)  # pairplot's annotation leaves open whether it is a subfigure


def plot_predictions(pelts: Tensor, samples: Tensor) -> Figure:
    """Return the counted pelts over what the posterior predicts for a new record."""
    predicted = simulate(samples.log()).exp().reshape(-1, len(YEARS), 2)
    figure = Figure(figsize=(8, 6), layout="constrained")
    panels = zip(figure.subplots(2, sharex=True), ("hares", "lynxes"), strict=True)
    for i, (axes, species) in enumerate(panels):
        q05, q25, q50, q75, q95 = predicted[..., i].quantile(
            torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]), dim=0
        )
        axes.fill_between(YEARS, q05, q95, color=f"C{i}", alpha=0.2, lw=0, label="90% of records")
        axes.fill_between(YEARS, q25, q75, color=f"C{i}", alpha=0.4, lw=0, label="50%")
        axes.plot(YEARS, q50, color=f"C{i}", label="median")
        axes.plot(YEARS, pelts[:, i], "o", color="black", markersize=4, label="counted")
        axes.set(ylabel="pelts (thousands)", ylim=(0, None), xticks=YEARS[::5])
        axes.set_title(species, loc="left", fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def main() -> None:
    """Infer the rates, print them beside the published ones and save four pictures."""
    options = argparse.ArgumentParser(description="Infer how hares and lynxes live and die.")
    options.add_argument("--out", type=Path, default=Path("quickstart_output"))
    options.add_argument(
        "--simulations", type=int, default=60_000, help="of the last round, 2,000 at least"
    )
    options.add_argument("--max-epochs", type=int, default=12)
    options.add_argument("--seed", type=int, default=0)
    budget = options.parse_args()
    started = time.perf_counter()
    matplotlib.use("Agg")
    torch.set_num_threads(1)  # more would wait for each other, dearly where others compute too
    torch.manual_seed(budget.seed)
    pelts = read_pelts(DATA)
    observed = pelts.log().flatten()
    samples, summary, check = infer(observed, budget.simulations, budget.max_epochs)
    samples = samples.exp()
    print(f"\n{summary}\n\n{comparison(samples)}\n\nCheck of this posterior: {check.in_words()}\n")
    budget.out.mkdir(parents=True, exist_ok=True)
    pictures = {
        "loss.png": summary.plot(),
        "check.png": check.plot(),
        "posterior.png": plot_posterior(samples),
        "predictions.png": plot_predictions(pelts, samples),
    }
    for name, figure in pictures.items():
        figure.savefig(budget.out / name, dpi=150)
        print(f"saved {budget.out / name}")
    print(f"done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
