"""Compare settings with the arguments of a training, and note what the arguments decide.

Asking for one thing twice is an error that names both requests. Below, a "field" was set by a
TrainConfig or a keyword; an argument overrides environment and file for the same thing.

| `run_training(...)` | field of TrainConfig | both given |
|---|---|---|
| `optimizer` | `optimizer` | error; an argument wins over environment and file |
| `optimizer` | `learning_rate`, `weight_decay` | error if the optimizer has others, from anywhere |
| `scheduler` | `lr_schedule` | error; an argument wins over environment and file |
| `device` | `device` | error if they differ; an argument wins over environment and file |
| `train_loader` | `batch_size` | error if they differ; the loader wins over environment and file |
| both loaders | `validation_fraction` | error if their rows are split otherwise; likewise |
| `train_loader` | `dataloader_kwargs` | error if the loader has others, or knows none; likewise |
| `train_loader` | `recipe` | the loader keeps its batch size |
| `optimizer`, `scheduler` | `recipe` | the recipe leaves out what they decide |
| none | `resume_training`, `retrain_from_scratch`, `discard_prior_samples` | error; a warning \
if they come from environment or file, because they may be meant for trainers |

Within the settings, `TrainConfig` refuses a callable `optimizer` beside `learning_rate` or
`weight_decay`, a `batch_size` beside one in `dataloader_kwargs`, `averaging` beside `ema_decay`,
and `recipe` beside `sbi_compat`. `max_epochs`, `max_time`, stopping rules and stages do not
conflict: the first that is met ends the training. `clip_max_norm`, `seed`, `compile`, `precision`
and `show_train_summary` can be set in one place only. `inference.options` has the checks of
trainers.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from sbi_ignite.data.source import Batches
from sbi_ignite.data.transfer import indexed
from sbi_ignite.exceptions import SbiIgniteWarning, SettingsError, WrongTypeError
from sbi_ignite.settings import Origin, Resolved, TrainConfig
from sbi_ignite.settings.errors import suggestion
from sbi_ignite.settings.redaction import qualified_name, shorten
from sbi_ignite.settings.serialization import plain

_DECIDED_BY_OPTIMIZER = ("optimizer", "learning_rate", "weight_decay")
_FOR_TRAINERS = ("resume_training", "retrain_from_scratch", "discard_prior_samples")
_OF_AN_OPTIMIZER = {"learning_rate": "lr", "weight_decay": "weight_decay"}


def check_options(
    settings: Resolved,
    train_batches: Batches,
    val_batches: Batches | None,
    optimizer: Optimizer | None,
    scheduler: Any | None,
    device: str | torch.device | None,
) -> None:
    """Refuse settings of a `run_training()` call that its arguments contradict or make useless.

    Args:
        settings: All settings.
        train_batches: Batches of training data.
        val_batches: Batches of validation data, if there are any.
        optimizer: The argument; None if settings decide.
        scheduler: The argument; None if settings decide.
        device: The argument; None if settings decide.

    Raises:
        SettingsError: If a field and an argument disagree, or a field can have no effect.
    """
    if optimizer is not None:
        _check_optimizer(settings, optimizer)
    if scheduler is not None and _called(settings, "lr_schedule"):
        raise _two_wishes(settings, "lr_schedule", f"scheduler={qualified_name(scheduler)}")
    asked = settings.train.device
    if device is not None and asked is not None and _called(settings, "device"):
        argument = checked_device(device, "run_training(device=...)")
        if indexed(argument) != indexed(checked_device(asked, settings.origin("train.device"))):
            raise _two_wishes(settings, "device", f"device={str(device)!r}")
    _check_loaders(settings, train_batches, val_batches)
    for name in _FOR_TRAINERS:
        if getattr(settings.train, name):
            _refuse_for_trainers(settings, name)


def checked_device(device: str | torch.device, origin: Origin | str) -> torch.device:
    """Return a device that this machine has.

    Args:
        device: The device, or its name.
        origin: Where it was asked for.

    Raises:
        SettingsError: If there is no such device here.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise SettingsError(
            "device: expected a device name such as 'cpu', 'cuda', 'cuda:1' or 'mps', got "
            f"{shorten(device)} from {origin}. Leave it out for the device that the network is on"
        ) from error
    if found.type == "cpu":
        return found
    count = _count(found.type)
    if count > (found.index or 0):
        return found
    if count:
        names = [f"{found.type}:{index}" for index in range(count)]
        there = f"has {', '.join(names)}"
        advice = f"Take one of these, or '{found.type}' for the current one"
    else:
        there = f"shows torch {torch.__version__} no {found.type.upper()} device"
        others = [kind for kind in ("cuda", "mps", "xpu") if _count(kind)]
        advice = f"Take {' or '.join(repr(kind) for kind in (*others, 'cpu'))}, or leave it out"
        if found.type == "cuda" and torch.version.cuda is None:
            advice += "; this build of torch knows no CUDA"
    raise SettingsError(
        f"device: expected a device of this machine, which {there}, got '{device}' from {origin}. "
        f"{advice}"
    )


