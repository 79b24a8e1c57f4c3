"""Draw posterior samples for many observations from whatever a trainer trains."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sbi.diagnostics import run_sbc, run_tarp
from sbi.inference import FMPE, VectorFieldPosterior
from torch import Tensor

from sbi_ignite.bridge.lines import private
from sbi_ignite.exceptions import ArgumentError, SbiIgniteWarning
from sbi_ignite.methods.table import page_of
from sbi_ignite.random_state import random_states, set_random_states

PRIOR_DRAWS = 4_000
"""Draws of the prior that are weighted by a likelihood or ratio."""

_NEED_A_PRIOR = ("nle", "nre", "vector_field")
"""Pages of methods whose samples are drawn with the help of the prior."""

_LEAST_EFFECTIVE = 50
"""Effective number of them below which their weights say too little."""


@contextmanager
def own_random_state(*seeds: int) -> Iterator[None]:
    """Draw from generators that these numbers seed, and leave all others as they were.

    Args:
        *seeds: Any non-negative numbers, all of which count.
    """
    before = random_states()
    (seed,) = np.random.SeedSequence(seeds).generate_state(1)
    # torch.manual_seed() would also seed devices that nothing has touched yet.
    torch.default_generator.manual_seed(int(seed))
    if "cuda" in before:
        torch.cuda.manual_seed_all(int(seed))
    np.random.seed(int(seed))

    random.seed(int(seed))
    try:
        yield
    finally:
        set_random_states(before)


def check_has_posterior(trainer: Any, who: str) -> None:
    """Refuse trainers without a posterior.

    Args:
        trainer: One of sbi's trainers, or None.
        who: Who asks, for the message.

    Raises:
        ArgumentError: If it trains no posterior, likelihood or ratio.
    """
    page = page_of(type(trainer))
    if page not in ("npe", *_NEED_A_PRIOR):
        found = "run_training()" if trainer is None else type(trainer).__name__
        raise ArgumentError(
            f"{who}: expected a trainer of sbi's that estimates a posterior, likelihood or ratio "
            f"(NPE, NLE, NRE, FMPE, NPSE, ...), got {found}, which has no posterior."
        )
    if page in _NEED_A_PRIOR and private(trainer).prior is None:
        raise ArgumentError(
            f"{who}: expected a prior, with which {type(trainer).__name__} draws from its "
            f"posterior, got none. Pass it to {type(trainer).__name__}(prior=...)."
        )


@dataclass(frozen=True)
class Draws:
    """Posterior samples for many observations, in place of the posterior that they were drawn from.

    Attributes:
        samples: Shape (num_posterior_samples, num_simulations, dim_theta).
        note: What to know about them, "" if nothing.
    """

    samples: Tensor
    note: str = ""

    def sample_batched(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the samples, to functions that would draw them again."""
        del args, kwargs
        return self.samples


def draw(
    trainer: Any, network: Any, x: Tensor, num_posterior_samples: int, prior: Any = None
) -> Draws:
    """Draw from the posterior of every observation, with what a trainer's network is now.

    Posterior estimators are sampled without rejecting samples outside of the prior, which may
    take forever before they are trained. For likelihoods and ratios, draws of the prior are
    weighted and resampled, which needs no MCMC but a posterior that is not too narrow.

    Args:
        trainer: One of sbi's trainers, see `check_has_posterior`.
        network: Its network; it is copied and stays as it is.
        x: Observations, shape (num_simulations, ...).
        num_posterior_samples: Samples for each.
        prior: The prior; None takes the trainer's.
    """
    prior = private(trainer).prior if prior is None else prior
    network = deepcopy(network).eval()
    device = next(network.parameters()).device
    x = x.to(device)
    shape = torch.Size((num_posterior_samples,))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        page = page_of(type(trainer))
        if page == "npe":
            return Draws(network.sample(shape, condition=x).cpu())
        if page == "vector_field":
            kind = "ode" if isinstance(trainer, FMPE) else "sde"
            posterior = VectorFieldPosterior(network, prior, device=str(device), sample_with=kind)  # type: ignore[arg-type]
            found = posterior.sample_batched(
                shape, x, show_progress_bars=False, reject_outside_prior=False
            )
            return Draws(found.cpu())
        return _by_weights(trainer, network, x, num_posterior_samples, prior)


def _by_weights(
    trainer: Any, network: Any, x: Tensor, num_posterior_samples: int, prior: Any
) -> Draws:
    """Resample draws of the prior, weighted by likelihood or ratio."""
    theta = prior.sample((PRIOR_DRAWS,)).to(x.device)
    is_ratio = page_of(type(trainer)) == "nre"
    samples, effective = [], []
    for observed in x:
        repeated = observed.expand(PRIOR_DRAWS, *observed.shape)
        if is_ratio:
            logits = network(theta, repeated).reshape(-1)
        else:
            logits = network.log_prob(repeated[None], condition=theta).reshape(-1)
        weights = torch.softmax(logits.double(), dim=0)
        effective.append(float(1 / weights.square().sum()))
        chosen = torch.multinomial(weights, num_posterior_samples, replacement=True)
        samples.append(theta[chosen])
    typical = float(np.median(effective))
    note = ""
    if typical < _LEAST_EFFECTIVE:
        note = (
            f"Posteriors are so narrow that only {typical:.0f} of {PRIOR_DRAWS} draws of the prior "
            "count, which makes them look too narrow; check the posterior that "
            "build_posterior() returns instead."
        )
    return Draws(torch.stack(samples, dim=1).cpu(), note)


def warn_of(draws: Draws) -> None:
    """Warn of what there is to know about draws."""
    if draws.note:
        warnings.warn(draws.note, SbiIgniteWarning, stacklevel=4)


def ranks_of(theta: Tensor, x: Tensor, draws: Draws) -> np.ndarray[Any, Any]:
    """Return the rank of every true parameter, shape (num_simulations, dim_theta).

    Args:
        theta: True parameters, shape (num_simulations, dim_theta).
        x: Observations.
        draws: Posterior samples for them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are few, which our bands say
        ranks, _ = run_sbc(
            theta.cpu(),
            x.cpu(),
            draws,  # type: ignore[arg-type] # it is asked for samples only
            num_posterior_samples=len(draws.samples),
            show_progress_bar=False,
        )
    return ranks.numpy().astype(np.int64)


def joint_coverage_of(theta: Tensor, x: Tensor, draws: Draws) -> list[tuple[float, float]]:
    """Return pairs of level and joint coverage, by distances to random points (TARP).

    Args:
        theta: True parameters, shape (num_simulations, dim_theta).
        x: Observations.
        draws: Posterior samples for them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coverage, levels = run_tarp(
            theta.cpu(),
            x.cpu(),
            draws,  # type: ignore[arg-type] # likewise
            num_posterior_samples=len(draws.samples),
            show_progress_bar=False,
            num_bins=max(10, len(theta) // 10),
        )
    return list(zip(levels.tolist(), coverage.tolist(), strict=True))
