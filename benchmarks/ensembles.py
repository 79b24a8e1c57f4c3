"""What do ensembles cost on two cores, and what do several networks gain over one?

    OMP_NUM_THREADS=1 python -m benchmarks.ensembles
    OMP_NUM_THREADS=1 python -m benchmarks.ensembles --part time [--members 4 8] [--epochs 40]
    OMP_NUM_THREADS=1 python -m benchmarks.ensembles --part stacked [--members 4 8] [--epochs 40]
    OMP_NUM_THREADS=1 python -m benchmarks.ensembles --part quality [--tasks slcp] [--seeds 3]

Time: K members by `train_ensemble(n_jobs=2)`, with and without the start of its workers, and the
same K members by `.train()`, one after the other, in turn. All train the same epochs.

Stacked: the same ensembles on one core, `stacked=True` and `stacked=False` in turn, by CPU time.
`step` is the time of one step of one member in the latter, all that is around it included.

Quality: held-out loss (mean negative log-probability of fresh pairs) and expected coverage of one
network and of an ensemble, both by the recipe and by sbi's defaults. Numbers of one network are
means over the members. Coverage is that of regions of highest density: `off` is the mean distance
between empirical and nominal coverage, `lean` its mean with sign, negative where posteriors are too
narrow.
"""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from joblib.externals.loky import get_reusable_executor
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from torch import Tensor

from benchmarks.cells import Nowhere
from benchmarks.measuring import (
    Result,
    Spread,
    Table,
    Timing,
    alternate,
    conclude,
    options_of,
    parse,
    ratios,
    timed,
)
from benchmarks.tasks import JUDGED
from sbi_ignite import NPE, EarlyStopping, TrainConfig, train_ensemble
from sbi_ignite.bridge.memory import memory_of
from sbi_ignite.ensembles.seeds import member_seeds

BARS = {4: 0.55, 8: 0.53}
"""What an ensemble on two cores may take, as a share of its members one after the other."""

SEED = 1
DRAWS = 200
"""Posterior draws per pair from which coverage is computed."""


# --- time


def trainer_of(network: str, theta: Tensor, x: Tensor) -> Any:
    """Return a trainer of the time part."""
    prior = BoxUniform(-3 * torch.ones(5), 3 * torch.ones(5))
    build = posterior_nn(network)
    trainer = NPE(prior, build, show_progress_bars=False, tracker=Nowhere())
    return trainer.append_simulations(theta, x)


def simulations(rows: int) -> tuple[Tensor, Tensor]:
    """Return theta and x of the timed parts, always the same."""
    torch.manual_seed(0)
    theta = 6 * torch.rand(rows, 5) - 3
    return theta, torch.cat([theta, theta], dim=1) + 0.3 * torch.randn(rows, 10)


def train_together(
    network: str,
    data: tuple[Tensor, Tensor],
    members: int,
    config: TrainConfig,
    n_jobs: int,
    stacked: bool = False,
) -> Any:
    """Return an ensemble that has trained all its epochs."""
    return train_ensemble(
        lambda: trainer_of(network, *data),
        members,
        config,
        n_jobs=n_jobs,
        seed=SEED,
        stacked=stacked,
        early_stopping=EarlyStopping.never(),
    )


def time_part(options: Any) -> tuple[list[Table], dict[str, Any]]:
    """Time ensembles and their members one after the other."""
    data = simulations(options.rows)
    config = TrainConfig(max_epochs=options.epochs)
    never = EarlyStopping.never()
    lines, numbers = [], {}
    for network in options.networks:
        for members in options.members:

            def one_by_one(network: str = network, members: int = members) -> None:
                for member in range(members):
                    seeds = member_seeds(SEED, member)
                    trainer = trainer_of(network, *data)
                    memory_of(trainer).row_seeds = seeds.rows
                    seeded = config.model_copy(update={"seed": seeds.train})
                    trainer.train(seeded, early_stopping=never)

            def together(network: str = network, members: int = members) -> None:
                train_together(network, data, members, config, n_jobs=2)

            def cold(together: Callable[[], None] = together) -> Timing:
                get_reusable_executor().shutdown(wait=True)
                return timed(together)

            def warm(together: Callable[[], None] = together) -> Timing:
                return timed(together)  # it always follows a way that has started them

            ways = {
                "one after the other": lambda work=one_by_one: timed(work),
                "ensemble, workers start": cold,
                "ensemble, workers there": warm,
            }
            found = alternate(ways, options.rounds)
            base = found["one after the other"]
            for name, timings in found.items():
                share = Spread.of(1 / r for r in _each(ratios, base, timings))
                bar = (
                    f"at most {BARS[members]}"
                    if members in BARS and name != next(iter(ways))
                    else ""
                )
                seconds = Spread.of(t.wall for t in timings)
                lines.append([network, str(members), name, f"{seconds:.3g}", f"{share:.2f}", bar])
            numbers[f"{network}, {members}"] = {n: [t.wall for t in ts] for n, ts in found.items()}
    header = ["network", "members", "way", "s", "share", "bar"]
    title = f"Two cores; {options.rows:,} simulations, {options.epochs} epochs, one thread a member"
    note = "Share: of the time of the members one after the other, round by round."
    return [Table(header, lines, title, note)], {"seconds": numbers}


