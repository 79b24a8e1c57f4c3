"""Resolve the settings of one call: the only place where precedence is decided.

Field by field: what the call passed > environment > file > default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal

from sbi_ignite.exceptions import ArgumentError, SettingsError
from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.checkpoint import CheckpointConfig
from sbi_ignite.settings.early_stopping import EarlyStopping
from sbi_ignite.settings.errors import suggestion
from sbi_ignite.settings.frozen_dict import FrozenDict
from sbi_ignite.settings.logging_config import LoggingConfig
from sbi_ignite.settings.origin import DEFAULT, Origin
from sbi_ignite.settings.redaction import shorten
from sbi_ignite.settings.resolved import Resolved, fields_of, item_prefixes
from sbi_ignite.settings.sources import Layer, read_layers
from sbi_ignite.settings.train import TrainConfig

__all__ = ["resolve"]


@dataclass
class _Said:
    """Values of one group of settings, each with its origin."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)

    def put(self, name: str, value: object, origin: Origin) -> None:
        self.values[name], self.origins[name] = value, origin

    def fill(self, other: _Said) -> None:
        """Take from a weaker source what is not set yet."""
        self.values = {**other.values, **self.values}
        self.origins = {**other.origins, **self.origins}

    def without(self, names: Iterable[str]) -> _Said:
        kept = [name for name in self.values if name not in set(names)]
        return _Said({n: self.values[n] for n in kept}, {n: self.origins[n] for n in kept})


def resolve(
    *,
    train: TrainConfig | None = None,
    keywords: Mapping[str, object] | None = None,
    early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
    stop_after_epochs: int | None = None,
    logging: object = None,
    checkpoint: CheckpointConfig | str | PathLike[str] | Literal[False] | None = None,
    defaults: Mapping[str, object] | None = None,
    default_early_stopping: EarlyStopping | None = None,
) -> Resolved:
    """Decide what one training runs with.

    Each field comes from the first of these that sets it: the call, the environment, the file that
    SBI_IGNITE_CONFIG names, the default. None as a value of a TrainConfig is a value; None for a
    whole argument means that it was not passed.

    Args:
        train: The TrainConfig that the call passed.
        keywords: Keywords of the same call that are fields of a TrainConfig, by any of their names.
        early_stopping: One rule or several, any of which ends the training.
        stop_after_epochs: The patience that the call passed as sbi's keyword.
        logging: A LoggingConfig, a backend's name, any other logger object, or a list of these.
        checkpoint: A CheckpointConfig or the run directory; False saves nothing, whatever the
            environment says.
        defaults: Fields of TrainConfig that have a different default here.
        default_early_stopping: The rule where none is asked for; validation loss if not given.
            A training in stages has no default rule: it ends with its last stage.

    Returns:
        The settings with their origins.

    Raises:
        ArgumentError: If an argument has the wrong type or one field is given twice.
        SettingsError: If a value is wrong, a variable or the file cannot be understood, or
            checkpoints are asked for from outside without a directory.

    Example:
        >>> resolve(keywords={"training_batch_size": 50}).train
        TrainConfig(batch_size=50)
    """
    layers = read_layers()
    origins: dict[str, Origin] = {}
    config = _train(train, keywords or {}, defaults or {}, layers, origins)
    fallback = default_early_stopping or EarlyStopping.validation_loss()
    if _goes_in_stages(config, origins):
        fallback = EarlyStopping.never()
    return Resolved(
        train=config,
        early_stopping=_rules(early_stopping, stop_after_epochs, fallback, layers, origins),
        logging=_loggers(logging, layers, origins),
        checkpoint=_checkpoint(checkpoint, layers, origins),
        origins=FrozenDict(origins),
    )


def _layer(layer: Layer, group: str) -> _Said:
    return _Said(dict(layer.values[group]), dict(layer.origins[group]))


def _outside(layers: Iterable[Layer], group: str) -> _Said:
    """Merge environment and file, the environment first."""
    said = _Said()
    for layer in layers:
        said.fill(_layer(layer, group))
    return said


def _agreeing(called: _Said, layers: Iterable[Layer], group: str, about: str) -> _Said:
    """Add the layers' values to those of the call, unless for another backend or kind."""
    said = _Said(dict(called.values), dict(called.origins))
    for layer in layers:
        weaker = _layer(layer, group)
        subject = weaker.values.get(about)
        if subject is None or subject == said.values.get(about, subject):
            said.fill(weaker)
    return said


def _passed(value: Settings) -> _Said:
    said = _Said()
    for name in value.model_fields_set:
        where = f"{type(value).__name__}({name}=...)"
        said.put(name, getattr(value, name), Origin("call", where))
    return said


