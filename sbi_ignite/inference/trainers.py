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


# The overrides take more than sbi's methods do; a type checker cannot know this is intended.
# pyright: reportIncompatibleMethodOverride=false
# ruff: noqa: D101 # the docstrings are sbi's


class NPE_A(IgniteLoop, sbi_inference.NPE_A):
    __doc__ = sbi_inference.NPE_A.__doc__


class NPE_B(IgniteLoop, sbi_inference.NPE_B):
    __doc__ = sbi_inference.NPE_B.__doc__


class NPE_C(IgniteLoop, sbi_inference.NPE_C):
    __doc__ = sbi_inference.NPE_C.__doc__


class MNPE(IgniteLoop, sbi_inference.MNPE):
    __doc__ = sbi_inference.MNPE.__doc__


class NLE_A(IgniteLoop, sbi_inference.NLE_A):
    __doc__ = sbi_inference.NLE_A.__doc__


class MNLE(IgniteLoop, sbi_inference.MNLE):
    __doc__ = sbi_inference.MNLE.__doc__


class NRE_A(IgniteLoop, sbi_inference.NRE_A):
    __doc__ = sbi_inference.NRE_A.__doc__


class NRE_B(IgniteLoop, sbi_inference.NRE_B):
    __doc__ = sbi_inference.NRE_B.__doc__


class NRE_C(IgniteLoop, sbi_inference.NRE_C):
    __doc__ = sbi_inference.NRE_C.__doc__


class BNRE(IgniteLoop, sbi_inference.BNRE):
    __doc__ = sbi_inference.BNRE.__doc__


class FMPE(IgniteLoop, sbi_inference.FMPE):
    __doc__ = sbi_inference.FMPE.__doc__


class NPSE(IgniteLoop, sbi_inference.NPSE):
    __doc__ = sbi_inference.NPSE.__doc__


class MarginalTrainer(IgniteTrainer, sbi_inference.MarginalTrainer):
    __doc__ = sbi_inference.MarginalTrainer.__doc__


class NPE_PFN(sbi_inference.NPE_PFN):
    __doc__ = sbi_inference.NPE_PFN.__doc__

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Do what sbi does: nothing is trained.

        Raises:
            ArgumentError: If any argument is passed, because it could change nothing.
        """
        refuse_arguments(self, args, kwargs)
        return super().train()


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


for _class in (
    *(NPE_A, NPE_B, NPE_C, MNPE, NLE_A, MNLE, NRE_A, NRE_B, NRE_C, BNRE, FMPE, NPSE),
    MarginalTrainer,
):
    _show_signature(_class)
NPE_PFN.train.__signature__ = inspect.signature(sbi_inference.NPE_PFN.train)  # type: ignore[attr-defined] # likewise

NPE = NPE_C
NLE = NLE_A
NRE = NRE_B