def _each(ratio: Any, base: Sequence[Timing], other: Sequence[Timing]) -> list[float]:
    return [ratio([a], [b]).median for a, b in zip(base, other, strict=True)]


# --- stacked

STACKED_BAR = 0.75
"""What a stack may take on one core as a share of its members one after the other, where a step
takes less than `SMALL_STEP`."""

SMALL_STEP = 2e-3


def stacked_part(options: Any) -> tuple[list[Table], dict[str, Any]]:
    """Time stacked ensembles on one core, and the same ones one member after the other."""
    rows = options.stacked_rows
    data = simulations(rows)
    lines, numbers = [], {}
    for network in options.stacked_networks:
        for size in options.batch_sizes:
            for members in options.members:
                found, steps = _stacked_and_not(network, size, members, data, options)
                step = Spread.of(t.cpu / steps for t in found["one after the other"])
                for name, timings in found.items():
                    pairs = zip(found["one after the other"], timings, strict=True)
                    share = Spread.of(other.cpu / one.cpu for one, other in pairs)
                    has_bar = name == "stacked" and step.median < SMALL_STEP
                    lines.append(
                        [
                            network,
                            str(size),
                            str(members),
                            name,
                            f"{Spread.of(t.cpu for t in timings):.3g}",
                            f"{step.median * 1e3:.2f}",
                            f"{share:.2f}",
                            f"at most {STACKED_BAR}" if has_bar else "",
                        ]
                    )
                key = f"{network}, {size}, {members}"
                numbers[key] = {n: [t.cpu for t in ts] for n, ts in found.items()}
    header = ["network", "batch", "members", "way", "CPU s", "step in ms", "share", "bar"]
    title = f"One core; {rows:,} simulations, {options.epochs} epochs"
    note = "Share: of the CPU time of the members one after the other, round by round."
    return [Table(header, lines, title, note)], {"seconds": numbers}


