"""Settings for the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from sbi_ignite.exceptions import SettingsError
from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.errors import refuse_foreign
from sbi_ignite.settings.field_types import (
    Count,
    Fraction,
    NonNegativeFloat,
    OrNone,
    PositiveInt,
    choice,
)
from sbi_ignite.settings.origin import Origin
from sbi_ignite.settings.serialization import plain

__all__ = ["KINDS", "Kind", "LRSchedule", "same_course"]

Kind = Literal["constant", "plateau", "cosine", "one_cycle"]

_TAKES: Mapping[str, tuple[str, ...]] = {
    "constant": ("warmup_steps", "warmup_start"),
    "plateau": ("warmup_steps", "warmup_start", "factor", "patience", "min_lr"),
    "cosine": ("warmup_steps", "warmup_start", "min_lr", "total_epochs", "on_extend"),
    "one_cycle": ("warmup_steps", "min_lr", "total_epochs", "on_extend"),
}
_ON_EXTEND = ("keep", "stretch")
KINDS = tuple(_TAKES)


class LRSchedule(Settings):
    """How the learning rate changes while training, by torch's own schedulers.

    * "constant": `learning_rate` throughout, after the warm-up.
    * "plateau": `ReduceLROnPlateau`, asked after every epoch that follows the warm-up.
    * "cosine": `CosineAnnealingLR`, after every optimizer step, from the warm-up to the end.
    * "one_cycle": `OneCycleLR`, after every optimizer step, with `learning_rate` as its peak; the
      optimizer's momentum is left alone. Its rise is its warm-up.

    A cosine or a cycle needs a length. It is `total_epochs`, else the `max_epochs` that was asked
    for, else `300 * sqrt(1000 / N)` epochs for N training rows, at least 30 and at most 300. Where
    no `max_epochs` was asked for, the training ends with its schedule; where it goes on longer, the
    last rate is kept. Without a `min_lr` that is next to nothing, so a `total_epochs` below
    `max_epochs` then warns. A resumed training keeps the length with which it began. Resuming with
    more epochs is refused, because they would train at that last rate, unless there is a `min_lr`
    above 0, or `on_extend="stretch"` asks for the longer schedule.

    Args:
        kind: "constant", "plateau", "cosine" or "one_cycle"; may be passed by position.
        warmup_steps: Optimizer steps over which the rate first rises: linearly, or for "one_cycle"
            the way a cycle rises. 0: no warm-up, and for "one_cycle" 30 % of the whole.
        warmup_start: The rate at the first step, as a share of `learning_rate`; None:
            `1 / (warmup_steps + 1)`.
        factor: What the rate is multiplied by on a plateau.
        patience: Epochs without improvement that count as a plateau.
        min_lr: The rate at which a schedule ends.
        total_epochs: The length of a cosine or a cycle; None: see above.
        on_extend: What happens to a cosine or a cycle when its training is resumed with more
            epochs. "keep": it keeps its length. "stretch": it becomes as long as the training, and
            its rates are from then on those of a schedule that had this length from the start.

    Raises:
        SettingsError: If a field was set that this kind does not have, or a `warmup_start` without
            `warmup_steps`.

    Example:
        >>> LRSchedule("plateau", factor=0.3)
        LRSchedule(kind='plateau', factor=0.3)
    """

    leading: ClassVar[tuple[str, ...]] = ("kind",)

    kind: Annotated[Kind, choice(*KINDS)] = Field(description="The shape of the schedule.")
    warmup_steps: Count = Field(default=0, description="Steps over which the rate first rises.")
    warmup_start: Annotated[Fraction | None, OrNone] = Field(
        default=None,
        description="Share of the rate at which it rises; None: 1 / (warmup_steps + 1).",
    )
    factor: Fraction = Field(
        default=0.5, description="What the rate is multiplied by on a plateau."
    )
    patience: Count = Field(
        default=10, description="Epochs without improvement that are a plateau."
    )
    min_lr: NonNegativeFloat = Field(
        default=0.0, description="The rate at which the schedule ends."
    )
    total_epochs: Annotated[PositiveInt | None, OrNone] = Field(
        default=None,
        description="The length of the schedule; None: max_epochs, or by the number of rows.",
    )
    on_extend: Annotated[Literal["keep", "stretch"], choice(*_ON_EXTEND)] = Field(
        default="keep",
        description="Whether more epochs 'keep' a resumed schedule's length or 'stretch' it.",
    )

    if TYPE_CHECKING:  # `kind` may be passed by position, which pydantic cannot say

        def __init__(
            self,
            kind: Kind,
            *,
            warmup_steps: int = 0,
            warmup_start: float | None = None,
            factor: float = 0.5,
            patience: int = 10,
            min_lr: float = 0.0,
            total_epochs: int | None = None,
            on_extend: Literal["keep", "stretch"] = "keep",
        ) -> None: ...

    @property
    def needs_length(self) -> bool:
        """Whether the shape depends on when the schedule ends."""
        return self.kind in ("cosine", "one_cycle")

    @override
    def _check(self, origins: Mapping[str, Origin]) -> None:
        refuse_foreign(self, "kind", _TAKES, origins)
        if self.warmup_start is not None and not self.warmup_steps:
            origin = origins.get("warmup_start", Origin("call", "LRSchedule(warmup_start=...)"))
            raise SettingsError(
                "LRSchedule.warmup_start: expected warmup_steps of at least 1 beside it, without "
                f"which no rate rises, got {self.warmup_start!r} from {origin}"
            )


def same_course(before: Any, after: Any) -> bool:
    """Say whether two schedules, as plain data, give a run the same rates throughout.

    Args:
        before: That of a run: a kind, the fields of an `LRSchedule`, or the name of a callable.
        after: That of its continuation, which may ask for it to be stretched.

    Example:
        >>> same_course("cosine", {"kind": "cosine", "on_extend": "stretch"})
        True
    """
    first, second = _fields(before), _fields(after)
    if first is None or second is None:
        return before == after
    free = {"on_extend", *(["total_epochs"] if second["on_extend"] == "stretch" else [])}
    return all(first[name] == second[name] for name in first.keys() - free)


def _fields(schedule: Any) -> dict[str, Any] | None:
    """Return all fields of a schedule, by whichever name it was asked for; None for a callable."""
    said = schedule if isinstance(schedule, Mapping) else {"kind": schedule}
    kind = said.get("kind")
    return {**plain(LRSchedule(kind)), **said} if kind in KINDS else None
