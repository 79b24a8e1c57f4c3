"""Train several trainings together, over one pass of the batches per epoch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from sbi_ignite.exceptions import ArgumentError, SbiIgniteWarning
from sbi_ignite.handlers.signals import hold_together
from sbi_ignite.random_state import OwnRandomState
from sbi_ignite.summary import TrainingSummary
from sbi_ignite.training.run import in_turns
from sbi_ignite.training.shared_pass import Share, SharedPass
from sbi_ignite.training.training import Training
from sbi_ignite.training.turns import InTurns, check_directories, ends_all


def run_together(trainings: Sequence[Training]) -> list[TrainingSummary | Exception]:
    """Run trainings in lockstep, which share every batch, and leave the best weights in each model.

    Each keeps its own rules, best weights, schedule, summary, run directory and loggers. One that
    ends leaves; the others go on. Only training batches are shared: each training validates by
    itself.

    Each draws its random numbers from states of its own, beginning with those in which it was
    assembled, and the order of rows is drawn from those in which the `SharedPass` was made. So each
    gets, bit for bit, the weights and losses of `run` on the same batches: all of them if the order
    of rows depends on nothing that a training draws, as in `ShuffledBatches` or a list. The random
    states of the process are afterwards as they were.

    A resumed training that has more batches behind it than another, because a kill came between
    their checkpoints, waits until the others have caught up. A signal ends all of them. Time limits
    and durations of epochs are of the clock, and include the turns of the others.

    Args:
        trainings: What `assemble` put together, each with a share of one `SharedPass` as its
            training batches. They run once.

    Returns:
        For each training in turn its summary, or the error that ended it. Besides being returned,
        an error causes a warning when it happens.

    Raises:
        ArgumentError: If they do not share one pass, or two have one run directory.
        Exception: If a training cannot be continued from its run directory, in which case nothing
            has been trained; the first error, if all of them ended with one.
        KeyboardInterrupt: After Ctrl-C, when everything is saved.
        SystemExit: After SIGTERM or SIGUSR1, when everything is saved.

    Example:
        >>> import torch
        >>> from sbi_ignite import TrainConfig
        >>> from sbi_ignite.data.foreign import ForeignBatches
        >>> from sbi_ignite.settings import resolve
        >>> from sbi_ignite.training.training import assemble
        >>> one_pass = SharedPass(ForeignBatches([torch.randn(8, 2) for _ in range(4)]))
        >>> def loss(model, batch):
        ...     return model(batch).square().mean(dim=1)
        >>> settings = resolve(train=TrainConfig(max_epochs=2))
        >>> trainings = [
        ...     assemble(settings, torch.nn.Linear(2, 1), loss, one_pass.share()) for _ in range(3)
        ... ]
        >>> [summary.epochs_trained for summary in run_together(trainings)]
        [2, 2, 2]
    """
    one_pass = _shared_pass(trainings)
    check_directories(trainings)
    signals = [training.signals for training in trainings]
    hold_together(signals)
    members = [_Member(training) for training in trainings]
    with OwnRandomState().in_force():
        _train(members, one_pass)
    signals[0].pass_on()
    outcomes = [member.outcome for member in members if member.outcome is not None]
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if len(errors) == len(members):
        raise errors[0]
    return outcomes


def _train(members: Sequence[_Member], one_pass: SharedPass) -> None:
    """Let all members take turns until each has an outcome."""
    with ends_all(members):
        for member in members:
            member.resume()
        training = [member for member in members if member.training.has_epochs_left]
        behind = min(training or members, key=_position)
        one_pass.begin(behind.share, behind.training.signals.guard)
        for number, member in enumerate(members):
            _take_turn(member, number, one_pass)
        while waiting := [member for member in members if member.outcome is None]:
            now = min(map(_position, waiting))
            for number, member in enumerate(members):
                if member.outcome is None and _position(member) == now:
                    _take_turn(member, number, one_pass)


class _Member(InTurns):
    """One of several trainings that share batches.

    Args:
        training: The training.

    Attributes:
        share: Its batches.
    """

    def __init__(self, training: Training) -> None:
        super().__init__(training, in_turns(training))
        self.share = _share_of(training)

    def resume(self) -> None:
        """Go to where the training continues."""
        super().resume()
        self.share.num_taken = self.training.state.iteration


def _position(member: _Member) -> int:
    """Return how many batches a training has behind it."""
    return member.share.num_taken


def _take_turn(member: _Member, number: int, one_pass: SharedPass) -> None:
    """Let a training go on, and warn if that ends it with an error of its own."""
    member.turn()
    error = member.outcome
    if isinstance(error, Exception) and error is not one_pass.error:
        warnings.warn(
            f"Training {number} of those that run together (counted from 0) has ended with an "
            f"error, the others go on: {type(error).__name__}: {error}",
            SbiIgniteWarning,
            stacklevel=3,
        )


def _share_of(training: Training) -> Share:
    """Return the batches of a training, which are to be a share of a pass."""
    if isinstance(training.train_batches, Share):
        return training.train_batches
    raise ArgumentError(
        "trainings: expected shares of one SharedPass as training batches, got "
        f"{type(training.train_batches).__name__}. Pass SharedPass(batches).share() to assemble()."
    )


def _shared_pass(trainings: Sequence[Training]) -> SharedPass:
    """Return the pass that all trainings share, each with a share of its own."""
    shares = [_share_of(training) for training in trainings]
    passes = {id(share.of): share.of for share in shares}
    if len(passes) != 1 or len(set(map(id, shares))) < len(shares):
        raise ArgumentError(
            "trainings: expected at least one training, and for each a share of its own of one and "
            f"the same SharedPass, got {len(trainings)} trainings with {len(set(map(id, shares)))} "
            f"shares of {len(passes)} passes. Call share() once for each training."
        )
    return shares[0].of