def _record(value: Settings, said: _Said, prefix: str, origins: dict[str, Origin]) -> None:
    for name in fields_of(value):
        origins[f"{prefix}.{name}"] = said.origins.get(name, DEFAULT)


# --- TrainConfig


def _train(
    train: TrainConfig | None,
    keywords: Mapping[str, object],
    defaults: Mapping[str, object],
    layers: Iterable[Layer],
    origins: dict[str, Origin],
) -> TrainConfig:
    if train is not None and not isinstance(train, TrainConfig):
        raise ArgumentError(f"expected a TrainConfig, got {shorten(train)}")
    said = _called(train, keywords)
    said.fill(_outside(layers, "train"))
    _record_defaults(said, defaults)
    value = TrainConfig.from_origins(said.values, said.origins)
    _record(value, said, "train", origins)
    return value.forget(name for name, origin in said.origins.items() if origin == DEFAULT)


def _called(train: TrainConfig | None, keywords: Mapping[str, object]) -> _Said:
    said = _passed(train) if train is not None else _Said()
    for name, value in keywords.items():
        own = _field_of_keyword(name)
        origin = Origin("call", f"train({name}=...)")
        if own in said.values:
            raise ArgumentError(
                f"{own} is given twice: by {said.origins[own].where} and by {origin.where}"
            )
        said.put(own, value, origin)
    return said


def _field_of_keyword(name: str) -> str:
    own = TrainConfig.aliases.get(name, name)
    if own not in TrainConfig.model_fields:
        names = [*TrainConfig.model_fields, *TrainConfig.aliases]
        raise ArgumentError(f"train() has no keyword {name!r}{suggestion(name, names)}")
    return own


def _record_defaults(said: _Said, defaults: Mapping[str, object]) -> None:
    changed = _Said()
    for name, value in TrainConfig.canonical(defaults).items():
        if name == "sbi_compat" and said.values.get("recipe") is not None:
            continue  # no recipe trains as sbi does: an error only where both are asked for
        changed.put(name, value, DEFAULT)
    said.fill(changed)


def _goes_in_stages(config: TrainConfig, origins: Mapping[str, Origin]) -> bool:
    """Say whether stages decide when to stop, including those that the recipe will fill in."""
    to_be_filled = config.recipe is not None and origins["train.stages"] == DEFAULT
    return bool(config.stages) or to_be_filled


# --- EarlyStopping


def _rules(
    asked: EarlyStopping | Sequence[EarlyStopping] | None,
    patience: int | None,
    fallback: EarlyStopping,
    layers: Iterable[Layer],
    origins: dict[str, Origin],
) -> tuple[EarlyStopping, ...]:
    if asked is None:
        outside = _agreeing(_Said(), layers, "early_stopping", "kind")
        pairs = [_inferred_rule(patience, fallback, outside)]
    else:
        pairs = [(rule, _passed(rule)) for rule in _as_rules(asked)]
        if patience is not None:
            added = _added_rule(patience, fallback, [rule for rule, _ in pairs])
            _refuse_never_beside_patience([rule for rule, _ in pairs], patience)
            pairs.append(added)
    for (rule, said), prefix in zip(
        pairs, item_prefixes("early_stopping", len(pairs)), strict=True
    ):
        _record(rule, said, prefix, origins)
    return tuple(rule for rule, _ in pairs)


def _as_rules(asked: object) -> list[EarlyStopping]:
    rules: list[Any] = list(asked) if isinstance(asked, list | tuple) else [asked]
    for rule in rules:
        if not isinstance(rule, EarlyStopping):
            raise ArgumentError(
                "early_stopping: expected an EarlyStopping such as "
                f"EarlyStopping.validation_loss(patience=20), or a list of them, "
                f"got {shorten(rule)}"
            )
    return rules


def _refuse_never_beside_patience(rules: Sequence[EarlyStopping], patience: int) -> None:
    """Refuse sbi's patience beside never(); in a list, never() leaves other rules in force."""
    if any(rule.kind == "never" for rule in rules):
        raise ArgumentError(
            "early_stopping: expected one wish, got EarlyStopping.never() and "
            f"stop_after_epochs={patience}. Leave one of them out"
        )


def _inferred_rule(
    patience: int | None, fallback: EarlyStopping, outside: _Said
) -> tuple[EarlyStopping, _Said]:
    said = _Said()
    if patience is not None:
        said.put("patience", patience, _stop_after_epochs())
    said.fill(outside)
    said.values.setdefault("kind", _kind(said, fallback))
    if said.origins.get("patience") == _stop_after_epochs() and not _patient(said.values["kind"]):
        said = said.without(["patience"])
    return _completed(said, fallback)


