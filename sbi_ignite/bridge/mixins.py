"""What sbi_ignite puts in front of sbi's trainers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sbi.inference as sbi_inference
from torch import Tensor
from typing_extensions import Self

from sbi_ignite.bridge import marginal, train
from sbi_ignite.bridge.arguments import Call, parse_call
from sbi_ignite.bridge.lines import ReplacedLoop
from sbi_ignite.bridge.options import check_call, refuse_arguments
from sbi_ignite.bridge.stored import append_simulations_from
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
        init_from: Any | None = None,
        validation: Any | None = None,
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
            init_from: Weights to begin with: the run directory of an earlier training, a state
                dict, or an estimator, of the same architecture. Its z-scoring comes along. A
                training that is resumed does not read them again.
            validation: A validation set of your own, `(theta, x)` (MarginalTrainer: `x`), in place
                of a share of the simulations, all of which are then trained on. In later rounds of
                a sequential method its rows count as draws from the proposal, unless a third entry
                says which are from the prior, shape (num_rows,).
            **kwargs: sbi's keywords of this method's `train()`, `exclude_invalid_x`,
                `train_config`, `loss_args`.

        Returns:
            What sbi's `train()` returns.

        Raises:
            ArgumentError: If an argument is unknown, of the wrong type, or given twice.
            SettingsError: If a value is not valid.
            NoSimulationsError: If there is nothing to train on.
            DataError: If the data cannot be split, has invalid rows that may not be dropped, or
                does not fit to the validation set.
            CheckpointError: If `init_from` names a directory without weights.
            NonFiniteLossError: If a loss is NaN or infinite; the best weights so far are kept.

        Example:
            >>> theta = torch.rand(60, 2)
            >>> inference = NPE(show_progress_bars=False).append_simulations(theta, theta)
            >>> estimator = inference.train(TrainConfig(max_epochs=1), LossArgsNPE())
        """
        new = {
            "logging": logging,
            "early_stopping": early_stopping,
            "checkpoint": checkpoint,
            "callbacks": callbacks,
            "init_from": init_from,
            "validation": validation,
        }
        carry_out = (
            marginal.train if isinstance(self, sbi_inference.MarginalTrainer) else train.train
        )
        return carry_out(self, method_behind(type(self), "train"), args, {**new, **kwargs})

    def append_simulations_from(
        self,
        dataset: Any,
        proposal: Any = None,
        exclude_invalid_x: bool | None = None,
        from_round: int | None = None,
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Self:
        """Append simulations in files, which stay there: `train()` reads what it needs.

        One pass over the file finds rows with NaN or Inf in x, which are treated as
        `append_simulations` of this method treats them. Everything else is as with simulations in
        memory: rounds, split, z-scoring by the training rows, stopping, checkpoints, resume. Calls
        of both kinds can be mixed. A trainer without a prior gets one of up to 100,000 parameters
        of the file.

        Args:
            dataset: What `open_simulations` returns, or takes.
            proposal: What theta was drawn from; None for the prior. For methods that have it.
            exclude_invalid_x: Whether rows with NaN or Inf in x are left out; None does what the
                method does by default.
            from_round: The round of likelihood and ratio estimation that theta belongs to.
            transform: `transform(theta, x)` returns both for every training batch anew, such as x
                with fresh noise. It draws from the generators of the training, so that a resumed
                one continues exactly. Validation sees the same draws in every epoch.

        Returns:
            The trainer.

        Raises:
            DataError: If x has invalid rows and the method does not allow for them, or no others.
            ArgumentError: If an argument is of the wrong type, or the method has no such one.

        Example:
            >>> inference = NPE()  # doctest: +SKIP
            >>> inference.append_simulations_from(open_simulations("sims.h5"))  # doctest: +SKIP
        """
        return append_simulations_from(
            self, dataset, proposal, exclude_invalid_x, from_round, transform
        )


class IgniteLoop(IgniteTrainer, ReplacedLoop):
    """`IgniteTrainer` for the trainers that share sbi's loop: all but MarginalTrainer."""

    def train_where_sbi_would(self, *args: Any, **kwargs: Any) -> Any:
        """Train by `run_training` where sbi would run its loop."""
        return train.run_training_loop(self, *args, **kwargs)

    def get_dataloaders(self, *args: Any, **kwargs: Any) -> Any:
        """Return loaders; within `train()`, batches sliced by index."""
        return train.get_dataloaders(
            self, method_behind(type(self), "get_dataloaders"), *args, **kwargs
        )


class IgniteMarginal(IgniteTrainer):
    """`IgniteTrainer` for MarginalTrainer, which takes samples alone."""

    def append_samples(self, x: Any) -> Self:
        """Keep the samples to train on, in place of earlier ones.

        Args:
            x: Samples, shape (num_rows, dim_x): a tensor or an array of numbers.

        Returns:
            The trainer.

        Raises:
            ArgumentError: If it is neither.
            DataError: If it has another shape.
        """
        return method_behind(type(self), "append_samples")(self, marginal.as_samples(x))


class PretrainedTrainer:
    """`train()` of a trainer whose network is trained already."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Do what sbi does: nothing is trained.

        Raises:
            ArgumentError: If any argument is passed, because it could change nothing.
        """
        refuse_arguments(self, args, kwargs)
        return method_behind(type(self), "train")(self)


def check_train_call(trainer: Any, arguments: Mapping[str, Any]) -> Call:
    """Check a call of `train()` without carrying it out.

    Args:
        trainer: A trainer, of `sbi_ignite` or of sbi.
        arguments: Its arguments by name.

    Returns:
        The parsed call.

    Raises:
        ArgumentError: See `IgniteTrainer.train`, likewise the others.
        SettingsError: If a value is not valid.
        NoSimulationsError: If there is nothing to train on.
    """
    ours = isinstance(trainer, IgniteTrainer)
    found = method_behind(type(trainer), "train") if ours else type(trainer).train
    call = parse_call(trainer, inspect.unwrap(found), (), arguments)
    train.check_simulations(trainer)
    check_call(trainer, call)
    return call


def method_behind(cls: type, name: str) -> Any:
    """Return the function of that name in sbi's classes, past those of this module.

    Args:
        cls: A class of a trainer.
        name: The function's name.
    """
    mro = cls.__mro__
    last = max(i for i, parent in enumerate(mro) if parent in (IgniteTrainer, PretrainedTrainer))
    return next(vars(parent)[name] for parent in mro[last + 1 :] if name in vars(parent))
