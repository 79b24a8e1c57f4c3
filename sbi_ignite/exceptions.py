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
    """The root of every error that sbi_ignite raises on purpose.

    Example:
        >>> try:
        ...     TrainConfig(batch_size=0)
        ... except SbiIgniteError as error:
        ...     print(type(error).__name__)
        SettingsError
    """


class SbiIgniteWarning(UserWarning):
    """Something apart from the training went wrong; the training went on unharmed.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", SbiIgniteWarning)  # for scripts that allow none
    """


class SettingsError(SbiIgniteError, ValueError):
    """A setting is wrong: its value, its name, its environment variable or its file.

    Example:
        >>> try:
        ...     TrainConfig(batchsize=100)
        ... except SettingsError as error:
        ...     print("batch_size" in str(error))
        True
    """


class ArgumentError(SbiIgniteError, TypeError):
    """An argument has a type that is not accepted there, or one field was given twice.

    Example:
        >>> try:
        ...     CheckpointConfig("runs/a", directory="runs/b")
        ... except ArgumentError as error:
        ...     print(error)
        CheckpointConfig.directory is given twice: by position and by name
    """


class WrongTypeError(SettingsError, ArgumentError):
    """A keyword of `train()` has a type that its setting does not take.

    It is a `SettingsError` (a setting is wrong) and an `ArgumentError` (an argument has the wrong
    type), hence both a ValueError and a TypeError.

    Example:
        >>> issubclass(WrongTypeError, ValueError) and issubclass(WrongTypeError, TypeError)
        True
    """


class UnsupportedSbiError(SbiIgniteError, ImportError):
    """The installed version of sbi is not one whose internals sbi_ignite knows.

    Example:
        >>> try:
        ...     undo = patch_sbi()
        ... except UnsupportedSbiError:
        ...     print("this script trains without sbi_ignite")
        ... else:
        ...     unpatch_sbi()
    """


class NotYetError(SbiIgniteError, NotImplementedError):
    """The feature is announced but not built yet.

    Example:
        >>> issubclass(NotYetError, NotImplementedError)
        True
    """


class DataError(SbiIgniteError, ValueError):
    """The data cannot be trained on: too few rows, non-finite values, a loader without batches.

    Example:
        >>> x = torch.ones(10, 2)
        >>> try:
        ...     run_training(None, nn.Linear(2, 1), lambda model, x: model(x).mean(), [x[:0]])
        ... except DataError as error:
        ...     print(type(error).__name__)
        DataError
    """


class NoSimulationsError(SbiIgniteError, RuntimeError):
    """`train()` was called before any simulation was appended.

    Example:
        >>> try:
        ...     NPE(show_progress_bars=False).train(TrainConfig())
        ... except NoSimulationsError as error:
        ...     print(type(error).__name__)
        NoSimulationsError
    """


class NonFiniteLossError(SbiIgniteError, ValueError):
    """A training or validation loss is NaN or infinite; the best weights so far are kept.

    Args:
        message: What happened, in a sentence.
        epoch: The epoch in which it happened, counted as in the training summary.
        iteration: The optimizer step in which it happened, or, in validation, the last one before
            it; counted over the whole training.
        rows: Indices of the offending rows in the data; empty if they are not known.
        validation: Whether it was a validation loss.

    Example:
        >>> theta = torch.rand(60, 1)
        >>> inference = NRE(show_progress_bars=False).append_simulations(theta, theta / theta.min())
        >>> try:
        ...     inference.train(TrainConfig(learning_rate=1e30, max_epochs=5, clip_max_norm=None))
        ... except NonFiniteLossError as error:
        ...     print(error.epoch >= 1)
        True
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
    """An optional package is needed; the message holds the line that installs it.

    Example:
        >>> issubclass(MissingPackageError, ImportError)
        True
    """


class CheckpointError(SbiIgniteError, RuntimeError):
    """A run directory cannot be used: nothing readable in it, or another process holds it.

    Example:
        >>> try:
        ...     load_run("no/such/run")
        ... except CheckpointError as error:
        ...     print(error)
        no/such/run holds no run: there is no run.json in it.
    """


class CheckpointMismatchError(CheckpointError):
    """The run directory belongs to other data, another method, network or loss function.

    Example:
        >>> train = lambda rows: NPE(show_progress_bars=False).append_simulations(rows, rows).train(
        ...     TrainConfig(max_epochs=1), checkpoint="runs/mismatch"
        ... )
        >>> estimator = train(torch.rand(60, 2))
        >>> try:
        ...     train(torch.rand(60, 2))
        ... except CheckpointMismatchError as error:
        ...     print(type(error).__name__)
        CheckpointMismatchError
    """
