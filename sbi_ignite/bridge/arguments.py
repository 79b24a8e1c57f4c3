"""Parse and check the arguments of a `.train()` call.

The call may be in sbi's form (its keywords, by position or by name), in the typed form (a
`TrainConfig` and `LossArgs`), or mixed. What the call asks for is decided once, here;
`train.py` only carries it out.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sbi_ignite.bridge.lines import SbiTrainConfig
from sbi_ignite.exceptions import ArgumentError
from sbi_ignite.handlers.callbacks import as_callbacks
from sbi_ignite.methods.base import LossArgs, Method
from sbi_ignite.methods.table import loss_keywords, method_of
from sbi_ignite.settings import Resolved, TrainConfig, resolve
from sbi_ignite.world import ONE, World

SBI_NAMES = {
    "batch_size": "training_batch_size",
    "learning_rate": "learning_rate",
    "validation_fraction": "validation_fraction",
    "max_epochs": "max_num_epochs",
    "clip_max_norm": "clip_max_norm",
    "resume_training": "resume_training",
    "retrain_from_scratch": "retrain_from_scratch",
    "discard_prior_samples": "discard_prior_samples",
    "show_train_summary": "show_train_summary",
    "dataloader_kwargs": "dataloader_kwargs",
}
"""Fields of TrainConfig and the keywords that sbi's `train()` has for them."""

LOSS_KEYWORDS = loss_keywords()
"""sbi's keywords that loss arguments stand for."""

NEW_ARGUMENTS = ("logging", "early_stopping", "checkpoint", "callbacks", "init_from", "validation")


@dataclass(frozen=True)
class Call:
    """One call of `.train()`, parsed.

    Attributes:
        trainer: The trainer that was called.
        method: Its method.
        settings: All settings with their origins.
        keywords: What sbi's own `train()` is called with.
        exclude_invalid_x: Whether to drop rows with NaN or Inf in x; None leaves them.
        ema_loss_decay: Weight of the newest loss in sbi's running averages of vector fields.
        callbacks: Users' callbacks and ignite handlers.
        sbi_form: Whether the call has only sbi's keywords.
        init_from: Where the first weights come from; None leaves those that the network has.
        validation: The user's own validation set; None splits the simulations.
        world: The processes that carry it out together.
    """

    trainer: Any
    method: Method
    settings: Resolved
    keywords: Mapping[str, Any]
    exclude_invalid_x: bool | None
    ema_loss_decay: float
    callbacks: Sequence[Any]
    sbi_form: bool = False
    init_from: Any = None
    validation: Any = None
    world: World = ONE

    @property
    def sbi_compat(self) -> bool:
        """Whether sbi's semantics hold, bit for bit."""
        return self.settings.train.sbi_compat

    def with_recipe(self, num_rows: int) -> Call:
        """Return the call with its recipe, if any, filled in for this number of training rows."""
        filled = self.settings.with_recipe(num_rows, contrastive=self.method.contrasts)
        return replace(self, settings=filled)

    @property
    def logs_to_screen(self) -> bool:
        """Whether a logger shows progress, so that sbi's own lines would be redundant."""
        return any(getattr(asked, "backend", None) == "stdout" for asked in self.settings.logging)


