"""Decide how gradients and losses of a training are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sbi_ignite.capture.gradients import EagerGradients, Gradients, LossFunction
from sbi_ignite.capture.private_torch import cannot_record
from sbi_ignite.capture.report import Compiled, Refusals, Report, SlowerWays, in_a_line, logger
from sbi_ignite.capture.rules import PROOFS, ROUNDING, ROUNDING_IN_BF16, TracingRules
from sbi_ignite.exceptions import SettingsError
from sbi_ignite.settings import TrainConfig

if TYPE_CHECKING:
    from sbi_ignite.capture.verification import Tracing

STEPS_BEFORE_TRACING = 50
"""Steps with batches of one shape, after which enough more of them can be expected to pay for a
recording, which costs as much as ten to thirty of them save."""

STEPS_THAT_PAY = 30
"""A training that is sure to take this many steps is recorded at once."""

NOT_KNOWN = (
    "compile='auto' records only networks and losses that are known to be the same computation for "
    "every batch; compile='trace' asks for others"
)
"""Why steps are eager if the network is not known to be safe to record."""

STEPS_TO_SETTLE = 3
"""Steps that are always left to torch with CUDA graphs: in the second one, the optimizer may move
the parameters, and a CUDA graph knows them by their addresses. The same holds for large batches:
recording 4,096 rows at the first step raised the peak by 40 MB."""

PROOFS_OF_KNOWN = 2
"""Batches that prove a recording if network and loss are known to be safe: the one that was
recorded, and another one."""


class Compiler:
    """Carries out the computations of one training: the entry point of this package.

    The code that records, proves and runs is imported only when it is used.

    Args:
        config: Gives compile and precision.
        model: The network.
        loss: Losses of a batch; its method `validate`, if it has one, gives validation losses.
        device: Where it is computed.
        known_safe: Whether network and loss are known to be the same computation for every batch.
        watchful: Whether other code may change the network between steps.
        epoch: Returns the current epoch.
        sure_steps: Steps of training that are sure to come.
        sure_validation_steps: Batches of validation that are sure to come.
        replaced_by: Other code that computes the steps of training; None without any.

    Attributes:
        compiled: Remembers whether steps are compiled, with `compile="inductor"`; else None.
        stacked: How steps are computed together with those of other networks; None if they are not.
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
        replaced_by: str | None = None,
    ) -> None:
        self._mode, self._model, self._epoch = config.compile, model, epoch
        self._sure_steps, self._sure_validation_steps = sure_steps, sure_validation_steps
        self._on_cuda = device.type == "cuda"
        self._train = in_bf16(loss, device) if config.precision == "bf16-mixed" else loss
        self._validate: LossFunction = getattr(loss, "validate", loss)
        self._known_safe, self._watchful = known_safe, watchful
        self._refuse = Refusals(None if self._mode == "auto" else self._mode)
        # Separate, because a training that is recorded all the same may still be refused later.
        self._refuse_capture = Refusals("cuda_graph" if self._mode == "cuda_graph" else None)
        self._slower_way = SlowerWays()
        self._cannot_record = cannot_record() if self._asks_for_recordings else ""
        self._replaced = f"{replaced_by} was asked" if replaced_by else ""
        self._rounding = ROUNDING_IN_BF16 if config.precision == "bf16-mixed" else ROUNDING
        self.compiled = Compiled() if self._mode == "inductor" else None
        self._steps: Tracing | None = None
        self.stacked: Report | None = None

    def gradients(
        self,
        optimizer: Optimizer,
        hand_over: Callable[[Tensor, Sequence[Tensor]], bool] = lambda gradient, parameters: False,
    ) -> Gradients:
        """Return what computes losses and gradients of training batches.

        Args:
            optimizer: Has the parameters.
            hand_over: Stores gradients that lie side by side, see `FlatOptimizer.hand_over`.
        """
        eager = EagerGradients(self._model, self._train)
        if self._replaced:
            if self._mode != "off":
                self._refuse(self._replaced)
            return eager
        if self._cannot_record:
            self._say_that_nothing_is_recorded()
        elif self._mode == "auto" and not self._known_safe:
            logger.info("Steps are computed eagerly: %s.", NOT_KNOWN)
        if not self._records:
            return eager
        from sbi_ignite.capture.verification import TracedGradients

        def parameters() -> Sequence[Tensor]:
            groups = (group["params"] for group in optimizer.param_groups)
            every = [*self._model.parameters(), *(p for group in groups for p in group)]
            return list({id(parameter): parameter for parameter in every}.values())

        fuse = self._mode == "inductor" and not self._on_cuda
        if self._mode == "inductor" and self._on_cuda:
            self._refuse("steps are compiled for the CPU only; on a GPU they run as CUDA graphs")
        self._steps = self._tracing(self._train, self._sure_steps, fuse)
        return TracedGradients(eager, parameters, self._steps, hand_over)

    def losses(self) -> LossFunction:
        """Return what computes the losses of validation batches, without gradients."""
        if not self._records:
            return self._validate
        from sbi_ignite.capture.verification import TracedLosses

        return TracedLosses(
            self._validate, self._tracing(self._validate, self._sure_validation_steps)
        )

    def report(self) -> Report:
        """Return how the steps of training have been computed so far."""
        return self.stacked or self.report_alone()

    def report_alone(self) -> Report:
        """Return how those steps have been computed that no other network took part in."""
        if self._steps is not None:
            return self._steps.report()
        if self._replaced:
            return Report("eager", self._replaced)
        if self._cannot_record:
            return Report("eager", self._cannot_record)
        if self._mode == "auto":
            return Report("eager", NOT_KNOWN)
        return Report("eager", f"compile={self._mode!r}")

    @property
    def not_stacked(self) -> str:
        """Why steps cannot be computed together with those of other networks; "" if they may be."""
        if self._mode in ("off", "inductor"):
            return f"compile={self._mode!r} asks for steps that are computed otherwise"
        if self._watchful:
            return "callbacks with attach() may change a network between any two of its steps"
        report = self.report_alone()
        return "" if self._records and not self._replaced else report.reason

    @property
    def _asks_for_recordings(self) -> bool:
        on_request = self._mode in ("trace", "cuda_graph", "inductor")
        return on_request or (self._mode == "auto" and self._known_safe)

    @property
    def _records(self) -> bool:
        return self._asks_for_recordings and not self._cannot_record

    def _say_that_nothing_is_recorded(self) -> None:
        if self._mode == "auto":
            logger.warning("Steps are not recorded but computed eagerly: %s.", self._cannot_record)
        else:
            self._refuse(self._cannot_record)

    def _after(self, sure_steps: float) -> int:
        """Return how many steps are computed eagerly first."""
        if self._mode == "auto" and sure_steps < STEPS_THAT_PAY:
            return STEPS_BEFORE_TRACING
        return STEPS_TO_SETTLE if self.captures else 0

    @property
    def captures(self) -> bool:
        """Whether recordings run as CUDA graphs where possible."""
        if self._mode in ("auto", "inductor"):
            return self._on_cuda
        return self._mode == "cuda_graph"

    def _tracing(self, loss: LossFunction, sure_steps: float, fuse: bool = False) -> Tracing:
        on_request = self._mode != "auto"
        rules = TracingRules(
            after=self._after(sure_steps),
            after_if_large=0 if on_request else STEPS_TO_SETTLE,
            proofs=PROOFS if on_request else PROOFS_OF_KNOWN,
            record_twice=on_request and not (fuse and self._known_safe),
            must_pay=not on_request,
            every_step=self._watchful,
            capture=self.captures,
            fuse=fuse,
            rounding=self._rounding,
        )
        from sbi_ignite.capture.verification import Tracing

        also: tuple[Any, ...] = () if self._known_safe else (loss,)
        return Tracing(
            self._model,
            also,
            rules,
            self._epoch,
            self._refuse,
            self._refuse_capture,
            self._slower_way,
            self.compiled if fuse else None,
        )


def in_bf16(loss: LossFunction, device: torch.device) -> LossFunction:
    """Return a loss with matrix products in bfloat16; parameters and gradients keep their type.

    Args:
        loss: Losses of a batch.
        device: Where it is computed.
    """

    def mixed(model: Any, batch: Any) -> Tensor:
        try:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                losses = loss(model, batch)
                # Values that are no losses at all are refused elsewhere, with their own message.
                known = isinstance(losses, Tensor) and losses.is_floating_point()
                return losses.float() if known else losses
        except RuntimeError as error:
            if "bfloat16" not in str(error).lower():
                raise
            raise SettingsError(
                "precision='bf16-mixed': this network has an operation that does not take bfloat16 "
                f"({in_a_line(error)}). Leave precision at '32'."
            ) from error

    return mixed
