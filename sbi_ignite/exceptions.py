"""Errors and warnings, which callers can catch by kind.

Every error is an `SbiIgniteError` and also the built-in that a caller would expect, so that neither
``except SbiIgniteError`` nor ``except ValueError`` misses it.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "CheckpointMismatchError",
    "DataError",
    "MissingPackageError",
    "NoSimulationsError",
    "NonFiniteLossError",
    "NotYetError",
    "RankFailedError",
    "SbiIgniteError",
    "SbiIgniteWarning",
    "SettingsError",
    "UnsupportedSbiError",
    "WrongTypeError",
]


class SbiIgniteError(Exception):
    """The root of every error that sbi_ignite raises on purpose."""


class SbiIgniteWarning(UserWarning):
    """Something apart from the training went wrong; the training went on unharmed."""


class SettingsError(SbiIgniteError, ValueError):
    """A setting is wrong: its value, its name, its environment variable or its file."""


class ArgumentError(SbiIgniteError, TypeError):
    """An argument has a type that is not accepted there, or one field was given twice."""


class WrongTypeError(SettingsError, ArgumentError):
    """A keyword of `train()` has a type that its setting does not take.

    It is a `SettingsError` (a setting is wrong) and an `ArgumentError` (an argument has the wrong
    type), hence both a ValueError and a TypeError.
    """


class UnsupportedSbiError(SbiIgniteError, ImportError):
    """The installed version of sbi is not one whose internals sbi_ignite knows."""


class NotYetError(SbiIgniteError, NotImplementedError):
    """The feature is announced but not built yet."""


class DataError(SbiIgniteError, ValueError):
    """The data cannot be trained on: too few rows, non-finite values, a loader without batches."""


class NoSimulationsError(SbiIgniteError, RuntimeError):
    """`train()` was called before any simulation was appended."""


class NonFiniteLossError(SbiIgniteError, ValueError):
    """A training or validation loss is NaN or infinite; the best weights so far are kept.

    Args:
        message: What happened, in a sentence.
        epoch: The epoch in which it happened, counted as in the training summary.
        iteration: The optimizer step in which it happened, or, in validation, the last one before
            it; counted over the whole training.
        rows: Indices of the offending rows in the data; empty if they are not known.
        validation: Whether it was a validation loss.
    """

    def __init__(
        self,
        message: str,
        *,
        epoch: int = 0,
        iteration: int = 0,
        rows: Iterable[int] = (),
        validation: bool = False,
    ) -> None:
        super().__init__(message)
        self.epoch = int(epoch)
        self.iteration = int(iteration)
        self.rows = tuple(int(row) for row in rows)
        self.validation = bool(validation)


class RankFailedError(SbiIgniteError, RuntimeError):
    """One of several processes that train one network together has ended or does not answer.

    Args:
        message: What happened, in a sentence that names the rank.
        ranks: The ranks that are missing; empty if all of them still run.
    """

    def __init__(self, message: str, *, ranks: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.ranks = tuple(int(rank) for rank in ranks)


class MissingPackageError(SbiIgniteError, ImportError):
    """An optional package is needed; the message holds the line that installs it."""


class CheckpointError(SbiIgniteError, RuntimeError):
    """A run directory cannot be used: nothing readable in it, or another process holds it."""


class CheckpointMismatchError(CheckpointError):
    """The run directory belongs to other data, another method, network or loss function."""