def parse_call(
    trainer: Any, sbi_train: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Call:
    """Parse one call of `.train()`.

    Args:
        trainer: The trainer that was called.
        sbi_train: sbi's own `train` function of its class.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.

    Returns:
        The checked call; nothing has been done yet.

    Raises:
        ArgumentError: If an argument is unknown, of the wrong type, or given twice.
        SettingsError: If a value is not valid.
    """
    method = method_of(type(trainer))
    parameters = _parameters(sbi_train)
    kwargs = dict(kwargs)
    new = {name: kwargs.pop(name, None) for name in NEW_ARGUMENTS}
    config, loss_args, sbi = _split(trainer, args, kwargs, parameters, method)
    exclude_invalid_x = _merge_loss_args(trainer, loss_args, sbi, parameters)

    settings = resolve(
        train=config,
        keywords={name: value for name, value in sbi.items() if name in SBI_NAMES.values()},
        early_stopping=new["early_stopping"],
        stop_after_epochs=sbi.get("stop_after_epochs"),
        logging=new["logging"],
        checkpoint=new["checkpoint"],
        defaults={} if config is not None else {"sbi_compat": True},
        default_early_stopping=method.default_rule,
    )
    _add_settings(trainer, sbi, settings, parameters)
    return Call(
        trainer=trainer,
        method=method,
        settings=settings,
        keywords=sbi,
        exclude_invalid_x=exclude_invalid_x,
        ema_loss_decay=sbi.get("ema_loss_decay", 0.1),
        callbacks=as_callbacks(new["callbacks"]),
        sbi_form=config is None,
        init_from=new["init_from"],
        validation=new["validation"],
    )


def _parameters(sbi_train: Callable[..., Any]) -> list[str]:
    """Return the names of sbi's parameters, in order, without self."""
    return list(inspect.signature(sbi_train).parameters)[1:]


def _split(
    trainer: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    parameters: list[str],
    method: Method,
) -> tuple[TrainConfig | None, LossArgs | None, dict[str, Any]]:
    """Separate the typed arguments from sbi's, which are returned by name."""
    config, loss_args = kwargs.pop("train_config", None), kwargs.pop("loss_args", None)
    legacy = list(args)
    if legacy and (legacy[0] is None or isinstance(legacy[0], TrainConfig)):
        config = _once("train_config", config, legacy.pop(0))
        if legacy and (legacy[0] is None or isinstance(legacy[0], LossArgs)):
            loss_args = _once("loss_args", loss_args, legacy.pop(0))
        if legacy:
            raise _wrong_argument(trainer, "loss_args", method.loss_args.__name__, legacy[0])
    elif legacy and isinstance(legacy[0], LossArgs | SbiTrainConfig | Mapping):
        raise _wrong_argument(trainer, "train_config", "TrainConfig from sbi_ignite", legacy[0])
    if config is not None and not isinstance(config, TrainConfig):
        raise _wrong_argument(trainer, "train_config", "TrainConfig from sbi_ignite", config)
    _check_loss_args(trainer, loss_args, method)
    return config, loss_args, _named(trainer, legacy, kwargs, parameters)


def _once(name: str, keyword: Any, positional: Any) -> Any:
    """Return an argument that may come by name or by position."""
    if keyword is not None and positional is not None:
        raise ArgumentError(f"{name} is given twice: by position and by name.")
    return positional if keyword is None else keyword


def _wrong_argument(trainer: Any, name: str, expected: str, found: Any) -> ArgumentError:
    """Return the error for an argument of the wrong type."""
    return ArgumentError(
        f"{type(trainer).__name__}.train(): expected a {expected} (or None) as {name}, got "
        f"{type(found).__name__}. Accepted are train(TrainConfig, LossArgs, ...) and sbi's own "
        "keywords."
    )


def _check_loss_args(trainer: Any, loss_args: Any, method: Method) -> None:
    """Refuse loss arguments of another method; the base class fits every method."""
    if loss_args is None or type(loss_args) in (LossArgs, method.loss_args):
        return
    raise ArgumentError(
        f"{type(trainer).__name__}.train(): expected {method.loss_args.__name__} as loss_args, got "
        f"{type(loss_args).__name__}."
    )


def _named(
    trainer: Any, positional: list[Any], kwargs: dict[str, Any], parameters: list[str]
) -> dict[str, Any]:
    """Return sbi's arguments by name."""
    known = [*parameters, "exclude_invalid_x"]
    name = type(trainer).__name__
    if len(positional) > len(parameters):
        raise ArgumentError(
            f"{name}.train() takes at most {len(parameters)} positional arguments of sbi's "
            f"({', '.join(parameters)}), got {len(positional)}."
        )
    sbi = dict(zip(parameters, positional, strict=False))
    for keyword, value in kwargs.items():
        if keyword in sbi:
            raise ArgumentError(f"{name}.train(): {keyword} is given by position and by name.")
        if keyword not in known:
            close = difflib.get_close_matches(keyword, [*known, *NEW_ARGUMENTS], n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ArgumentError(
                f"{name}.train() has no argument {keyword!r}.{hint} Accepted: train_config, "
                f"loss_args, {', '.join([*NEW_ARGUMENTS, *known])}."
            )
        sbi[keyword] = value
    return sbi


def _merge_loss_args(
    trainer: Any, loss_args: LossArgs | None, sbi: dict[str, Any], parameters: list[str]
) -> bool | None:
    """Copy loss arguments that were set into sbi's keywords; return `exclude_invalid_x`."""
    passed = dict.fromkeys(loss_args.model_fields_set) if loss_args is not None else {}
    for name in passed:
        if name in sbi:
            raise ArgumentError(
                f"{name} is given twice: by train({name}=...) and by "
                f"{type(loss_args).__name__}({name}=...)."
            )
        if name not in parameters and name != "exclude_invalid_x":
            known = ", ".join(n for n in LOSS_KEYWORDS if n in parameters) or "no loss arguments"
            raise ArgumentError(
                f"{type(loss_args).__name__}: {type(trainer).__name__} has no {name}; it takes "
                f"{known}."
            )
        sbi[name] = getattr(loss_args, name)
    exclude = sbi.pop("exclude_invalid_x", None)
    if exclude is not None and not isinstance(exclude, bool):
        raise ArgumentError(f"exclude_invalid_x: expected True, False or None, got {exclude!r}.")
    return exclude


def _add_settings(
    trainer: Any, sbi: dict[str, Any], settings: Resolved, parameters: list[str]
) -> None:
    """Complete sbi's keywords from TrainConfig, environment and file."""
    for field, keyword in SBI_NAMES.items():
        origin = settings.origin(f"train.{field}")
        value = getattr(settings.train, field)
        if keyword in parameters:
            if origin.source != "default":
                sbi[keyword] = dict(value) if isinstance(value, Mapping) else value
        elif origin.source == "call" and value != type(settings.train).model_fields[field].default:
            raise ArgumentError(f"{type(trainer).__name__}.train() has no {keyword}; leave it out.")
