"""What a user says about one training in, a checked TrainConfig out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from typing_extensions import Self

from sbi_ignite.exceptions import NotYetError
from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.fields import (
    Bool,
    Count,
    Device,
    Duration,
    Fraction,
    FrozenMapping,
    NonNegativeFloat,
    OrNone,
    PositiveFloat,
    PositiveInt,
    Seed,
    choice,
)

__all__ = ["LRSchedule", "TrainConfig"]

_Kind = Literal["plateau", "cosine", "one_cycle"]
_KINDS = ("plateau", "cosine", "one_cycle")
_COMPILE = ("auto", "off", "trace", "inductor", "cuda_graph")


def _precision(value: Any) -> Any:
    # other trainers spell full precision as the number
    return "32" if type(value) is int and value == 32 else value


class LRSchedule(Settings):
    """How the learning rate changes while training.

    Args:
        kind: "plateau", "cosine" or "one_cycle"; may be passed by position.
        warmup_steps: Optimizer steps over which the rate first rises from zero.
        factor: What the rate is multiplied by on a plateau.
        patience: Epochs without improvement that count as a plateau.
        min_lr: The rate below which no schedule goes.
        total_epochs: The length of the schedule; None: the epochs that the training may take.

    Example:
        >>> LRSchedule("plateau", factor=0.3)
        LRSchedule(kind='plateau', factor=0.3)
    """

    leading: ClassVar[tuple[str, ...]] = ("kind",)

    kind: Annotated[_Kind, choice(*_KINDS)] = Field(description="The shape of the schedule.")
    warmup_steps: Count = Field(
        default=0, description="Steps over which the rate first rises from zero."
    )
    factor: Fraction = Field(
        default=0.5, description="What the rate is multiplied by on a plateau."
    )
    patience: Count = Field(
        default=10, description="Epochs without improvement that are a plateau."
    )
    min_lr: NonNegativeFloat = Field(
        default=0.0, description="The rate below which no schedule goes."
    )
    total_epochs: Annotated[PositiveInt | None, OrNone] = Field(
        default=None,
        description="The length of the schedule; None: the epochs that may be trained.",
    )

    if TYPE_CHECKING:  # `kind` may be passed by position, which pydantic cannot say

        def __init__(
            self,
            kind: _Kind,
            *,
            warmup_steps: int = 0,
            factor: float = 0.5,
            patience: int = 10,
            min_lr: float = 0.0,
            total_epochs: int | None = None,
        ) -> None: ...


class TrainConfig(Settings):
    """One training: how long, how fast, on what and with which optimizer.

    The fields are described one by one in `TrainConfig.model_fields`. `training_batch_size` is
    another name of `batch_size`, and `max_num_epochs` of `max_epochs`.

    Raises:
        SettingsError: If a value is wrong, a name is misspelt or both names of a field are given.

    Example:
        >>> TrainConfig(batch_size=100, max_time="01:30:00")
        TrainConfig(batch_size=100, max_time=datetime.timedelta(seconds=5400))
    """

    aliases: ClassVar[Mapping[str, str]] = {
        "training_batch_size": "batch_size",
        "max_num_epochs": "max_epochs",
    }

    batch_size: PositiveInt = Field(
        default=200, description="Rows per optimizer step, over all processes together."
    )
    learning_rate: PositiveFloat = Field(default=5e-4, description="The optimizer's step size.")
    max_epochs: PositiveInt = Field(default=2**31 - 1, description="Epochs to train at most.")
    validation_fraction: Fraction = Field(
        default=0.1, description="The share of the rows that is kept for validation."
    )
    clip_max_norm: Annotated[PositiveFloat | None, OrNone] = Field(
        default=5.0, description="The norm that gradients are clipped to; None: no clipping."
    )
    device: Annotated[Device | None, OrNone] = Field(
        default=None,
        description="Where to train, such as 'cpu' or 'cuda:1'; None: the trainer's device.",
    )
    optimizer: Annotated[
        Literal["adam", "adamw", "sgd"] | Callable[..., Any],
        choice("adam", "adamw", "sgd", call="params -> Optimizer"),
    ] = Field(
        default="adam", description="The optimizer's name, or a callable params -> Optimizer."
    )
    weight_decay: NonNegativeFloat = Field(default=0.0, description="The optimizer's weight decay.")
    lr_schedule: Annotated[
        Annotated[
            _Kind | LRSchedule | Callable[..., Any],
            choice(*_KINDS, instance=LRSchedule, call="optimizer -> scheduler"),
        ]
        | None,
        OrNone,
    ] = Field(
        default=None,
        description="How the learning rate changes: a name, an LRSchedule or a callable.",
    )
    ema_decay: Annotated[Fraction | None, OrNone] = Field(
        default=None, description="Decay of the running average of the weights; None: no averaging."
    )
    max_time: Annotated[Duration | None, OrNone] = Field(
        default=None, description="Time after which training stops cleanly and resumably."
    )
    seed: Annotated[Seed | None, OrNone] = Field(
        default=None,
        description="Seed of this training; None: torch's global random state as it is.",
    )
    compile: Annotated[
        Literal["auto", "off", "trace", "inductor", "cuda_graph"], choice(*_COMPILE)
    ] = Field(default="auto", description="How the training step is compiled.")
    precision: Annotated[
        Literal["32", "bf16-mixed"], choice("32", "bf16-mixed"), BeforeValidator(_precision)
    ] = Field(default="32", description="The precision of the arithmetic.")
    resume_training: Bool = Field(
        default=False, description="Continue the trainer's last training instead of starting anew."
    )
    retrain_from_scratch: Bool = Field(
        default=False, description="Start from a fresh network in a later round."
    )
    discard_prior_samples: Bool = Field(
        default=False, description="Leave out the first round's rows in later rounds."
    )
    show_train_summary: Bool = Field(default=False, description="Print a summary after training.")
    dataloader_kwargs: Annotated[FrozenMapping | None, OrNone] = Field(
        default=None, description="More keywords for the data loaders."
    )
    sbi_compat: Bool = Field(
        default=False,
        description="Give epochs, batches and validation loss sbi's meaning, bit for bit.",
    )

    if TYPE_CHECKING:  # other names and other accepted types, which pydantic cannot say

        def __init__(
            self,
            *,
            batch_size: int = 200,
            training_batch_size: int = 200,
            learning_rate: float = 5e-4,
            max_epochs: int = 2**31 - 1,
            max_num_epochs: int = 2**31 - 1,
            validation_fraction: float = 0.1,
            clip_max_norm: float | None = 5.0,
            device: str | None = None,
            optimizer: Literal["adam", "adamw", "sgd"] | Callable[..., Any] = "adam",
            weight_decay: float = 0.0,
            lr_schedule: _Kind | LRSchedule | Callable[..., Any] | None = None,
            ema_decay: float | None = None,
            max_time: timedelta | float | str | None = None,
            seed: int | None = None,
            compile: Literal["auto", "off", "trace", "inductor", "cuda_graph"] = "auto",
            precision: Literal["32", "bf16-mixed"] = "32",
            resume_training: bool = False,
            retrain_from_scratch: bool = False,
            discard_prior_samples: bool = False,
            show_train_summary: bool = False,
            dataloader_kwargs: Mapping[str, Any] | None = None,
            sbi_compat: bool = False,
        ) -> None: ...

    @classmethod
    def fast(cls, **overrides: object) -> Self:
        """Give the recommended recipe: schedule, rate, batch size and averaging.

        Args:
            **overrides: Fields that replace the recipe's.

        Raises:
            NotYetError: Always, until the benchmark that finds the recipe has been run.
        """
        raise NotYetError(
            "TrainConfig.fast() is not available yet: its recipe has not been measured; "
            "name the fields yourself, e.g. TrainConfig(lr_schedule='plateau')"
        )
