"""What all supported lines of sbi have in common: a trainer's private parts under public names."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import sbi
from sbi.inference import NeuralInference
from sbi.utils.torchutils import check_if_prior_on_device, process_device
from sbi.utils.tracking import TensorBoardTracker
from torch import Tensor, nn

from sbi_ignite.bridge.lines.network_call import NetworkCall
from sbi_ignite.bridge.ownership import is_sbis_own
from sbi_ignite.data.table import MASKS, is_stored, table_of

_INITIALIZE = "_initialize_neural_network"
_LOSS = ("_loss", "_get_losses", "loss")
"""Methods with which a trainer computes its loss; only MarginalTrainer has the last one."""

_LOSS_AND_PAIRS = (*_LOSS, "_classifier_logits")
_LOSS_AND_PROPOSAL = (
    *_LOSS_AND_PAIRS,
    "_log_prob_proposal_posterior",
    "_log_prob_proposal_posterior_atomic",
)
_SIMULATIONS = ("_theta_roundwise", "_x_roundwise", "_prior_masks", "_x")
"""Attributes that hold simulations: lists of tensors, or a tensor."""

_ONE_TENSOR = "one tensor"

_SEES_LOADERS = ("get_dataloaders", "_train_epoch", "_validate_epoch", "_run_training_loop")


class SbiTrainer:
    """One of sbi's trainers, with its private parts under public names.

    Whatever users may override (`_train_epoch`, `_converged`, `_get_losses`, ...) is asked on the
    trainer itself. What differs between lines of sbi is in the pages beside this one.

    Args:
        trainer: One of sbi's trainers, or of a user's subclass.
    """

    scores_last_epoch: ClassVar[bool] = True
    """Whether sbi compares the last epoch of a spent budget with the best one."""

    RECORDS: ClassVar[tuple[str, ...]] = (
        "epoch",
        "_val_loss",
        "_best_val_loss",
        "_epochs_since_last_improvement",
        "train_indices",
        "val_indices",
    )
    """Attributes that count epochs and name the split. They are keys in checkpoints, too."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    # --- what it consists of

    @property
    def network(self) -> Any:
        """The network; None before it is built."""
        return getattr(self.trainer, "_neural_net", None)

    def forget_network(self) -> None:
        """Be as before the network was built."""
        self.trainer._neural_net = None

    @property
    def builder(self) -> Any:
        """The function that builds the network; None after unpickling."""
        return self.trainer._build_neural_net

    @property
    def device(self) -> Any:
        """Where it trains."""
        return self.trainer._device

    def move_to(self, device: str) -> None:
        """Train on another device from now on."""
        self.trainer._device = process_device(device)
        check_if_prior_on_device(self.trainer._device, self.prior)

    @property
    def prior(self) -> Any:
        """The prior; None without one."""
        return getattr(self.trainer, "_prior", None)

    @property
    def round_index(self) -> int:
        """The round of the newest simulations that it was trained on, from 0."""
        return self.trainer._round

    @property
    def shows_progress(self) -> bool:
        """Whether it prints its progress."""
        return self.trainer._show_progress_bars

    @property
    def shares_sbis_loop(self) -> bool:
        """Whether it trains by the loop that all of sbi's trainers but MarginalTrainer share."""
        return isinstance(self.trainer, NeuralInference)

    # --- simulations

    @property
    def has_simulations(self) -> bool:
        """Whether there is something to train on."""
        if hasattr(self.trainer, "_data_round_index"):
            return bool(self.trainer._data_round_index)
        return hasattr(self.trainer, "_x")

    @property
    def append_call(self) -> str:
        """The call by which simulations are added, as one writes it."""
        return "append_samples(x)" if self.appends_samples else "append_simulations(theta, x)"

    def simulations(self, starting_round: int) -> tuple[Any, ...]:
        """Return theta, x and prior masks from a round on, as sbi's `get_simulations` does.

        Simulations appended in a single call are not copied; sbi copies them every time. Those in
        files are `Column`s of a table instead of tensors.

        Args:
            starting_round: The first round to include.
        """
        trainer = self.trainer
        own = "get_simulations" in vars(trainer)
        if own or type(trainer).get_simulations is not NeuralInference.get_simulations:
            return trainer.get_simulations(starting_round)
        chosen = [
            i for i, round_ in enumerate(trainer._data_round_index) if round_ >= starting_round
        ]
        kept = (trainer._theta_roundwise, trainer._x_roundwise, trainer._prior_masks)
        calls = [tuple(parts[i] for parts in kept) for i in chosen]
        if len(chosen) == 1:
            return calls[0]
        if not any(map(is_stored, calls)):
            return trainer.get_simulations(starting_round)
        fields = ("theta", "x", MASKS)
        table = table_of(calls, fields)
        return tuple(map(table.column, fields))

    @property
    def stored_columns(self) -> tuple[Any, ...]:
        """What it was given last, if that lies in files; else nothing."""
        if self.appends_samples:
            found = (getattr(self.trainer, "_x", None),)
        else:
            found = self.simulations(0)
        return found if is_stored(found) else ()

    @property
    def appends_samples(self) -> bool:
        """Whether it takes x alone, as MarginalTrainer does."""
        return not hasattr(self.trainer, "_theta_roundwise")

    @property
    def num_appended_last(self) -> int:
        """How many rows of the latest call were kept."""
        return len(self.trainer._theta_roundwise[-1])

    def replace_appended(self, columns: Sequence[Any]) -> None:
        """Let something else stand for the rows of the latest call.

        Args:
            columns: theta, x and prior masks.
        """
        trainer = self.trainer
        kept = (trainer._theta_roundwise, trainer._x_roundwise, trainer._prior_masks)
        for parts, column in zip(kept, columns, strict=True):
            parts[-1] = column

    def detach_simulations(self) -> None:
        """Make constants of simulations that require gradients; the tensors stay as they are."""
        for name in _SIMULATIONS:
            held = getattr(self.trainer, name, None)
            if isinstance(held, list) and any(map(_requires_grad, held)):
                # A new list: another trainer may share this one.
                detached = [part.detach() if _requires_grad(part) else part for part in held]
                setattr(self.trainer, name, detached)
            elif isinstance(held, Tensor) and held.requires_grad:
                setattr(self.trainer, name, held.detach())

    @property
    def appended_from_prior(self) -> bool:
        """Whether the rows of the latest call were drawn from the prior."""
        return bool(self.trainer._prior_masks[-1].all())

    def taken_apart(self) -> tuple[dict[str, Any], list[Tensor]]:
        """Return its attributes without tracker and simulations, and the simulations.

        `put_together` makes a trainer of them. Nothing is copied, and the trainer stays as it is.
        Simulations in files stay among the attributes: their stand-ins are small.
        """
        state, tensors = dict(vars(self.trainer)), []
        state["_tracker"] = None
        for name in _SIMULATIONS:
            held = state.get(name)
            parts = held if isinstance(held, list) else [held]
            if any(is_stored((part,)) for part in parts):
                continue
            if isinstance(held, list):
                tensors += held
                state[name] = len(held)
            elif isinstance(held, Tensor):
                tensors.append(held)
                state[name] = _ONE_TENSOR
        return state, tensors

    @staticmethod
    def put_together(
        kind: type,
        state: Mapping[str, Any],
        tensors: Iterable[Tensor],
        tracker: Any,
        prior: Any | None = None,
    ) -> Any:
        """Return a trainer made of what `taken_apart` returned; sbi's own pickling drops builders.

        Args:
            kind: The trainer's class.
            state: Its attributes.
            tensors: Its simulations.
            tracker: Its tracker.
            prior: Its prior; None for the one among the attributes. sbi asks whether a proposal is
                this very object.
        """
        trainer, rest = object.__new__(kind), iter(tensors)
        vars(trainer).update(state)
        vars(trainer)["_tracker"] = tracker
        if prior is not None:
            vars(trainer)["_prior"] = prior
        for name in _SIMULATIONS:
            if isinstance(state.get(name), int):
                vars(trainer)[name] = [next(rest) for _ in range(state[name])]
            elif isinstance(state.get(name), str):
                vars(trainer)[name] = next(rest)
        return trainer

    def replace_simulations(self, tensors: Iterable[Tensor]) -> None:
        """Hold other tensors of the same values, in the order in which `taken_apart` returns them.

        Args:
            tensors: As many as there are.
        """
        state, _ = self.taken_apart()
        tracker = self.tracker
        vars(self.trainer).update(
            vars(self.put_together(type(self.trainer), state, tensors, tracker))
        )

    @property
    def is_trained_on_newest(self) -> bool:
        """Whether there is a network that was trained on the newest simulations."""
        newest = max(getattr(self.trainer, "_data_round_index", None) or [0])
        return self.network is not None and newest == self.round_index

    # --- what a user has overridden

    @property
    def loss_is_sbis_own(self) -> bool:
        """Whether sbi's own methods compute the loss."""
        return self._are_sbis_own(_LOSS_AND_PAIRS)

    @property
    def loss_and_proposal_are_sbis_own(self) -> bool:
        """Whether sbi's own methods compute the loss, also that of later rounds."""
        return self._are_sbis_own(_LOSS_AND_PROPOSAL)

    @property
    def keeps_loaders_to_itself(self) -> bool:
        """Whether no method of a user gets to see the loaders."""
        return all(is_sbis_own(self.trainer, name) for name in _SEES_LOADERS)

    TRAIN_EPOCH: ClassVar[str] = "_train_epoch"
    """Name of the method that trains for an epoch and returns the mean loss."""

    VALIDATE_EPOCH: ClassVar[str] = "_validate_epoch"
    """Name of the method that returns the validation loss."""

    def is_overridden(self, name: str) -> bool:
        """Return whether the trainer has a method and a user has overridden it.

        Args:
            name: Name of the method, such as `TRAIN_EPOCH`.
        """
        return hasattr(self.trainer, name) and not is_sbis_own(self.trainer, name)

    @property
    def converges_as_sbi(self) -> bool:
        """Whether sbi's own method decides that training has converged."""
        return is_sbis_own(self.trainer, "_converged")

    @property
    def summarizes_as_sbi(self) -> bool:
        """Whether sbi's own method tells the tracker."""
        return is_sbis_own(self.trainer, "_summarize")

    def _are_sbis_own(self, names: tuple[str, ...]) -> bool:
        trainer = self.trainer
        return all(is_sbis_own(trainer, name) for name in names if hasattr(trainer, name))

    # --- computing the loss

    def computes_loss_as(self, known: type) -> bool:
        """Return whether sbi's own methods compute the loss, and are those of a class of sbi's.

        Args:
            known: The class.
        """
        cls = type(self.trainer)
        return all(
            is_sbis_own(self.trainer, name) and getattr(cls, name) is getattr(known, name)
            for name in _LOSS
            if hasattr(known, name)
        )

    @property
    def pairs_as_sbi(self) -> bool:
        """Whether sbi's own method pairs theta and x (ratio estimation)."""
        return is_sbis_own(self.trainer, "_classifier_logits")

    @property
    def classifier_logits(self) -> Callable[[Tensor, Tensor, int], Tensor]:
        """The trainer's own way to pair theta and x (ratio estimation)."""
        return self.trainer._classifier_logits

    def proposal_log_prob(self, theta: Tensor, x: Tensor, masks: Tensor, proposal: Any) -> Tensor:
        """Return the trainer's log-probability of the proposal posterior, shape (batch,).

        Args:
            theta: Parameters, shape (batch, dim_theta).
            x: Data, shape (batch, ...).
            masks: Whether a row is from the prior, shape (batch, 1).
            proposal: What the last round was drawn from.
        """
        return self.trainer._log_prob_proposal_posterior(theta, x, masks, proposal)

    def losses(self, batch: Any, args: Any) -> Tensor:
        """Return the losses of a batch as the trainer itself computes them, shape (batch,).

        Args:
            batch: The tensors of the batch.
            args: sbi's loss arguments; None for likelihood estimation.
        """
        if not self.shares_sbis_loop:
            return self.trainer.loss(batch[0])
        if args is None:
            return self.trainer._get_losses(batch=batch)
        return self.trainer._get_losses(batch=batch, loss_args=args)

    # --- building the network

    @contextmanager
    def initializing_by(self, initialize: Callable[..., None]) -> Iterator[None]:
        """Let another function prepare the network inside the block, the first time it is asked.

        A user's own method stays in place.

        Args:
            initialize: Gets sbi's own method, `retrain_from_scratch` and `start_idx`.
        """
        if not is_sbis_own(self.trainer, _INITIALIZE):
            yield
            return
        trainer = self.trainer

        def replacement(retrain_from_scratch: bool, start_idx: int) -> None:
            # Nothing is left on the trainer by the time users' callbacks see it.
            delattr(trainer, _INITIALIZE)
            initialize(getattr(trainer, _INITIALIZE), retrain_from_scratch, start_idx)

        setattr(trainer, _INITIALIZE, replacement)
        try:
            yield
        finally:
            vars(trainer).pop(_INITIALIZE, None)

    def build_marginal(self, x: Tensor) -> None:
        """Build the network of a MarginalTrainer, unless it has one."""
        if self.network is None:
            self.trainer._neural_net = self.builder(x)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that sbi gives its optimizer."""
        return list(self.network.parameters())

    @staticmethod
    def describe_builder(build: Any) -> NetworkCall:
        """Return what a builder of sbi's does, as data.

        Args:
            build: A trainer's builder.

        Raises:
            UndescribableError: If it is not one of sbi's.
        """
        raise NotImplementedError

    # --- records of a training

    def begin_marginal(self) -> None:
        """Set the round of a MarginalTrainer, as sbi does for code that other trainers share."""
        self.trainer._round = 0

    def reset(self) -> None:
        """Set the counters for a training that starts anew."""
        self.trainer.epoch, self.trainer._val_loss = 0, float("inf")

    @property
    def validation_loss(self) -> float:
        """That of the last epoch."""
        return self.trainer._val_loss

    @property
    def best_loss(self) -> float:
        """The best validation loss so far."""
        return self.trainer._best_val_loss

    @property
    def best_weights(self) -> dict[str, Any] | None:
        """The weights that had it."""
        return getattr(self.trainer, "_best_model_state_dict", None)

    @best_weights.setter
    def best_weights(self, weights: dict[str, Any] | None) -> None:
        """Replace them."""
        self.trainer._best_model_state_dict = weights

    @property
    def fruitless_epochs(self) -> int | None:
        """Epochs without improvement by sbi's count; None before the first training."""
        return getattr(self.trainer, "_epochs_since_last_improvement", None)

    def keep_best(
        self, loss: float, weights: dict[str, Any] | None, fruitless: int | None = None
    ) -> None:
        """Keep the best loss and its weights, and the count of epochs since if it is given."""
        self.trainer._best_val_loss, self.trainer._best_model_state_dict = loss, weights
        if fruitless is not None:
            self.trainer._epochs_since_last_improvement = fruitless

    def converged(self, patience: int) -> bool:
        """Ask the trainer whether it has converged; sbi's own method also keeps the best weights.

        Args:
            patience: sbi's `stop_after_epochs`.
        """
        return bool(self.trainer._converged(self.trainer.epoch, patience))

    def records(self) -> dict[str, Any]:
        """Return counters and split."""
        return {name: getattr(self.trainer, name, None) for name in self.RECORDS}

    def set_records(self, records: Mapping[str, Any]) -> None:
        """Write counters and split back."""
        for name in self.RECORDS:
            setattr(self.trainer, name, records[name])

    @property
    def summary(self) -> dict[str, list[Any]]:
        """Sbi's lists of what happened."""
        return self.trainer._summary

    def end_epoch(
        self, losses: tuple[float, float], started: float, kwargs: Mapping[str, Any], show: bool
    ) -> None:
        """Record an epoch, as sbi does before it asks whether training has converged.

        Args:
            losses: Training and validation loss.
            started: Time at which the epoch started.
            kwargs: sbi's arguments for `_summarize_epoch`.
            show: Whether to print progress, if the trainer does.
        """
        trainer = self.trainer
        trainer._val_loss = losses[1]
        # MarginalTrainer has no such method and writes the same three lists in its loop.
        own = NeuralInference._summarize_epoch.__get__(trainer)
        getattr(trainer, "_summarize_epoch", own)(*losses, started, kwargs)
        trainer.epoch += 1
        if show:
            trainer._maybe_show_progress(self.shows_progress, trainer.epoch)

    def report_convergence(self, patience: int | None, max_epochs: int) -> None:
        """Print or warn how training ended, as sbi does.

        Args:
            patience: sbi's `stop_after_epochs`; None if other rules than sbi's were asked for.
            max_epochs: sbi's `max_num_epochs`.
        """
        raise NotImplementedError

    def report_marginal_end(self, max_epochs: int) -> None:
        """Warn, as sbi's MarginalTrainer does, if the budget of epochs ran out."""
        if self.trainer.epoch > max_epochs:
            warn_budget_spent(max_epochs)

    def describe_round(self) -> str:
        """Return what sbi prints as the summary of a training."""
        return self.trainer._describe_round(self.round_index, self.summary)

    # --- its tracker

    @property
    def tracker(self) -> Any:
        """The tracker of sbi's, to which it reports how training went."""
        return self.trainer._tracker

    def track(self, name: str, value: Any, step: int) -> None:
        """Tell the tracker a number."""
        self.tracker.log_metric(name=name, value=value, step=step)

    def flush_tracker(self) -> None:
        """Let the tracker write what it was told."""
        self.tracker.flush()

    def summarize(self) -> None:
        """Tell the tracker about the whole training, by sbi's method or the user's."""
        self.trainer._summarize(round_=self.round_index)

    @property
    def has_sbis_tracker(self) -> bool:
        """Whether that is the one of sbi which writes for TensorBoard."""
        return isinstance(self.tracker, TensorBoardTracker)

    def show_progress(self, shown: bool) -> None:
        """Print progress from now on, or none."""
        self.trainer._show_progress_bars = shown

    def silence(self, tracker: Any) -> None:
        """Print no progress from now on, and tell another tracker."""
        self.trainer._show_progress_bars, self.trainer._tracker = False, tracker


def warn_budget_spent(max_epochs: int) -> None:
    """Warn, in sbi's words, that the budget of epochs ran out, and attribute it to the user's line.

    Args:
        max_epochs: The budget.
    """
    warnings.warn(
        f"Maximum number of epochs `max_num_epochs={max_epochs}` reached, "
        "but network has not yet fully converged. Consider increasing it.",
        stacklevel=_stacklevel_of_user(),
    )


def _stacklevel_of_user() -> int:
    """Return the stacklevel of the first frame that belongs to neither sbi nor this package."""
    inside = tuple(f"{folder}/" for folder in (Path(str(sbi.__file__)).parent, _PACKAGE))
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    return level


_PACKAGE = Path(__file__).parents[2]


def _requires_grad(held: Any) -> bool:
    return isinstance(held, Tensor) and held.requires_grad