def check_compile(settings: Resolved, device: torch.device) -> None:
    """Refuse a way of computing that the device cannot carry out.

    Raises:
        SettingsError: For CUDA graphs on anything but a CUDA device.
    """
    if settings.train.compile == "cuda_graph" and device.type != "cuda":
        raise SettingsError(
            "compile='cuda_graph' needs a CUDA device, and this training runs on "
            f"'{device}', got it from {settings.origin('train.compile')}. Name one by "
            "device='cuda', or use compile='trace', which saves the same time on a CPU."
        )


def check_loader_kwargs(kwargs: Mapping[str, Any] | None, origin: Origin) -> None:
    """Refuse keywords that torch's DataLoader does not have.

    Args:
        kwargs: The keywords.
        origin: Where they came from.

    Raises:
        WrongTypeError: If there is such a keyword; it is a ValueError and a TypeError.
    """
    if (kwargs or {}).get("timeout") and not (kwargs or {}).get("num_workers"):
        raise WrongTypeError(
            "dataloader_kwargs: expected num_workers beside timeout, which is the time to wait for "
            f"a worker, got {shorten(dict(kwargs or {}))} from {origin}. Add num_workers, or leave "
            "timeout out."
        )
    valid = [*inspect.signature(DataLoader.__init__).parameters][2:]
    for name, value in (kwargs or {}).items():
        if name not in valid:
            raise WrongTypeError(
                f"dataloader_kwargs: torch's DataLoader takes no {name!r}"
                f"{suggestion(name, valid)}, got {name}={shorten(value, name)} from {origin}. "
                f"Expected some of: {', '.join(valid)}"
            )


