"""sbi's trainers under the same names, trained by sbi_ignite (door a)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import FunctionType
from typing import Any

import sbi.inference as sbi_inference

from sbi_ignite.bridge import marginal, train
from sbi_ignite.bridge.options import refuse_arguments
from sbi_ignite.bridge.signatures import typed_first
from sbi_ignite.methods.table import TRAINERS
from sbi_ignite.summary import TrainingSummary


class IgniteTrainer:
    """What sbi_ignite puts in front of an sbi trainer: its `train()` and the two methods below it.

    Attributes:
        training_summary: Summary of the last `train()`; None before the first.
    """

    training_summary: TrainingSummary | None = None

    def train(
        self,
        *args: Any,
        logging: Any | None = None,
        early_stopping: Any | None = None,
        checkpoint: Any | None = None,
        callbacks: Iterable[Any] = (),
        **kwargs: Any,
    ) -> Any:
        """Train and return the estimator, with the best weights in it.

        The typed form is `train(TrainConfig(...), LossArgs...(...), ...)`; sbi's own keywords,
        alone, give sbi's numbers bit for bit. The two can be mixed: a keyword fills what the config
        left unset.

        Args:
            *args: `train_config` and `loss_args`, or sbi's own positional arguments.
            logging: A `LoggingConfig`, the name of a backend, a logger, or a list of these.
            early_stopping: An `EarlyStopping`, or a list of them of which any one stops.
            checkpoint: A `CheckpointConfig`, or the directory of the run; False for none.
            callbacks: Objects with methods of `Callback`, or with ignite's `attach(engine)`.
            **kwargs: sbi's keywords of this method's `train()`, `exclude_invalid_x`,
                `train_config`, `loss_args`.

        Returns:
            What sbi's `train()` returns.

        Raises:
            ArgumentError: If an argument is unknown, of the wrong type, or given twice.
            SettingsError: If a value is not valid.
            NoSimulationsError: If there is nothing to train on.
            DataError: If the data cannot be split or has invalid rows that may not be dropped.
            NonFiniteLossError: If a loss is NaN or infinite; the best weights so far are kept.

        Example:
            >>> inference = NPE()  # doctest: +SKIP
            >>> inference.append_simulations(theta, x)  # doctest: +SKIP
            >>> inference.train(TrainConfig(max_epochs=100), LossArgsNPE())  # doctest: +SKIP
        """
        new = {
            "logging": logging,
            "early_stopping": early_stopping,
            "checkpoint": checkpoint,
            "callbacks": callbacks,
        }
        carry_out = (
            marginal.train if isinstance(self, sbi_inference.MarginalTrainer) else train.train
        )
        return carry_out(self, _sbi_method(self, "train"), args, {**new, **kwargs})


class IgniteLoop(IgniteTrainer):
    """`IgniteTrainer` for the trainers that share sbi's loop: all but MarginalTrainer."""

    def _run_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train by `run_training` where sbi would run its loop."""
        return train.run_training_loop(self, *args, **kwargs)

    def get_dataloaders(self, *args: Any, **kwargs: Any) -> Any:
        """Return loaders; within `train()`, batches sliced by index."""
        return train.get_dataloaders(self, _sbi_method(self, "get_dataloaders"), *args, **kwargs)


def _sbi_method(trainer: Any, name: str) -> Any:
    """Return sbi's own function of that name for a trainer."""
    return _behind(type(trainer), name)


def _behind(cls: type, name: str) -> Any:
    """Return the function of that name in sbi's classes, past those of this module."""
    mro = cls.__mro__
    behind = mro[mro.index(IgniteTrainer) + 1 :]
    return next(vars(cls)[name] for cls in behind if name in vars(cls))


def _trained_by_ignite(name: str) -> type:
    """Return the trainer of that name in `sbi.inference` with our `train()` in front of it."""
    theirs: Any = getattr(sbi_inference, name)
    front = IgniteLoop if issubclass(theirs, sbi_inference.NeuralInference) else IgniteTrainer
    cls = type(name, (front, theirs), {"__module__": __name__, "__doc__": theirs.__doc__})
    _show_signature(cls)
    return cls


def _show_signature(cls: Any) -> None:
    """Give a class its own `train()`, which does the same and has the true signature."""
    shared: Any = IgniteTrainer.train
    train = FunctionType(
        shared.__code__, shared.__globals__, "train", shared.__defaults__, shared.__closure__
    )
    train.__kwdefaults__, train.__doc__ = shared.__kwdefaults__, shared.__doc__
    train.__module__, train.__qualname__ = __name__, f"{cls.__name__}.train"
    train.__signature__ = typed_first(cls, _behind(cls, "train"))  # type: ignore[attr-defined] # inspect's
    cls.train = train


# A release of sbi may not have all of them yet, or any more.
_trainers = {name: _trained_by_ignite(name) for name in TRAINERS if hasattr(sbi_inference, name)}
globals().update(_trainers)


# This override takes more than sbi's method does; a type checker cannot know this is intended.
# pyright: reportIncompatibleMethodOverride=false


class NPE_PFN(sbi_inference.NPE_PFN):  # noqa: D101 # the docstring is sbi's
    __doc__ = sbi_inference.NPE_PFN.__doc__

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Do what sbi does: nothing is trained.

        Raises:
            ArgumentError: If any argument is passed, because it could change nothing.
        """
        refuse_arguments(self, args, kwargs)
        return super().train()


NPE_PFN.train.__signature__ = inspect.signature(sbi_inference.NPE_PFN.train)  # type: ignore[attr-defined] # inspect's

NPE = _trainers["NPE_C"]
NLE = _trainers["NLE_A"]
NRE = _trainers["NRE_B"]

__all__ = ["NLE", "NPE", "NPE_PFN", "NRE", *_trainers]
