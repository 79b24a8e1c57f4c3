"""The settings of one training, `TrainConfig`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from typing_extensions import Self, override

from sbi_ignite.exceptions import SettingsError
from sbi_ignite.settings.averaging import AveragingKind, WeightAveraging
from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.field_types import (
    NO_LIMIT,
    Bool,
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
    settings_or,
    several,
)
from sbi_ignite.settings.origin import Origin
from sbi_ignite.settings.recipe import RECIPES
from sbi_ignite.settings.redaction import shorten
from sbi_ignite.settings.schedule import KINDS, Kind, LRSchedule
from sbi_ignite.settings.stage import Stage

__all__ = ["TrainConfig"]

_COMPILE = ("auto", "off", "trace", "inductor", "cuda_graph")


def _precision(value: Any) -> Any:
    # other trainers spell full precision as the number
    return "32" if type(value) is int and value == 32 else value


class TrainConfig(Settings):
    """One training: how long, how fast, on what and with which optimizer.

    The fields are described one by one in `TrainConfig.model_fields`. `training_batch_size` is
    another name of `batch_size`, and `max_num_epochs` of `max_epochs`.

    A part of the network without trainable parameters that is in evaluation mode when training
    starts, such as a frozen embedding after `.eval()`, stays in it: its BatchNorm keeps its
    statistics, its Dropout stays off. With `sbi_compat`, all parts are trained in training mode, as
    in sbi.

    Raises:
        SettingsError: If a value is wrong, a name is misspelt, both names of a field are given, or
            two fields set one thing: `averaging` and `ema_decay`; a callable `optimizer`, which
            makes its own, and `learning_rate` or `weight_decay`; `batch_size` and one in
            `dataloader_kwargs`; `recipe` and `sbi_compat`.

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
    max_epochs: PositiveInt = Field(
        default=NO_LIMIT,
        description="Epochs to train at most; without a limit, stopping rules end the training.",
    )
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
        default="adam",
        description="The optimizer's name, or a callable params -> Optimizer, which then decides "
        "about rate and weight decay.",
    )
    weight_decay: NonNegativeFloat = Field(default=0.0, description="The optimizer's weight decay.")
    lr_schedule: Annotated[
        Annotated[
            Kind | LRSchedule | Callable[..., Any],
            choice(*KINDS, instance=LRSchedule, call="optimizer -> scheduler"),
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
    averaging: Annotated[
        Annotated[
            AveragingKind | WeightAveraging,
            settings_or(choice("ema", "power", instance=WeightAveraging)),
        ]
        | None,
        OrNone,
    ] = Field(
        default=None,
        description="How the weights are averaged: a name or a WeightAveraging; else ema_decay.",
    )
    stages: Annotated[tuple[Stage, ...], several(Stage)] = Field(
        default=(),
        description="What changes when the loss no longer falls; the last one's end is the end.",
    )
    recipe: Annotated[
        Annotated[Literal["fast"], choice(*RECIPES)] | None,
        OrNone,
    ] = Field(
        default=None,
        description="A recipe that fills in what nobody set, by the number of training rows.",
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
    ] = Field(
        default="auto",
        description="How steps are computed: 'auto' traces networks known to be safe, and on a "
        "GPU launches a traced step at once, 'trace' traces all that prove equal to eager steps, "
        "'cuda_graph' does both; 'inductor' compiles what 'trace' records, up to rounding; 'off' "
        "leaves them to torch.",
    )
    precision: Annotated[
        Literal["32", "bf16-mixed"], choice("32", "bf16-mixed"), BeforeValidator(_precision)
    ] = Field(
        default="32",
        description="'bf16-mixed' computes training losses in bfloat16; weights keep 32 bits.",
    )
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
    shards: Annotated[Literal["same", "own", "alone"], choice("same", "own", "alone")] = Field(
        default="same",
        description="What several processes (torchrun, srun) hold: all of them the 'same' rows, "
        "each its 'own' part of the rows; or 'alone': each trains a network by itself.",
    )
    process_timeout: Duration = Field(
        default=timedelta(seconds=60),
        description="How long one of several processes waits for the others before it ends.",
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
            max_epochs: int = NO_LIMIT,
            max_num_epochs: int = NO_LIMIT,
            validation_fraction: float = 0.1,
            clip_max_norm: float | None = 5.0,
            device: str | None = None,
            optimizer: Literal["adam", "adamw", "sgd"] | Callable[..., Any] = "adam",
            weight_decay: float = 0.0,
            lr_schedule: Kind | LRSchedule | Callable[..., Any] | None = None,
            ema_decay: float | None = None,
            averaging: AveragingKind | WeightAveraging | None = None,
            stages: Sequence[Stage] = (),
            recipe: Literal["fast"] | None = None,
            max_time: timedelta | float | str | None = None,
            seed: int | None = None,
            compile: Literal["auto", "off", "trace", "inductor", "cuda_graph"] = "auto",
            precision: Literal["32", "bf16-mixed"] = "32",
            resume_training: bool = False,
            retrain_from_scratch: bool = False,
            discard_prior_samples: bool = False,
            show_train_summary: bool = False,
            dataloader_kwargs: Mapping[str, Any] | None = None,
            shards: Literal["same", "own", "alone"] = "same",
            process_timeout: timedelta | float | str = ...,
            sbi_compat: bool = False,
        ) -> None: ...

    @classmethod
    def fast(cls, **overrides: Any) -> Self:
        """Return the recommended recipe: rate, batch size, optimizer, averaging and stages.

        `.train()` fills in what was not set once it knows the number of training rows; ratio
        estimation has numbers of its own. The summary, the manifest and the loggers show the
        values, with the origin "recipe". What is set here, by keywords, by the environment or in a
        file is left alone. The recipe's stages end the training; an `early_stopping` that is asked
        for may end it sooner. In the environment the recipe is chosen by
        SBI_IGNITE_TRAIN__RECIPE=fast, also for scripts with sbi's keywords.

        Args:
            **overrides: Fields that replace the recipe's.

        Returns:
            The settings, which are `TrainConfig(recipe="fast", **overrides)`.

        Raises:
            SettingsError: If a value is wrong, or `sbi_compat` is asked for, which no recipe keeps.

        Example:
            >>> TrainConfig.fast(max_epochs=100)
            TrainConfig(max_epochs=100, recipe='fast')
        """
        return cls(**{"recipe": "fast", **overrides})

    @property
    def averages(self) -> WeightAveraging | None:
        """How the weights are averaged, by whichever name it was asked for, or None."""
        if self.ema_decay is not None:
            return WeightAveraging("ema", decay=self.ema_decay)
        return (
            WeightAveraging(self.averaging) if isinstance(self.averaging, str) else self.averaging
        )

    @property
    def schedule(self) -> LRSchedule | Callable[..., Any] | None:
        """How the rate changes, where a name alone stands for its `LRSchedule`."""
        if self.lr_schedule is None or callable(self.lr_schedule):
            return self.lr_schedule
        named = self.lr_schedule
        return named if isinstance(named, LRSchedule) else LRSchedule(named)

    @override
    def _check(self, origins: Mapping[str, Origin]) -> None:
        if self.ema_decay is not None and self.averaging is not None:
            raise SettingsError(
                "TrainConfig.averaging and TrainConfig.ema_decay both average the weights: "
                f"expected one of them, got averaging from {_origin(origins, 'averaging')} and "
                f"ema_decay from {_origin(origins, 'ema_decay')}"
            )
        self._check_optimizer(origins)
        self._check_batches(origins)
        self._check_stages(origins)
        if self.recipe is not None and self.sbi_compat:
            raise SettingsError(
                "TrainConfig.sbi_compat: a recipe does not train as sbi does, expected one of the "
                f"two, got recipe={self.recipe!r} from {_origin(origins, 'recipe')} and "
                f"sbi_compat=True from {_origin(origins, 'sbi_compat')}"
            )

    def _check_optimizer(self, origins: Mapping[str, Origin]) -> None:
        for name, argument in (("learning_rate", "lr"), ("weight_decay", "weight_decay")):
            if callable(self.optimizer) and name in self.model_fields_set:
                raise SettingsError(
                    f"TrainConfig.{name}: a callable optimizer decides about it, expected one of "
                    f"the two, got {name}={getattr(self, name)!r} from {_origin(origins, name)} "
                    f"and optimizer={shorten(self.optimizer)} from "
                    f"{_origin(origins, 'optimizer')}. Leave {name} out and let the callable set "
                    f"its {argument}, or name the optimizer: 'adam', 'adamw' or 'sgd'"
                )

    def _check_batches(self, origins: Mapping[str, Origin]) -> None:
        said = self.dataloader_kwargs or {}
        asked = [n for n in ("batch_size", "batch_sampler") if said.get(n) is not None]
        if not asked or "batch_size" not in self.model_fields_set:
            return
        sources = _origin(origins, "batch_size"), _origin(origins, "dataloader_kwargs")
        if self.sbi_compat and all(origin.where.startswith("train(") for origin in sources):
            return  # sbi's own keywords: the loader's counts, as in sbi
        raise SettingsError(
            f"TrainConfig.batch_size: dataloader_kwargs has a {asked[0]}, expected one of the two, "
            f"got batch_size={self.batch_size} from {sources[0]} and "
            f"{asked[0]}={shorten((self.dataloader_kwargs or {})[asked[0]])} from {sources[1]}. "
            "Leave one of them out"
        )

    def _check_stages(self, origins: Mapping[str, Origin]) -> None:
        first = self.stages[0] if self.stages else None
        if first is not None and first.max_relative_length is not None:
            raise SettingsError(
                "TrainConfig.stages: max_relative_length of the first stage has no earlier stages "
                f"to be relative to, got {first.max_relative_length!r} from "
                f"{_origin(origins, 'stages')}. Bound that stage by max_epochs"
            )


def _origin(origins: Mapping[str, Origin], name: str) -> Origin:
    return origins.get(name, Origin("call", f"TrainConfig({name}=...)"))
