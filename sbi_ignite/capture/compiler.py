"""Settings, a network and its loss come in; how its gradients and losses are computed goes out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from sbi_ignite.capture.gradients import EagerGradients, Gradients, LossFunction
from sbi_ignite.capture.verification import (
    PROOFS,
    TracedGradients,
    TracedLosses,
    Tracing,
    TracingRules,
)
from sbi_ignite.exceptions import SbiIgniteWarning, SettingsError
from sbi_ignite.random_state import random_states, set_random_states
from sbi_ignite.settings import TrainConfig

_logger = logging.getLogger("sbi_ignite.engine")

STEPS_BEFORE_TRACING = 50
"""Steps with batches of one shape, after which more of them are to be expected than a recording
costs, which is what ten to thirty of them save."""

STEPS_THAT_PAY = 30
"""A training that is sure to take so many steps is recorded at once."""

STEPS_TO_SETTLE = 3
"""Steps that are left to torch in any case where there are CUDA graphs: with the second one, the
optimizer may move the parameters, and a CUDA graph knows them by their addresses. And where batches
are large: a recording of 4,096 rows at the first step took 40 MB more at the peak."""

PROOFS_OF_KNOWN = 2
"""Batches that prove a recording of a network and a loss that are known to be safe: the one that
was recorded, and another one."""


class Refusals:
    """Say why a way of computing is given up, once in a training.

    Args:
        mode: The setting that asked for it; None says it to the log only.
    """

    def __init__(self, mode: str | None) -> None:
        self._mode, self._told = mode, False

    def __call__(self, reason: str) -> None:
        """Take a reason."""
        if self._mode is None or self._told:
            _logger.debug("Not as compile asks: %s.", reason)
            return
        self._told = True
        warnings.warn(
            f"compile={self._mode!r}: {reason}. Training goes on without it, and its results are "
            "not affected.",
            SbiIgniteWarning,
            stacklevel=2,
        )


class Compiler:
    """How the computations of one training are carried out.

    Args:
        config: Gives compile and precision.
        model: The network.
        loss: Losses of a batch; its method `validate`, where it has one, gives validation losses.
        device: Where it is computed.
        known_safe: Whether network and loss are known to be the same computation for every batch.
        watchful: Whether others' code may change the network between steps.
        epoch: Returns the running epoch.
        sure_steps: Steps of training that are sure to come.
        sure_validation_steps: Batches of validation that are.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        loss: LossFunction,
        device: torch.device,
        known_safe: bool,
        watchful: bool,
        epoch: Callable[[], int],
        sure_steps: float = 0,
        sure_validation_steps: float = 0,
    ) -> None:
        self._mode, self._model, self._epoch = config.compile, model, epoch
        self._sure_steps, self._sure_validation_steps = sure_steps, sure_validation_steps
        self._on_cuda = device.type == "cuda"
        self._train = in_bf16(loss, device) if config.precision == "bf16-mixed" else loss
        self._validate: LossFunction = getattr(loss, "validate", loss)
        self._known_safe, self._watchful = known_safe, watchful
        self._refuse = Refusals(None if self._mode == "auto" else self._mode)
        # Of its own, for a training that is recorded all the same may still be refused later.
        self._refuse_capture = Refusals("cuda_graph" if self._mode == "cuda_graph" else None)

    def gradients(self, optimizer: Optimizer) -> Gradients:
        """Return what computes losses and gradients of training batches."""
        eager = EagerGradients(self._model, self._train)
        if self._mode == "inductor":
            return EagerGradients(self._model, TorchCompiled(self._train, self._refuse))
        if not self._traced:
            return eager

        def parameters() -> Sequence[Tensor]:
            groups = (group["params"] for group in optimizer.param_groups)
            every = [*self._model.parameters(), *(p for group in groups for p in group)]
            return list({id(parameter): parameter for parameter in every}.values())

        return TracedGradients(eager, parameters, self._tracing(self._train, self._sure_steps))

    def losses(self) -> LossFunction:
        """Return what computes the losses of validation batches, without gradients."""
        if not self._traced:
            return self._validate
        return TracedLosses(
            self._validate, self._tracing(self._validate, self._sure_validation_steps)
        )

    @property
    def _traced(self) -> bool:
        on_request = self._mode in ("trace", "cuda_graph")
        return on_request or (self._mode == "auto" and self._known_safe)

    def _after(self, sure_steps: float) -> int:
        """Return how many steps are computed eagerly first."""
        if self._mode == "auto" and sure_steps < STEPS_THAT_PAY:
            return STEPS_BEFORE_TRACING
        return STEPS_TO_SETTLE if self._captures else 0

    @property
    def _captures(self) -> bool:
        """Whether recordings run as CUDA graphs, where they can."""
        return self._mode == "cuda_graph" or (self._mode == "auto" and self._on_cuda)

    def _tracing(self, loss: LossFunction, sure_steps: float) -> Tracing:
        on_request = self._mode != "auto"
        rules = TracingRules(
            after=self._after(sure_steps),
            after_if_large=0 if on_request else STEPS_TO_SETTLE,
            proofs=PROOFS if on_request else PROOFS_OF_KNOWN,
            record_twice=on_request,
            must_pay=not on_request,
            every_step=self._watchful,
            capture=self._captures,
        )
        also: tuple[Any, ...] = () if self._known_safe else (loss,)
        return Tracing(self._model, also, rules, self._epoch, self._refuse, self._refuse_capture)