def left_out_of_recipe(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fields that a recipe does not fill in, because arguments decide them."""
    decided = _DECIDED_BY_OPTIMIZER if arguments.get("optimizer") is not None else ()
    scheduled = ("lr_schedule",) if arguments.get("scheduler") is not None else ()
    return ("batch_size", *decided, *scheduled)


def decay_of(config: TrainConfig, optimizer: Optimizer, arguments: Mapping[str, Any]) -> float:
    """Return the weight decay of stages that name none: the setting's, or a user's optimizer's."""
    if arguments.get("optimizer") is None and not callable(config.optimizer):
        return config.weight_decay
    return _of_groups(optimizer, "weight_decay")[0] or 0.0


def observed(
    settings: Resolved,
    optimizer: Optimizer,
    train_batches: Batches,
    val_batches: Batches | None,
    arguments: Mapping[str, Any],
) -> Resolved:
    """Record what actually runs where objects decide: rate, decay, batch size, and so on.

    Args:
        settings: All settings.
        optimizer: The optimizer that trains.
        train_batches: Batches of training data.
        val_batches: Batches of validation data, if there are any.
        arguments: Arguments of `run_training()` that replace a field; None if not passed.
    """
    seen: dict[str, tuple[Any, Origin]] = {}
    for name, argument in (("optimizer", "optimizer"), ("lr_schedule", "scheduler")):
        if arguments.get(argument) is not None:
            shown = qualified_name(arguments[argument])
            seen[name] = shown, Origin("call", f"run_training({argument}=...)")
    if arguments.get("device") is not None:
        seen["device"] = str(arguments["device"]), Origin("call", "run_training(device=...)")
    seen.update(_of_optimizer(settings, optimizer, arguments.get("optimizer") is not None))
    size = train_batches.batch_size
    if size is not None and size != settings.train.batch_size:
        where = settings.origin("train.dataloader_kwargs").where if _in_kwargs(settings) else ""
        seen["batch_size"] = size, Origin("loader", where)
    elif size is None:
        seen["batch_size"] = None, Origin("loader")  # a sampler of batches of any size
    split = _split_of(train_batches, val_batches)
    if split is not None and not _is_split_by(settings.train.validation_fraction, split):
        seen["validation_fraction"] = round(split[1] / sum(split), 6), Origin("loader")
    return settings.observing(seen)


def rates_of(optimizer: Optimizer) -> list[float]:
    """Return the rate of every parameter group, as it is before a schedule changes it."""
    names = ("max_lr", "initial_lr", "lr")
    return [float(next(g[n] for n in names if n in g)) for g in optimizer.param_groups]


def _count(kind: str) -> int:
    """Return how many devices of a kind there are; 0 if torch cannot use them."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind, None)
    return module.device_count() if module is not None and module.is_available() else 0


def _called(settings: Resolved, name: str) -> bool:
    return settings.origin(f"train.{name}").source == "call"


def _two_wishes(settings: Resolved, name: str, argument: str, why: str = "") -> SettingsError:
    value = plain(getattr(settings.train, name), name)
    return SettingsError(
        f"{name}: expected it to be said once, got {name}={shorten(value, name)} from "
        f"{settings.origin(f'train.{name}')} and {argument} in the call of run_training(){why}. "
        "Leave one of them out"
    )


def _check_optimizer(settings: Resolved, optimizer: Optimizer) -> None:
    shown = f"optimizer={type(optimizer).__name__}(...)"
    if _called(settings, "optimizer"):
        raise _two_wishes(settings, "optimizer", shown)
    for name, key in _OF_AN_OPTIMIZER.items():
        if settings.origin(f"train.{name}").source in ("default", "recipe"):
            continue
        own = rates_of(optimizer) if key == "lr" else _of_groups(optimizer, key)
        wanted = getattr(settings.train, name)
        if any(value != wanted for value in own):
            has = f", which has {key}={_single(own)!r}"
            raise _two_wishes(settings, name, shown, has)


def _of_groups(optimizer: Optimizer, key: str) -> list[float | None]:
    values = [group.get(key) for group in optimizer.param_groups]
    return [None if value is None else float(value) for value in values]


def _single(values: Sequence[Any]) -> Any:
    """Return the value that all groups share, or the list if they differ."""
    return values[0] if all(value == values[0] for value in values) else [*values]


def _of_optimizer(
    settings: Resolved, optimizer: Optimizer, is_argument: bool
) -> dict[str, tuple[Any, Origin]]:
    if is_argument or callable(settings.train.optimizer):
        asked, rate = settings.origin("train.optimizer").where, _single(rates_of(optimizer))
        origin = Origin("optimizer", "run_training(optimizer=...)" if is_argument else asked)
        decay = _single(_of_groups(optimizer, "weight_decay"))
        return {"learning_rate": (rate, origin), "weight_decay": (decay, origin)}
    return _of_earlier_optimizer(settings, optimizer)


def _of_earlier_optimizer(
    settings: Resolved, optimizer: Optimizer
) -> dict[str, tuple[Any, Origin]]:
    """Record the values a resumed training continues with, whatever the defaults are."""
    config, origin = settings.train, Origin("optimizer", "of the training that is continued")
    rate = _single(rates_of(optimizer))
    seen: dict[str, tuple[Any, Origin]] = {}
    if type(optimizer).__name__.lower() != config.optimizer:
        seen["optimizer"] = qualified_name(optimizer), origin
    # In the typed form, a rate given in the call takes effect.
    named = settings.origin("train.learning_rate").source != "default" and not config.sbi_compat
    if rate != config.learning_rate and not named:
        seen["learning_rate"] = rate, origin
    decay = _single(_of_groups(optimizer, "weight_decay"))
    if decay != config.weight_decay and not config.stages:
        seen["weight_decay"] = decay, origin
    return seen


def _in_kwargs(settings: Resolved) -> bool:
    kwargs = settings.train.dataloader_kwargs or {}
    return "batch_size" in kwargs or "batch_sampler" in kwargs


def _check_loaders(settings: Resolved, train_batches: Batches, val_batches: Batches | None) -> None:
    config = settings.train
    size = train_batches.batch_size
    if size is not None and size != config.batch_size and _called(settings, "batch_size"):
        raise _two_wishes(settings, "batch_size", f"a train_loader with batches of {size}")
    if _called(settings, "validation_fraction"):
        if val_batches is None:
            raise _two_wishes(settings, "validation_fraction", "no val_loader")
        split = _split_of(train_batches, val_batches)
        if split is not None and not _is_split_by(config.validation_fraction, split):
            rows = f"loaders with {split[0]} and {split[1]} rows"
            raise _two_wishes(settings, "validation_fraction", rows)
    if config.dataloader_kwargs and _called(settings, "dataloader_kwargs"):
        loader = getattr(train_batches, "loader", train_batches)
        _check_kwargs(settings, config.dataloader_kwargs, loader)


def _check_kwargs(settings: Resolved, kwargs: Mapping[str, Any], loader: Any) -> None:
    if not isinstance(loader, DataLoader):
        name = type(loader).__name__
        raise _two_wishes(settings, "dataloader_kwargs", f"a train_loader that is a {name}")
    check_loader_kwargs(kwargs, settings.origin("train.dataloader_kwargs"))
    for name, value in kwargs.items():
        own = getattr(loader, name, value)
        if own is not value and own != value:
            rival = f"a train_loader with {name}={shorten(own, name)}"
            raise _two_wishes(settings, "dataloader_kwargs", rival)


def _split_of(train_batches: Batches, val_batches: Batches | None) -> tuple[int, int] | None:
    """Return the numbers of training and validation rows; None if unknown."""
    train, val = train_batches.num_rows, 0 if val_batches is None else val_batches.num_rows
    return None if train is None or val is None or not train + val else (train, val)


def _is_split_by(fraction: float, split: tuple[int, int]) -> bool:
    """Return whether rows are split by this fraction, whichever way it is rounded."""
    return split[1] > 0 and abs(split[1] - fraction * sum(split)) < 1.0


def _refuse_for_trainers(settings: Resolved, name: str) -> None:
    origin, advice = settings.origin(f"train.{name}"), "Leave it out"
    if name == "resume_training":
        advice = 'Name a run directory by checkpoint="...", which is continued if it holds a run'
    text = (
        f"{name}: run_training() trains the model that it is given, expected it to be left to a "
        f"trainer's train(), got {name}=True from {origin}. {advice}"
    )
    if origin.source == "call":
        raise SettingsError(text)
    warnings.warn(text, SbiIgniteWarning, stacklevel=4)
