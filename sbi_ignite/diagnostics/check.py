"""Check a trained posterior, with a verdict in words."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.utils.diagnostics_utils import get_posterior_samples_on_batch

from sbi_ignite.bridge.lines import private
from sbi_ignite.diagnostics.calibration import PosteriorCheck, judged
from sbi_ignite.diagnostics.draws import (
    Draws,
    check_has_posterior,
    draw,
    joint_coverage_of,
    own_random_state,
    ranks_of,
    warn_of,
)
from sbi_ignite.diagnostics.held_out import checked_pairs, names_of, validation_rows
from sbi_ignite.exceptions import ArgumentError

_WHO = "check_posterior"


def check_posterior(
    posterior: Any,
    theta: Any = None,
    x: Any = None,
    *,
    num_simulations: int | None = None,
    num_posterior_samples: int = 200,
    parameter_names: Sequence[str] | None = None,
    false_alarm: float = 0.05,
    seed: int = 0,
) -> PosteriorCheck:
    """Check whether a posterior is calibrated, on simulations with known parameters.

    The ranks of the true parameters among posterior samples (simulation-based calibration) and the
    joint coverage (TARP) say whether the posterior is biased, too narrow or too wide, on average
    over what the prior predicts. They cannot say so of one observation.

    All random generators are left as they were.

    Args:
        posterior: A trainer of sbi's after `train()`, or a posterior of sbi's. Samples of a trainer
            are drawn from its network directly, including those outside of the prior; those of NLE
            and NRE by weighting draws of the prior.
        theta: Parameters drawn from the prior, shape (num_rows, dim_theta), that were not trained
            on. None takes the validation rows of a trainer, on which the best weights were chosen:
            that flatters a little.
        x: Simulations of them, shape (num_rows, ...).
        num_simulations: Rows to use, the first ones; None takes all, at most 1,000.
        num_posterior_samples: Samples for each of them.
        parameter_names: Names of the parameters; None takes theta_0, theta_1, ...
        false_alarm: Probability, at most, that a calibrated posterior is called something else.
        seed: Seed of the samples.

    Returns:
        The verdict, which prints in words, and plots.

    Raises:
        ArgumentError: If something else is passed, or theta or x is missing for a posterior.
        DataError: If theta and x do not belong together, or are fewer than 20.

    Example:
        >>> import torch
        >>> from sbi.utils import BoxUniform
        >>> from sbi_ignite import NPE, TrainConfig, check_posterior
        >>> prior = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
        >>> theta = prior.sample((400,))
        >>> trainer = NPE(prior, show_progress_bars=False)
        >>> _ = trainer.append_simulations(theta, theta + torch.randn(400, 2))
        >>> _ = trainer.train(TrainConfig(max_epochs=2), logging="none")
        >>> check_posterior(trainer).num_simulations
        40
    """
    if (theta is None) != (x is None):
        raise ArgumentError(
            f"{_WHO}: expected theta and x, or neither of them, got only "
            f"{'theta' if x is None else 'x'}."
        )
    is_posterior = isinstance(posterior, NeuralPosterior)
    if not is_posterior:
        check_has_posterior(posterior, _WHO)
        if private(posterior).network is None:
            raise ArgumentError(
                f"{_WHO}: expected a trainer after train(), got {type(posterior).__name__} without "
                "a network. Train it first."
            )
    elif theta is None:
        raise ArgumentError(
            f"{_WHO}: expected theta and x beside a posterior, which knows no simulations. Pass "
            "simulations of the prior that were not trained on."
        )
    pairs = validation_rows(posterior, _WHO) if theta is None else checked_pairs(theta, x, _WHO)
    limit = num_simulations or min(len(pairs[0]), 1_000)
    theta, x = (part[:limit] for part in pairs)
    names = names_of(theta.shape[1], parameter_names, _WHO)
    with own_random_state(seed):
        draws = (
            _from_posterior(posterior, x, num_posterior_samples)
            if is_posterior
            else draw(posterior, private(posterior).network, x, num_posterior_samples)
        )
        warn_of(draws)
        ranks = ranks_of(theta, x, draws)
        joint = joint_coverage_of(theta, x, draws)
    return judged(
        ranks,
        num_posterior_samples,
        names,
        false_alarm=false_alarm,
        joint=joint,
        note=draws.note,
    )


def _from_posterior(posterior: NeuralPosterior, x: Any, num_posterior_samples: int) -> Draws:
    """Return samples of a posterior of sbi's for every observation, in its own way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = get_posterior_samples_on_batch(x, posterior, (num_posterior_samples,))
    return Draws(samples.detach().cpu())