def _stacked_and_not(
    network: str, batch_size: int, members: int, data: tuple[Tensor, Tensor], options: Any
) -> tuple[dict[str, list[Timing]], int]:
    """Return the timings of both ways, and how many steps their members took together."""
    config = TrainConfig(max_epochs=options.epochs, batch_size=batch_size)
    steps = 0

    def trained(stacked: bool) -> Timing:
        def work() -> None:
            nonlocal steps
            found = train_together(network, data, members, config, n_jobs=1, stacked=stacked)
            batches = -(-len(found.trainers[0].train_indices) // batch_size)
            steps = members * options.epochs * batches

        return timed(work)

    ways = {
        "one after the other": lambda: trained(False),
        "stacked": lambda: trained(True),
    }
    return alternate(ways, options.rounds), steps


# --- quality


def coverage(log_probs: Tensor, draws: Tensor) -> tuple[float, float]:
    """Return how far the coverage of highest-density regions is off, without and with sign.

    Args:
        log_probs: Log-densities of the true parameters, shape (pairs,).
        draws: Log-densities of draws from the posteriors, shape (draws, pairs).
    """
    # The share of draws that are denser than the truth is uniform where the posterior is right.
    outside = (draws > log_probs).double().mean(dim=0)
    levels = torch.linspace(0.05, 0.95, 19, dtype=torch.double)
    covered = (outside[:, None] <= levels).double().mean(dim=0)
    return float((covered - levels).abs().mean()), float((covered - levels).mean())


def judge(estimators: Sequence[Any], theta: Tensor, x: Tensor) -> dict[str, float]:
    """Return held-out loss and coverage of the equal mixture of some networks.

    Args:
        estimators: The networks.
        theta: Fresh parameters, shape (pairs, parameters).
        x: Fresh data, shape (pairs, data).
    """

    def log_prob(values: Tensor) -> Tensor:
        parts = torch.stack([e.log_prob(values, condition=x) for e in estimators])
        return parts.logsumexp(dim=0) - torch.tensor(float(len(estimators))).log()

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nflows calls a function that torch will drop
        truth = log_prob(theta[None])[0]
        share = -(-DRAWS // len(estimators))
        draws = torch.cat([e.sample((share,), condition=x) for e in estimators])
        off, lean = coverage(truth, log_prob(draws))
    return {"loss": -float(truth.mean()), "off": off, "lean": lean}


def quality_part(options: Any) -> tuple[list[Table], dict[str, Any]]:
    """Compare one network with several."""
    lines, numbers = [], {}
    for name in options.tasks:
        task = JUDGED[name]
        fresh = task.pairs(options.fresh, seed=99)
        for rows in options.simulations:
            found: dict[str, list[dict[str, float]]] = {}
            for seed in range(options.seeds):
                for way, networks in _trained(task, rows, seed, options).items():
                    alone = [judge([network], *fresh) for network in networks]
                    one = {k: statistics.mean(a[k] for a in alone) for k in alone[0]}
                    found.setdefault(f"one, {way}", []).append(one)
                    many = judge(networks, *fresh)
                    found.setdefault(f"{len(networks)}, {way}", []).append(many)
                    gain = {k: one[k] - many[k] for k in one}
                    found.setdefault(f"gain, {way}", []).append(gain)
            for way, results in found.items():
                cells = [f"{Spread.of(r[key] for r in results):.3f}" for key in results[0]]
                lines.append([name, f"{rows:,}", way, *cells])
            numbers[f"{name}, {rows}"] = found
    header = ["task", "simulations", "networks", "held-out loss", "coverage off", "lean"]
    title = (
        f"NPE with a {options.judged_network}: median (range) over {options.seeds} seeds of "
        "simulations and training"
    )
    return [Table(header, lines, title, "Gain: one minus several, seed by seed.")], numbers


def _trained(task: Any, rows: int, seed: int, options: Any) -> dict[str, list[Any]]:
    """Return the networks of an ensemble by every way of training."""
    theta, x = task.pairs(rows, seed=seed)
    make: Callable[[], Any] = lambda: NPE(  # noqa: E731 # sent to workers
        task.prior, options.judged_network, show_progress_bars=False, tracker=Nowhere()
    ).append_simulations(theta, x)
    asked: dict[str, dict[str, Any]] = {
        "recipe": {"config": TrainConfig.fast(max_epochs=options.max_epochs)},
        "sbi's defaults": {"max_num_epochs": options.max_epochs},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of budgets
        return {
            way: train_ensemble(
                make, options.networks_per_ensemble, n_jobs=options.jobs, seed=seed, **arguments
            ).estimators
            for way, arguments in asked.items()
        }


def main(arguments: Sequence[str] | None = None) -> Result:
    """Measure and show."""
    parser = options_of(__doc__, rounds=3)
    parser.add_argument("--part", choices=["time", "stacked", "quality", "all"], default="all")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--members", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--networks", nargs="+", default=["maf", "zuko_nsf"])
    parser.add_argument("--stacked-networks", nargs="+", default=["maf", "mdn"])
    parser.add_argument("--stacked-rows", type=int, default=3_000)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--tasks", nargs="+", default=["two_moons", "slcp"])
    parser.add_argument("--judged-network", default="maf", help="sbi's default is a maf")
    parser.add_argument("--simulations", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fresh", type=int, default=1_000, help="pairs to judge by")
    parser.add_argument("--max-epochs", type=int, default=2_000)
    parser.add_argument("--networks-per-ensemble", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    options = parse(parser, arguments)
    if options.write and options.part != "all":
        parser.error("--write records all parts, which stand side by side: add --part all")
    parts = {"time": time_part, "stacked": stacked_part, "quality": quality_part}
    result = Result("ensembles", (__doc__ or "").splitlines()[0])
    for name, measure in parts.items():
        if options.part in (name, "all"):
            tables, numbers = measure(options)
            result.tables += tables
            result.numbers[name] = numbers
    conclude(result, options)
    return result


if __name__ == "__main__":
    main()
