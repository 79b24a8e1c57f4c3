"""Settings for averaging the weights over a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.errors import refuse_foreign
from sbi_ignite.settings.field_types import Fraction, PositiveFloat, choice
from sbi_ignite.settings.origin import Origin

__all__ = ["AveragingKind", "WeightAveraging"]

AveragingKind = Literal["ema", "power"]

_TAKES: Mapping[str, tuple[str, ...]] = {"ema": ("decay",), "power": ("factor",)}


class WeightAveraging(Settings):
    """A running average of the weights, which is validated, selected and returned.

    After optimizer step k (counted from 1), `average += share * (weights - average)`:

    * "ema": share `1 - decay`, an average over about the last `1 / (1 - decay)` steps
      (Polyak and Juditsky, 1992, with a constant decay); the first step sets the average.
    * "power": share `min(1, factor / k)`, an average over about the last `k / factor` of the
      steps, which therefore forgets the beginning, however long the training (the
      polynomial-decay averaging of Shamir and Zhang, 2013, with eta = factor - 1).

    Training itself continues from the plain weights. Buffers, such as the statistics of a batch
    norm, are not averaged: those of the training are used, as in torch's `AveragedModel`.

    Args:
        kind: "ema" or "power"; may be passed by position.
        decay: Share of the old average that an "ema" keeps in a step.
        factor: How fast a "power" average forgets; 1 is the plain mean of all steps.

    Raises:
        SettingsError: If a field was set that this kind does not have.

    Example:
        >>> WeightAveraging("power", factor=8.0).share(16)
        0.5
    """

    leading: ClassVar[tuple[str, ...]] = ("kind",)

    kind: Annotated[AveragingKind, choice(*_TAKES)] = Field(
        description="How the share of the newest weights depends on the step."
    )
    decay: Fraction = Field(
        default=0.999, description="Share of the old average that an ema keeps in a step."
    )
    factor: PositiveFloat = Field(default=10.0, description="How fast a power average forgets.")

    if TYPE_CHECKING:  # `kind` may be passed by position, which pydantic cannot say

        def __init__(
            self, kind: AveragingKind, *, decay: float = 0.999, factor: float = 10.0
        ) -> None: ...

    def share(self, step: int) -> float:
        """Return the share that the weights after a step get in the average.

        Args:
            step: Number of the optimizer step, from 1.
        """
        if self.kind == "power":
            return min(1.0, self.factor / step)
        return 1.0 if step == 1 else 1.0 - self.decay

    @override
    def _check(self, origins: Mapping[str, Origin]) -> None:
        refuse_foreign(self, "kind", _TAKES, origins)