def in_bf16(loss: LossFunction, device: torch.device) -> LossFunction:
    """Return a loss whose matrix products run in bfloat16; parameters and their gradients do not.

    Args:
        loss: Losses of a batch.
        device: Where it is computed.
    """

    def mixed(model: Any, batch: Any) -> Tensor:
        try:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                return loss(model, batch).float()
        except RuntimeError as error:
            if "bfloat16" not in str(error).lower():
                raise
            raise SettingsError(
                "precision='bf16-mixed': this network has an operation that does not take bfloat16 "
                f"({_in_a_line(error)}). Leave precision at '32'."
            ) from error

    return mixed


class TorchCompiled:
    """A loss compiled by `torch.compile`, once for every shape of batch; its last bits may differ.

    Args:
        loss: Losses of a batch.
        refuse: Told why, where torch cannot compile it; the loss is then computed as it is.
    """

    def __init__(self, loss: LossFunction, refuse: Callable[[str], None]) -> None:
        self._loss, self._refuse = loss, refuse
        self._compiled: LossFunction | None = None
        self._shapes: set[tuple[Any, ...]] = set()
        self._possible = True

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """Return the losses of a batch."""
        if not self._possible:
            return self._loss(model, batch)
        shapes = tuple(getattr(leaf, "shape", None) for leaf in pytree.tree_leaves(batch))
        if self._compiled is not None and shapes in self._shapes:
            return self._compiled(model, batch)
        before = random_states()
        try:
            with warnings.catch_warnings():
                # torch's compiler itself uses what torch has deprecated.
                for said in ("`torch\\.jit\\.", ".*autograd\\.function\\.Function.* instantiated"):
                    warnings.filterwarnings("ignore", said, DeprecationWarning)
                if self._compiled is None:
                    self._compiled = torch.compile(self._loss, dynamic=False)
                losses = self._compiled(model, batch)
        except Exception as error:
            if not _is_torchs_compiler(error):
                raise
            self._possible = False
            set_random_states(before)
            self._refuse(f"torch.compile cannot take it ({_in_a_line(error)})")
            return self._loss(model, batch)
        self._shapes.add(shapes)
        return losses


def _is_torchs_compiler(error: Exception) -> bool:
    """Return whether an error comes from compiling and not from what is compiled."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def _in_a_line(error: Exception) -> str:
    """Return what an error says first; torch's compiler needs two lines to say what it was."""
    return " ".join(str(error).split("\n")[:2]).strip()
