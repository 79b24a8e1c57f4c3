"""Settings, a network and its loss come in; how its gradients and losses are computed goes out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sbi_ignite.engine.gradients import EagerGradients, Gradients, LossFunction
from sbi_ignite.engine.tracing import TracedGradients, TracedLosses, Tracing, TracingRules
from sbi_ignite.exceptions import SbiIgniteWarning
from sbi_ignite.settings import TrainConfig

_logger = logging.getLogger("sbi_ignite.engine")

STEPS_BEFORE_TRACING = 200
"""Steps with batches of one shape after which a recording is about to pay: it costs what one to
three hundred of the steps cost that it saves."""


@dataclass(frozen=True)
class Compiler:
    """How the computations of one training are carried out.

    Attributes:
        config: Gives compile and precision.
        model: The network.
        loss: Losses of a batch; its method `validate`, where it has one, gives validation losses.
        known_safe: Whether network and loss are known to be the same computation for every batch.
        watchful: Whether others' code may change the network between steps.
        epoch: Returns the running epoch.
    """

    config: TrainConfig
    model: nn.Module
    loss: LossFunction
    known_safe: bool
    watchful: bool
    epoch: Callable[[], int]

    def gradients(self, optimizer: Optimizer) -> Gradients:
        """Return what computes losses and gradients of training batches."""
        eager = EagerGradients(self.model, self.loss)
        if not self._traced:
            return eager

        def parameters() -> Sequence[Tensor]:
            groups = (group["params"] for group in optimizer.param_groups)
            every = [*self.model.parameters(), *(p for group in groups for p in group)]
            return list({id(parameter): parameter for parameter in every}.values())

        return TracedGradients(eager, parameters, self._tracing(self.loss))

    def losses(self) -> LossFunction:
        """Return what computes the losses of validation batches, without gradients."""
        loss = getattr(self.loss, "validate", self.loss)
        return TracedLosses(loss, self._tracing(loss)) if self._traced else loss

    @property
    def _traced(self) -> bool:
        compiled = self.config.compile
        return compiled == "trace" or (compiled == "auto" and self.known_safe)

    def _tracing(self, loss: LossFunction) -> Tracing:
        on_request = self.config.compile == "trace"
        rules = TracingRules(
            after=0 if on_request else STEPS_BEFORE_TRACING,
            record_twice=on_request,
            every_step=self.watchful,
        )
        also: tuple[Any, ...] = () if self.known_safe else (loss,)
        given_up = _warn if on_request else _note
        return Tracing(self.model, also, rules, self.epoch, given_up)


def _warn(reason: str) -> None:
    warnings.warn(
        f"compile='trace': {reason}. Training goes on without it, with the same results; leave "
        "compile out to say nothing.",
        SbiIgniteWarning,
        stacklevel=2,
    )


def _note(reason: str) -> None:
    _logger.debug("The network is not traced: %s.", reason)
