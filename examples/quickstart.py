"""Infer the rates at which lynx and hares live and die from counts of their pelts.

The Hudson's Bay Company counted the pelts that trappers brought in from 1900 to 1920. This script
fits the predator-prey model of Lotka and Volterra to them by neural posterior estimation, and
compares the result with the one that was published by B. Carpenter ("Predator-Prey Population
Dynamics", Stan case study, 2018), who used the same model and priors, and Hamiltonian Monte Carlo.

    python examples/quickstart.py
    python examples/quickstart.py --simulations 2000 --max-epochs 2 --out /tmp/a-quick-look

Simulations are cheap here, and only one record was observed. So the network learns from records
that resemble it, in two rounds: the first looks everywhere that the prior allows, the second only
where the first found the posterior. Parameters are handled as logarithms.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path
from typing import NamedTuple, cast

import matplotlib
import torch
from matplotlib.figure import Figure
from sbi.analysis import pairplot
from sbi.neural_nets import posterior_nn
from sbi.utils import MultipleIndependent
from torch import Tensor
from torch.distributions import Distribution, LogNormal, Normal, TransformedDistribution, Uniform
from torch.distributions.transforms import CumulativeDistributionTransform, ExpTransform
from torch.optim.lr_scheduler import CosineAnnealingLR

from sbi_ignite import NPE, EarlyStopping, LoggingConfig, LossArgsNPE, TrainConfig, TrainingSummary

DATA = Path(__file__).parent / "data" / "hudson_bay_lynx_hare.csv"
YEARS = range(1900, 1921)
STEPS_PER_YEAR = 10  # of the integrator
SIMULATIONS_AT_ONCE = 100_000


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


def log_prior(low: Tensor, high: Tensor) -> MultipleIndependent:
    """Return the prior of the parameters' logarithms, cut off below `low` and above `high`.

    Args:
        low: Smallest value of each parameter, shape (8,), positive.
        high: Largest value of each parameter, shape (8,).
    """
    logarithms = []
    for parameter, lowest, highest in zip(PARAMETERS, low, high, strict=True):
        prior = parameter.prior.expand((1,))
        quantile = Uniform(prior.cdf(lowest), prior.cdf(highest), validate_args=False)
        to_logarithm = [CumulativeDistributionTransform(prior).inv, ExpTransform().inv]
        logarithms.append(TransformedDistribution(quantile, to_logarithm, validate_args=False))
    return MultipleIndependent(logarithms)


def populations(theta: Tensor) -> Tensor:
    """Solve du/dt = (alpha - beta v) u, dv/dt = (delta u - gamma) v for hares u and lynxes v.

    Integrating log u and log v keeps both positive. All rows advance together, by Runge-Kutta
    steps of fourth order.

    Args:
        theta: Logarithms of the parameters, shape (n, 8).

    Returns:
        Logarithms of u and v in each year, shape (n, 21, 2).
    """
    alpha, beta, gamma, delta = theta[:, :4].exp().T

    def slope(state: Tensor) -> Tensor:
        hares, lynxes = state.exp()
        return torch.stack([alpha - beta * lynxes, delta * hares - gamma])

    state, step, years = theta[:, 4:6].T, 1 / STEPS_PER_YEAR, []
    for _ in YEARS:
        years.append(state)
        for _ in range(STEPS_PER_YEAR):
            a = slope(state)
            b = slope(state + step / 2 * a)
            c = slope(state + step / 2 * b)
            d = slope(state + step * c)
            state = state + step / 6 * (a + 2 * b + 2 * c + d)
    return torch.stack(years).permute(2, 0, 1)


def simulate(theta: Tensor) -> Tensor:
    """Return logarithms of pelt counts, shape (n, 42), for parameters of shape (n, 8)."""
    noise = theta[:, None, 6:8].exp()
    expected = populations(theta)
    return (expected + noise * torch.randn_like(expected)).flatten(1)


def simulate_near(
    observed: Tensor, prior: MultipleIndependent, num_simulations: int, factor: float
) -> tuple[Tensor, Tensor]:
    """Return parameters and simulations whose counts are all within a factor of the observed ones.

    Which simulations are kept depends on x alone, so p(theta | x) is the same with and without the
    others, for every x that is near.

    Returns:
        Parameters of shape (num_simulations, 8) and simulations of shape (num_simulations, 42).
    """
    kept_theta, kept_x, found = [], [], 0
    while found < num_simulations:
        theta = prior.sample((SIMULATIONS_AT_ONCE,))
        x = simulate(theta)
        near = ((x - observed).abs() < math.log(factor)).all(dim=1)
        kept_theta.append(theta[near])
        kept_x.append(x[near])
        found += int(near.sum())
    return torch.cat(kept_theta)[:num_simulations], torch.cat(kept_x)[:num_simulations]


def infer(
    observed: Tensor, prior: MultipleIndependent, num_simulations: int, factor: float, epochs: int
) -> tuple[Tensor, TrainingSummary]:
    """Simulate, train, and return 5,000 samples of the posterior and what the training did."""
    started = time.perf_counter()
    theta, x = simulate_near(observed, prior, num_simulations, factor)
    print(f"{len(x):,} simulations in {time.perf_counter() - started:.1f} s", flush=True)

    network = posterior_nn("zuko_maf", hidden_features=256, num_transforms=3)
    inference = NPE(prior, density_estimator=network)
    inference.append_simulations(theta, x).train(
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
    posterior = inference.build_posterior()
    samples = posterior.sample((5_000,), x=observed, show_progress_bars=False)
    summary = inference.training_summary
    assert summary is not None  # train() has set it; said for type checkers
    return samples, summary


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
        ours, theirs = f"{mean:.3f} ± {sd:.3f}", f"{published_mean:.3f} ± {published_sd:.3f}"
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
    """Infer the rates, print them beside the published ones and save three pictures."""
    options = argparse.ArgumentParser(description="Infer how hares and lynxes live and die.")
    options.add_argument("--out", type=Path, default=Path("quickstart_output"))
    options.add_argument("--simulations", type=int, default=60_000, help="2,000 at least")
    options.add_argument("--max-epochs", type=int, default=12)
    options.add_argument("--seed", type=int, default=0)
    budget = options.parse_args()
    started = time.perf_counter()
    matplotlib.use("Agg")
    torch.set_num_threads(1)  # more would wait for each other, dearly where others compute too
    torch.manual_seed(budget.seed)
    pelts = read_pelts(DATA)
    observed = pelts.log().flatten()
    few, many, epochs = budget.simulations // 3, budget.simulations, budget.max_epochs

    print("Round 1: the whole prior", flush=True)
    everything = log_prior(torch.full((8,), 1e-4), torch.full((8,), torch.inf))
    first, _ = infer(observed, everything, few, factor=10, epochs=epochs)

    print("\nRound 2: the part of the prior where round 1 found the posterior", flush=True)
    plausible = log_prior(*first.exp().quantile(torch.tensor([0.001, 0.999]), dim=0))
    second, summary = infer(observed, plausible, many, factor=5, epochs=epochs)

    samples = second.exp()
    print(f"\n{summary}\n\n{comparison(samples)}\n")
    budget.out.mkdir(parents=True, exist_ok=True)
    pictures = {
        "loss.png": summary.plot(),
        "posterior.png": plot_posterior(samples),
        "predictions.png": plot_predictions(pelts, samples),
    }
    for name, figure in pictures.items():
        figure.savefig(budget.out / name, dpi=150)
        print(f"saved {budget.out / name}")
    print(f"done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
