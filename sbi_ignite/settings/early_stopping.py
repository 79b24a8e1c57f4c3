"""Settings for early stopping; the rule of each kind is the page of that name in handlers/rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import Self, override

from sbi_ignite.exceptions import SettingsError
from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.errors import refuse_foreign
from sbi_ignite.settings.field_types import NonNegativeFloat, PositiveInt, choice
from sbi_ignite.settings.origin import Origin

__all__ = ["EarlyStopping", "Kind"]

Kind = Literal["validation_loss", "two_standard_deviations", "lr_threshold", "when", "never"]

# A kind that takes "patience" trains at least that many epochs.
_TAKES: Mapping[str, tuple[str, ...]] = {
    "validation_loss": ("patience", "min_delta"),
    "two_standard_deviations": ("patience",),
    "lr_threshold": ("min_lr",),
    "when": ("rule",),
    "never": (),
}


class EarlyStopping(Settings):
    """One rule that ends a training before its last epoch.

    Use the constructors `validation_loss`, `two_standard_deviations`, `lr_threshold`, `when` and
    `never`; they take just the fields that their rule has.

    Example:
        >>> EarlyStopping.validation_loss(patience=10)
        EarlyStopping(kind='validation_loss', patience=10, min_delta=0.0)
    """

    takes: ClassVar[Mapping[str, tuple[str, ...]]] = _TAKES
    """The fields that each kind of rule has."""

    kind: Annotated[Kind, choice(*_TAKES)] = Field(
        default="validation_loss", description="Which rule ends the training."
    )
    patience: PositiveInt = Field(
        default=20, description="Epochs without improvement after which training stops."
    )
    min_delta: NonNegativeFloat = Field(
        default=0.0,
        description="How much the loss must fall below the best to count as improvement.",
    )
    min_lr: NonNegativeFloat = Field(
        default=1e-6, description="The learning rate below which training stops."
    )
    rule: Annotated[Callable[..., object], choice(call="state -> bool")] | None = Field(
        default=None, description="A callable on the training state that says when to stop."
    )

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that this rule has, `kind` first."""
        return ("kind", *self.takes[self.kind])

    @classmethod
    def validation_loss(cls, patience: int = 20, min_delta: float = 0.0) -> Self:
        """Stop when the validation loss has not improved for `patience` epochs.

        Args:
            patience: Epochs without improvement.
            min_delta: How far below the best the loss must fall to count as improvement.
        """
        return cls(kind="validation_loss", patience=patience, min_delta=min_delta)

    @classmethod
    def two_standard_deviations(cls, patience: int = 20) -> Self:
        """Stop by sbi's rule for FMPE and NPSE, which allows for the noise of the loss.

        Args:
            patience: Epochs without improvement.
        """
        return cls(kind="two_standard_deviations", patience=patience)

    @classmethod
    def lr_threshold(cls, min_lr: float = 1e-6) -> Self:
        """Stop when the learning rate has fallen below a threshold.

        Args:
            min_lr: The threshold.
        """
        return cls(kind="lr_threshold", min_lr=min_lr)

    @classmethod
    def when(cls, rule: Callable[..., object]) -> Self:
        """Stop when a callable says so.

        Args:
            rule: Called once per epoch with the training state; a true result stops training.
        """
        return cls(kind="when", rule=rule)

    @classmethod
    def never(cls) -> Self:
        """Train all epochs."""
        return cls(kind="never")

    @override
    def _check(self, origins: Mapping[str, Origin]) -> None:
        if self.kind == "when" and self.rule is None:
            origin = origins.get("kind", Origin("call", "EarlyStopping(kind=...)"))
            raise SettingsError(
                "EarlyStopping.rule: kind 'when' needs a callable, which can be passed from "
                f"Python only, as EarlyStopping.when(rule); got kind 'when' from {origin}"
            )
        refuse_foreign(self, "kind", self.takes, origins)
