"""Settings for one stage of a training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.field_types import (
    Bool,
    Count,
    NonNegativeFloat,
    OrNone,
    PositiveFloat,
    PositiveInt,
    number_or,
)

__all__ = ["Stage"]


class Stage(Settings):
    """One of the stages that a training goes through.

    A stage ends once both `patience` epochs and `patience_steps` optimizer steps have passed
    without an improvement of the stage's validation loss, or when it has become too long.
    Improvements smaller than `min_improvement` add up until they count; the best weights are kept
    either way.
    The next one starts from the best weights so far. The end of the last stage ends the training,
    with the stop reason "patience".

    Args:
        lr_factor: What the learning rate, or whatever the schedule makes of it, is multiplied by.
        weight_decay: The optimizer's weight decay in this stage; None: that of the TrainConfig;
            "best": that of the stage which has reached the best validation loss.
        patience: Epochs without improvement to wait for, at least.
        patience_steps: Optimizer steps without improvement to wait for, at least.
        min_improvement: How far the loss must fall to count as an improvement, in units of its
            uncertainty, `TrainingState.validation_error`. It has no effect where that is unknown:
            without validation, and where a loss function returns means of batches.
        max_epochs: Maximum length in epochs; None: unbounded.
        max_relative_length: Maximum length as a multiple of all earlier stages' epochs together;
            None: unbounded. The first stage, which has none before it, takes None only.
        average_best: How many of the epochs so far, those with the lowest validation losses, are
            averaged in their weights at the stage's end. The mean replaces the best weights unless
            its validation loss is above the mean of theirs. That many copies of the weights are
            kept, and go into checkpoints. 1: no mean; without validation data there is none either.
        restart: Start from the best weights so far; False: from the last ones.
        reset_optimizer: Start with an optimizer that remembers no earlier gradients.
        reset_average: Start a new average of the weights; False: the average continues.

    Example:
        >>> Stage(lr_factor=0.3, weight_decay="best", patience=5)
        Stage(lr_factor=0.3, weight_decay='best', patience=5)
    """

    lr_factor: PositiveFloat = Field(
        default=1.0, description="What the learning rate is multiplied by."
    )
    weight_decay: Annotated[
        Annotated[float | Literal["best"], number_or("best")] | None, OrNone
    ] = Field(
        default=None,
        description="The weight decay; None: the TrainConfig's; 'best': the best stage's.",
    )
    patience: PositiveInt = Field(
        default=20, description="Epochs without improvement to let pass, at least."
    )
    patience_steps: Count = Field(
        default=0, description="Optimizer steps without improvement to let pass, at least."
    )
    min_improvement: NonNegativeFloat = Field(
        default=0.0, description="How far the loss must fall to count, in its standard errors."
    )
    max_epochs: Annotated[PositiveInt | None, OrNone] = Field(
        default=None, description="Length in epochs at most; None: unbounded."
    )
    max_relative_length: Annotated[PositiveFloat | None, OrNone] = Field(
        default=None,
        description="Length at most, in lengths of all earlier stages; None: unbounded.",
    )
    average_best: PositiveInt = Field(
        default=1, description="How many of the best epochs to average at the stage's end."
    )
    restart: Bool = Field(default=True, description="Start from the best weights so far.")
    reset_optimizer: Bool = Field(
        default=False, description="Start with an optimizer without memory."
    )
    reset_average: Bool = Field(default=False, description="Start a new average of the weights.")
