"""Callbacks that check the posterior while it is trained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sbi.analysis import pairplot
from torch import Tensor

from sbi_ignite.bridge.lines import private
from sbi_ignite.callback import Callback, TrainingState
from sbi_ignite.diagnostics.calibration import coverage_of, judged
from sbi_ignite.diagnostics.draws import (
    Draws,
    check_has_posterior,
    draw,
    joint_coverage_of,
    own_random_state,
    ranks_of,
    warn_of,
)
from sbi_ignite.diagnostics.figures import coverage_figure, rank_figure
from sbi_ignite.diagnostics.held_out import checked_pairs, names_of, validation_rows
from sbi_ignite.exceptions import ArgumentError

_MOST_NAMED = 20
"""Parameters up to which the numbers of each are logged."""


class _Check(Callback):
    """What the checks have in common: when, on which simulations, with which random state.

    Every check seeds a random state of its own with `seed` and the number of the epoch. Training
    is bitwise the same with and without it, and a resumed run measures the same.
    """

    def __init__(
        self,
        every: int,
        num_posterior_samples: int,
        parameter_names: Sequence[str] | None,
        seed: int,
    ) -> None:
        self._name = type(self).__name__
        for name, value, least in (
            ("every", every, 1),
            ("num_posterior_samples", num_posterior_samples, 20),
            ("seed", seed, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ArgumentError(
                    f"{self._name}: expected {name} as a whole number from {least} on, got "
                    f"{value!r}."
                )
        self.every, self.num_posterior_samples, self.seed = every, num_posterior_samples, seed
        self._names = parameter_names

    def on_train_start(self, state: TrainingState) -> None:
        """Find what to check on, before any time is spent on training."""
        check_has_posterior(state.trainer, self._name)
        self._prepare(state)

    def on_measure(self, state: TrainingState) -> None:
        """Check after every `every`-th epoch."""
        if state.epoch % self.every == 0:
            with own_random_state(self.seed, state.epoch):
                self._check(state)

    def _prepare(self, state: TrainingState) -> None:
        raise NotImplementedError

    def _check(self, state: TrainingState) -> None:
        raise NotImplementedError

    def _draw(self, state: TrainingState, x: Tensor) -> Draws:
        return draw(state.trainer, state.model, x, self.num_posterior_samples)


class _OnSimulations(_Check):
    """A check on held-out simulations."""

    def __init__(
        self,
        every: int = 10,
        num_simulations: int = 200,
        *,
        theta: Any = None,
        x: Any = None,
        num_posterior_samples: int = 100,
        parameter_names: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(every, num_posterior_samples, parameter_names, seed)
        if isinstance(num_simulations, bool) or not isinstance(num_simulations, int):
            raise ArgumentError(
                f"{self._name}: expected num_simulations as a whole number, got "
                f"{num_simulations!r}."
            )
        if (theta is None) != (x is None):
            raise ArgumentError(f"{self._name}: expected theta and x, or neither of them.")
        self.num_simulations = num_simulations
        self._given = None if theta is None else checked_pairs(theta, x, self._name)
        self._ranks: NDArray[np.int64] | None = None

    def _prepare(self, state: TrainingState) -> None:
        pairs = self._given or validation_rows(state.trainer, self._name)
        theta, x = (part[: self.num_simulations] for part in pairs)
        checked_pairs(theta, x, self._name)
        self._theta, self._x = theta, x
        self._parameters = names_of(theta.shape[1], self._names, self._name)

    def _drawn(self, state: TrainingState) -> tuple[Draws, NDArray[np.int64]]:
        draws = self._draw(state, self._x)
        warn_of(draws)
        return draws, ranks_of(self._theta, self._x, draws)

    def _title(self, state: TrainingState) -> str:
        return f"epoch {state.epoch}, {len(self._theta)} simulations"


class Coverage(_OnSimulations):
    """Measure while training how often credible intervals hold the true parameters.

    Logged after every `every`-th epoch, for stopping rules, loggers, run directory and summary:

    * `coverage/50` and `coverage/90`: the share of true parameters in the central credible interval
      of that level, averaged over parameters; up to 20 of them also `coverage/NAME/90`,
    * `coverage/joint_error`: the largest distance between nominal and joint coverage (TARP),
    * `coverage/error`: the largest of all distances of single parameters, over all levels,
    * the figure `coverage`, with the band in which a calibrated posterior lies.

    NLE and NRE are checked by weighting draws of the prior, without MCMC.

    Args:
        every: Epochs between two checks.
        num_simulations: Held-out simulations, at most. With 200, coverage of 90 % is known to 4 %.
        theta: Parameters drawn from the prior, shape (num_rows, dim_theta); None takes the
            validation rows that are from the prior.
        x: Simulations of them, shape (num_rows, ...).
        num_posterior_samples: Samples for each.
        parameter_names: Names of the parameters; None takes theta_0, theta_1, ...
        seed: Seed of the samples.

    Raises:
        ArgumentError: If an argument has the wrong type; when training starts, if the training has
            no posterior or no held-out simulations from the prior.
        DataError: If theta and x do not belong together, or are fewer than 20.

    Example:
        >>> from sbi_ignite import Coverage, EarlyStopping
        >>> calibrated = EarlyStopping.when(lambda s: s.metrics.get("coverage/error", 1) < 0.03)
        >>> # inference.train(TrainConfig(), callbacks=Coverage(every=5), early_stopping=calibrated)
    """

    def _check(self, state: TrainingState) -> None:
        draws, ranks = self._drawn(state)
        joint = joint_coverage_of(self._theta, self._x, draws)
        samples = self.num_posterior_samples
        shares = {level: coverage_of(ranks.astype(float), samples, level) for level in _GRID}
        values = {
            "coverage/50": float(shares[0.5].mean()),
            "coverage/90": float(shares[0.9].mean()),
            "coverage/error": max(
                float(np.abs(found - level).max()) for level, found in shares.items()
            ),
            "coverage/joint_error": max(abs(share - level) for level, share in joint),
        }
        if len(self._parameters) <= _MOST_NAMED:
            values |= {
                f"coverage/{_metric(name)}/90": float(share)
                for name, share in zip(self._parameters, shares[0.9], strict=True)
            }
        state.log(values)
        if state.shows_figures:
            figure = coverage_figure(ranks, samples, self._parameters, joint, self._title(state))
            state.log_figure("coverage", figure)


class SBC(_OnSimulations):
    """Run simulation-based calibration while training.

    Logged after every `every`-th epoch, for stopping rules, loggers, run directory and summary:

    * `sbc/p`: the smallest p-value of any test of any parameter, times their number; below 0.05 the
      posterior is not calibrated (see `check_posterior`),
    * for up to 20 parameters `sbc/NAME/bias`, in standard deviations of the posterior, and
      `sbc/NAME/width`, relative to the right width: below 1 the posterior is too narrow,
    * the figure `sbc` with the ranks of every parameter.

    NLE and NRE are checked by weighting draws of the prior, without MCMC.

    Args:
        every: Epochs between two checks.
        num_simulations: Held-out simulations, at most.
        theta: Parameters drawn from the prior, shape (num_rows, dim_theta); None takes the
            validation rows that are from the prior.
        x: Simulations of them, shape (num_rows, ...).
        num_posterior_samples: Samples for each.
        parameter_names: Names of the parameters; None takes theta_0, theta_1, ...
        seed: Seed of the samples.

    Raises:
        ArgumentError: If an argument has the wrong type; when training starts, if the training has
            no posterior or no held-out simulations from the prior.
        DataError: If theta and x do not belong together, or are fewer than 20.

    Example:
        >>> from sbi_ignite import SBC
        >>> # inference.train(TrainConfig(), callbacks=SBC(every=20), logging="tensorboard")
    """

    def _check(self, state: TrainingState) -> None:
        _, ranks = self._drawn(state)
        found = judged(ranks, self.num_posterior_samples, self._parameters)
        tests = 3 * len(found.parameters)
        least = min(min(p.p_bias, p.p_width, p.p_shape) for p in found.parameters)
        values = {"sbc/p": min(1.0, tests * least)}
        if len(self._parameters) <= _MOST_NAMED:
            for p in found.parameters:
                values[f"sbc/{_metric(p.name)}/bias"] = p.bias
                values[f"sbc/{_metric(p.name)}/width"] = p.width
        state.log(values)
        if state.shows_figures:
            figure = rank_figure(
                ranks, self.num_posterior_samples, self._parameters, self._title(state)
            )
            state.log_figure("sbc", figure)


class PosteriorPairplot(_Check):
    """Draw the posterior of an observation while it is trained.

    Logged after every `every`-th epoch: the figure `posterior` (sbi's pairplot), if a logger shows
    figures, and the mean and standard deviation of every parameter, of up to 20, as
    `posterior/NAME/mean` and `posterior/NAME/sd`.

    Args:
        x_o: The observation, shape (...) of one row of x, or (1, ...).
        every: Epochs between two figures.
        num_posterior_samples: Samples to draw.
        points: Parameters to mark, shape (dim_theta,), such as the true ones.
        limits: Smallest and largest value of each parameter to show, shape (dim_theta, 2); None
            takes those of the samples.
        parameter_names: Names of the parameters; None takes theta_0, theta_1, ...
        seed: Seed of the samples.

    Raises:
        ArgumentError: If an argument has the wrong type; when training starts, if the training has
            no posterior or x has another shape.

    Example:
        >>> import torch
        >>> from sbi_ignite import PosteriorPairplot
        >>> # inference.train(TrainConfig(), callbacks=PosteriorPairplot(torch.zeros(2)))
    """

    def __init__(
        self,
        x_o: Any,
        every: int = 10,
        *,
        num_posterior_samples: int = 1_000,
        points: Any = None,
        limits: Any = None,
        parameter_names: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(every, num_posterior_samples, parameter_names, seed)
        self._x_o = torch.as_tensor(x_o, dtype=torch.float32)
        self._points, self._limits = points, limits

    def _prepare(self, state: TrainingState) -> None:
        theta, x = private(state.trainer).simulations(0)[:2]
        if tuple(self._x_o.shape) not in (tuple(x.shape[1:]), (1, *x.shape[1:])):
            raise ArgumentError(
                f"{self._name}: expected x_o of shape {tuple(x.shape[1:])}, one row of x, got "
                f"{tuple(self._x_o.shape)}."
            )
        self._observed = self._x_o.reshape(1, *x.shape[1:])
        self._parameters = names_of(theta.shape[1], self._names, self._name)

    def _check(self, state: TrainingState) -> None:
        draws = self._draw(state, self._observed)
        warn_of(draws)
        samples = draws.samples[:, 0]
        if len(self._parameters) <= _MOST_NAMED:
            values: dict[str, float] = {}
            for name, column in zip(self._parameters, samples.T, strict=True):
                values[f"posterior/{_metric(name)}/mean"] = float(column.mean())
                values[f"posterior/{_metric(name)}/sd"] = float(column.std())
            state.log(values)
        if state.shows_figures:
            state.log_figure("posterior", self._figure(samples, state.epoch))

    def _figure(self, samples: Tensor, epoch: int) -> Figure:
        """Return sbi's pairplot in a figure that pyplot does not know."""
        count = len(self._parameters)
        size = max(3.0, min(12.0, 1.6 * count))
        figure = Figure(figsize=(size, size))
        axes: Any = figure.subplots(count, count, squeeze=False)
        with warnings.catch_warnings():
            # About how numpy reads the limits that sbi itself has made.
            warnings.simplefilter("ignore", DeprecationWarning)
            pairplot(
                samples,
                points=self._points,
                limits=self._limits,
                labels=list(self._parameters),
                fig=figure,
                axes=axes,
                figsize=(size, size),
            )
        figure.suptitle(f"epoch {epoch}", fontsize=10)
        return figure


_GRID = tuple(round(float(level), 2) for level in np.arange(0.1, 0.95, 0.1))


def _metric(name: str) -> str:
    """Return a parameter's name with characters that all loggers take."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-. ") else "_" for c in name)
