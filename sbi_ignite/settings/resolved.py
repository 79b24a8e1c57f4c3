"""The settings of one training with their origins, also as plain data or a readable table."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sbi_ignite.settings.base import Settings
from sbi_ignite.settings.checkpoint import CheckpointConfig
from sbi_ignite.settings.early_stopping import EarlyStopping
from sbi_ignite.settings.frozen_dict import FrozenDict
from sbi_ignite.settings.logging_config import LoggingConfig
from sbi_ignite.settings.origin import DEFAULT, Origin
from sbi_ignite.settings.recipe import RECIPES
from sbi_ignite.settings.redaction import qualified_name, shorten
from sbi_ignite.settings.serialization import plain
from sbi_ignite.settings.train import TrainConfig

__all__ = ["Resolved"]


@dataclass(frozen=True)
class Resolved:
    """What one training runs with, and where each value came from.

    Args:
        train: The training's settings; its `model_fields_set` are those that are not defaults.
        early_stopping: The rules, any of which ends the training; none: it trains all epochs.
        logging: LoggingConfig values and other logger objects; empty if nothing was asked for.
        checkpoint: The run directory's settings; None: nothing is saved.
        origins: Where each value came from, by "train.batch_size", "early_stopping.patience", …;
            with several rules or loggers by "early_stopping.0.patience", "logging.1.backend", ….
        observed: What the training runs with where an object decides instead of a setting, such as
            the rate of a callable optimizer, by "train.learning_rate", …. It is what is recorded.
    """

    train: TrainConfig
    early_stopping: tuple[EarlyStopping, ...]
    logging: tuple[object, ...]
    checkpoint: CheckpointConfig | None
    origins: Mapping[str, Origin]
    observed: Mapping[str, Any] = field(default_factory=FrozenDict)

    def origin(self, name: str) -> Origin:
        """Tell where a value came from.

        Args:
            name: Group and field, such as "train.batch_size".

        Returns:
            Its origin; "default" for what was not set.
        """
        return self.origins.get(name, DEFAULT)

    @property
    def awaits_recipe(self) -> bool:
        """Whether there is a recipe that has not been filled in yet."""
        filled = any(origin.source == "recipe" for origin in self.origins.values())
        return self.train.recipe is not None and not filled

    def with_recipe(
        self, num_rows: int, apart_from: Collection[str] = (), contrastive: bool = False
    ) -> Resolved:
        """Fill in the recipe's values for this number of rows where nothing was set.

        A weight decay that was set also replaces those of the recipe's stages, an `ema_decay` its
        averaging, and a callable optimizer its rate and weight decay.

        Args:
            num_rows: Rows that are trained on.
            apart_from: Fields that are left alone.
            contrastive: Whether the loss is one of ratio estimation, which sets every row against
                others of its batch.

        Returns:
            The settings, with the origin "recipe" for what was filled in; these settings if there
            is no recipe or it is filled in already.
        """
        if not self.awaits_recipe or self.train.recipe is None:
            return self
        said = RECIPES[self.train.recipe](num_rows, contrastive)
        spare = {
            name: value
            for name, value in said.items()
            if self.origin(f"train.{name}").source == "default" and name not in apart_from
        }
        if self.train.ema_decay is not None:
            spare.pop("averaging", None)
        if callable(self.train.optimizer):
            spare = {n: v for n, v in spare.items() if n not in ("learning_rate", "weight_decay")}
        if any(n in (self.train.dataloader_kwargs or {}) for n in ("batch_size", "batch_sampler")):
            spare.pop("batch_size", None)
        if "stages" in spare and "weight_decay" not in spare:
            steady = [stage.model_copy(update={"weight_decay": None}) for stage in said["stages"]]
            spare["stages"] = tuple(steady)
        kind = " of ratio estimation" if contrastive else ""
        where = f"TrainConfig.{self.train.recipe}() at {num_rows:,} training rows{kind}"
        origins = {f"train.{name}": Origin("recipe", where) for name in spare}
        return replace(
            self,
            train=self.train.model_copy(update=spare),
            origins=FrozenDict({**self.origins, **origins}),
        )

    def observing(self, seen: Mapping[str, tuple[Any, Origin]]) -> Resolved:
        """Note what a training runs with where no setting decides.

        Args:
            seen: Value and origin by field of TrainConfig.

        Returns:
            The settings; `train` is as it was, records show what is noted.
        """
        values = {f"train.{name}": value for name, (value, _) in seen.items()}
        origins = {f"train.{name}": origin for name, (_, origin) in seen.items()}
        return replace(
            self,
            observed=FrozenDict({**self.observed, **values}),
            origins=FrozenDict({**self.origins, **origins}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data that JSON can hold.

        Returns:
            "train" and "checkpoint" map each field to its "value", "origin" and "where";
            "early_stopping" and "logging" are lists of such mappings, one per rule or logger;
            "checkpoint" is None if nothing is saved.
        """
        return {
            "train": self._entries(self.train, "train"),
            "early_stopping": self._list("early_stopping", self.early_stopping),
            "logging": self._list("logging", self.logging),
            "checkpoint": self.checkpoint and self._entries(self.checkpoint, "checkpoint"),
        }

    def describe(self) -> str:
        """Return everything as a table: name, value, origin and where that is.

        Returns:
            Aligned lines, the first of which names the columns.
        """
        rows = [("name", "value", "origin", "where"), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        return "\n".join(lines)

    def _list(self, group: str, items: tuple[object, ...]) -> list[dict[str, Any]]:
        prefixes = item_prefixes(group, len(items))
        return [self._entries(*pair) for pair in zip(items, prefixes, strict=True)]

    def _entries(self, item: object, prefix: str) -> dict[str, Any]:
        return {
            name: {"value": plain(value, name), "origin": origin.source, "where": origin.where}
            for name, value, origin in self._fields(item, prefix)
        }

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        for item, prefix in self._items():
            for name, value, origin in self._fields(item, prefix):
                for part, shown in _shown(name, value):
                    yield f"{prefix}.{part}", shown, origin.source, origin.where

    def _items(self) -> Iterator[tuple[object, str]]:
        yield self.train, "train"
        for group, items in (("early_stopping", self.early_stopping), ("logging", self.logging)):
            yield from zip(items, item_prefixes(group, len(items)), strict=True)
        if self.checkpoint is not None:
            yield self.checkpoint, "checkpoint"

    def _fields(self, item: object, prefix: str) -> Iterator[tuple[str, object, Origin]]:
        if not isinstance(item, Settings):
            yield "logger", qualified_name(item), self.origin(f"{prefix}.logger")
            return
        for name in fields_of(item):
            path = f"{prefix}.{name}"
            yield name, self.observed.get(path, getattr(item, name)), self.origin(path)


def _shown(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield a value as text; several settings one by one, each with what was set in it."""
    if isinstance(value, tuple) and value and isinstance(value[0], Settings):
        yield from ((f"{name}.{number}", repr(item)) for number, item in enumerate(value))
    elif isinstance(value, Settings):
        yield name, repr(value)
    else:
        yield name, shorten(plain(value, name), name)


def fields_of(item: Settings) -> tuple[str, ...]:
    """List the fields that matter: for a rule or backend, those that it takes."""
    if isinstance(item, EarlyStopping | LoggingConfig):
        return item.fields
    return tuple(type(item).model_fields)


def item_prefixes(group: str, count: int) -> list[str]:
    """Name the members of a group: by the group alone if there is only one, else with numbers."""
    return [group] if count == 1 else [f"{group}.{number}" for number in range(count)]