def _kind(said: _Said, fallback: EarlyStopping) -> str:
    """Return the kind that was most likely meant by the fields that were said."""
    for kind, fields in EarlyStopping.takes.items():
        if any(name in said.values for name in fields if name not in ("patience", "rule")):
            return kind
        if kind == "validation_loss" and "patience" in said.values:
            return _patient_kind(fallback)
    return fallback.kind


def _patient(kind: str) -> bool:
    return "patience" in EarlyStopping.takes[kind]


def _patient_kind(fallback: EarlyStopping) -> str:
    return fallback.kind if _patient(fallback.kind) else "validation_loss"


def _completed(said: _Said, fallback: EarlyStopping) -> tuple[EarlyStopping, _Said]:
    """Fill unset fields from the default rule, as far as it fits, and check the whole."""
    takes = EarlyStopping.takes[said.values["kind"]]
    spare = {
        name: getattr(fallback, name)
        for name in fallback.model_fields_set
        if name in takes and name not in said.values
    }
    return EarlyStopping.from_origins({**spare, **said.values}, said.origins), said


def _added_rule(
    patience: int, fallback: EarlyStopping, rules: Iterable[EarlyStopping]
) -> tuple[EarlyStopping, _Said]:
    rival = next((rule for rule in rules if _patient(rule.kind)), None)
    if rival is not None:
        raise ArgumentError(
            "patience is given twice: by train(stop_after_epochs=...) and by "
            f"train(early_stopping=EarlyStopping.{rival.kind}(...))"
        )
    said = _Said()
    said.put("patience", patience, _stop_after_epochs())
    said.values["kind"] = _patient_kind(fallback)
    return _completed(said, fallback)


def _stop_after_epochs() -> Origin:
    return Origin("call", "train(stop_after_epochs=...)")


# --- LoggingConfig


def _loggers(
    asked: object, layers: tuple[Layer, ...], origins: dict[str, Origin]
) -> tuple[object, ...]:
    if asked is None:
        said = _agreeing(_Said(), layers, "logging", "backend")
        pairs = [(LoggingConfig.from_origins(said.values, said.origins), said)]
        pairs = pairs if said.values else []
    else:
        items = list(asked) if isinstance(asked, list | tuple) else [asked]
        pairs = [_logger(item, layers) for item in items]
    for (item, said), prefix in zip(pairs, item_prefixes("logging", len(pairs)), strict=True):
        if isinstance(item, LoggingConfig):
            _record(item, said, prefix, origins)
        else:
            origins[f"{prefix}.logger"] = Origin("call", "train(logging=...)")
    return tuple(item for item, _ in pairs)


def _logger(item: object, layers: tuple[Layer, ...]) -> tuple[object, _Said]:
    if isinstance(item, str):
        called = _Said({"backend": item}, {"backend": Origin("call", "train(logging=...)")})
        LoggingConfig.from_origins(called.values, called.origins)
    elif isinstance(item, LoggingConfig):
        called = _passed(item)
    else:
        return item, _Said()
    said = _agreeing(called, layers, "logging", "backend")
    takes = LoggingConfig.takes[said.values.get("backend", "stdout")]
    foreign = [n for n in said.values if n != "backend" and n not in (*takes, *called.values)]
    said = said.without(foreign)
    return LoggingConfig.from_origins(said.values, said.origins), said


# --- CheckpointConfig


def _checkpoint(
    asked: object, layers: Iterable[Layer], origins: dict[str, Origin]
) -> CheckpointConfig | None:
    if asked is False:
        return None
    said = _asked_directory(asked)
    said.fill(_outside(layers, "checkpoint"))
    if "directory" not in said.values:
        _refuse_without_directory(said)
        return None
    value = CheckpointConfig.from_origins(said.values, said.origins)
    _record(value, said, "checkpoint", origins)
    return value


def _refuse_without_directory(said: _Said) -> None:
    for name, value in said.values.items():
        raise SettingsError(
            f"CheckpointConfig.{name}: expected a directory beside it, without which nothing is "
            f"saved and nothing continued, got {name}={shorten(value)} from {said.origins[name]}. "
            "Set SBI_IGNITE_CHECKPOINT__DIRECTORY, pass checkpoint=..., or say checkpoint=False"
        )


def _asked_directory(asked: object) -> _Said:
    if asked is None:
        return _Said()
    if isinstance(asked, CheckpointConfig):
        return _passed(asked)
    if not isinstance(asked, str | PathLike):
        raise ArgumentError(
            "checkpoint: expected a CheckpointConfig, a directory, or False for none at all, got "
            f"{shorten(asked)}"
        )
    origin = Origin("call", "train(checkpoint=...)")
    return _Said({"directory": asked}, {"directory": origin})
