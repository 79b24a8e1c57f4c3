"""A `.train()` call of an sbi trainer comes in; what sbi's `.train()` returns goes out.

sbi's own `train()` still prepares everything (start index, network, loss arguments) and calls two
methods that are replaced here: `get_dataloaders` and `_run_training_loop`. What the call asked for
beyond sbi's keywords waits for them in a context variable. Private names were read in sbi 0.27.0.
"""

from __future__ import annotations

import logging as python_logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from ignite.utils import manual_seed
from sbi.inference import NeuralInference
from sbi.utils.torchutils import check_if_prior_on_device, process_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sbi_ignite.callback import TrainingState
from sbi_ignite.data.in_memory import BatchIndices, OrderedBatches, SbiOrderBatches, ShuffledBatches
from sbi_ignite.data.split import check_split, split_rows
from sbi_ignite.engine.optimizers import make_optimizer
from sbi_ignite.engine.run import Host, make_rule, run_training
from sbi_ignite.engine.steps import Step
from sbi_ignite.exceptions import DataError, NoSimulationsError
from sbi_ignite.handlers.best_weights import BestWeights
from sbi_ignite.handlers.epoch_mean import StepOutput
from sbi_ignite.handlers.stopping import Rule
from sbi_ignite.inference.arguments import Call, parse_call
from sbi_ignite.inference.losses import is_sbis_own, loss_of
from sbi_ignite.inference.version import check_sbi_version
from sbi_ignite.methods.base import Loss
from sbi_ignite.settings import EarlyStopping, TrainConfig

_current: ContextVar[Call | None] = ContextVar("sbi_ignite_call", default=None)
_logger = python_logging.getLogger("sbi_ignite.data")


# --- train()


def train(
    trainer: Any, sbi_train: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Carry out one call of `.train()`.

    Args:
        trainer: The trainer that was called.
        sbi_train: sbi's own `train` function of its class.
        args: Positional arguments.
        kwargs: Keyword arguments, sbi's and ours.

    Returns:
        What sbi's `train()` returns: the estimator, with the best weights in it.
    """
    if active_call(trainer) is not None:
        return sbi_train(trainer, *args, **kwargs)
    check_sbi_version()
    call = parse_call(trainer, sbi_train, args, kwargs)
    check_simulations(trainer)
    prepare(trainer, call.settings.train)
    with _activated(call):
        return sbi_train(trainer, **call.keywords)


def active_call(trainer: Any) -> Call | None:
    """Return the call that this trainer is in the middle of, if any."""
    call = _current.get()
    return call if call is not None and call.trainer is trainer else None


@contextmanager
def _activated(call: Call) -> Iterator[None]:
    """Let the replaced methods find the call."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)


def check_simulations(trainer: Any) -> None:
    """Refuse to train on nothing."""
    if not getattr(trainer, "_data_round_index", True) or (
        not hasattr(trainer, "_data_round_index") and not hasattr(trainer, "_x")
    ):
        add = (
            "append_simulations(theta, x)"
            if hasattr(trainer, "_theta_roundwise")
            else "append_samples(x)"
        )
        raise NoSimulationsError(
            f"No simulations found. {type(trainer).__name__}.train() needs data: call .{add} first."
        )


def prepare(trainer: Any, config: TrainConfig) -> None:
    """Seed and move the trainer as the settings ask."""
    if config.seed is not None:
        manual_seed(config.seed)
    if config.device is not None:
        trainer._device = process_device(config.device)
        check_if_prior_on_device(trainer._device, getattr(trainer, "_prior", None))


# --- data


def get_dataloaders(
    trainer: Any,
    sbi_get_dataloaders: Callable[..., Any],
    starting_round: int = 0,
    training_batch_size: int = 200,
    validation_fraction: float = 0.1,
    resume_training: bool = False,
    dataloader_kwargs: dict[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Return batches of training and validation data; outside `.train()` sbi's own loaders."""
    call = active_call(trainer)
    if call is None:
        return sbi_get_dataloaders(
            trainer,
            starting_round,
            training_batch_size,
            validation_fraction,
            resume_training,
            dataloader_kwargs,
        )
    tensors = trainer.get_simulations(starting_round)
    split(trainer, call, tensors[1], validation_fraction, resume_training)
    if call.sbi_compat and dataloader_kwargs is not None:
        # Splits as it stands: the indices have just been drawn.
        return sbi_get_dataloaders(
            trainer,
            starting_round,
            training_batch_size,
            validation_fraction,
            True,
            dataloader_kwargs,
        )
    return make_loaders(trainer, call, tensors, training_batch_size, dataloader_kwargs)


def split(
    trainer: Any, call: Call, x: Tensor, validation_fraction: float, keep: bool = False
) -> None:
    """Set `train_indices` and `val_indices` of a trainer.

    Args:
        trainer: The trainer.
        call: The call, which says whether rows with NaN or Inf in x are dropped.
        x: Simulated data, shape (num_rows, ...).
        validation_fraction: Share of the rows kept for validation.
        keep: Keep the split of an earlier call.
    """
    rows = _valid_rows(x, call.exclude_invalid_x)
    if not keep:
        trainer.train_indices, trainer.val_indices = split_rows(rows, validation_fraction)
    sizes = len(trainer.train_indices), len(trainer.val_indices)
    if keep and not call.sbi_compat and sum(sizes) != len(rows):
        raise DataError(
            f"resume_training=True continues on the {sum(sizes)} rows of the earlier call, but "
            f"there are {len(rows)} now. Train without it to use all, or resume before appending."
        )
    at_least = call.family.rows_needed if call.sbi_compat else 2
    check_split(*sizes, at_least, validation_fraction)
    _check_batch_size(call, sizes[0])


def _valid_rows(x: Tensor, exclude_invalid_x: bool | None) -> Tensor:
    """Return the numbers of the rows that may be trained on, shape (num_rows,)."""
    rows = torch.arange(len(x))
    if exclude_invalid_x is None:
        return rows
    valid = torch.isfinite(x.reshape(len(x), -1)).all(dim=1).cpu()
    invalid = rows[~valid]
    if len(invalid) == 0:
        return rows
    shown = ", ".join(map(str, invalid[:10].tolist())) + (", ..." if len(invalid) > 10 else "")
    if not exclude_invalid_x:
        raise DataError(
            f"{len(invalid)} of {len(x)} simulations have NaN or Inf in x (rows {shown}), and "
            "exclude_invalid_x=False forbids to drop them. Repair them or pass True."
        )
    _logger.warning(
        "%d of %d simulations have NaN or Inf in x and are left out of training.",
        len(invalid),
        len(x),
    )
    return rows[valid]


def _check_batch_size(call: Call, num_train: int) -> None:
    """Refuse a batch size that was asked for and that the data cannot fill; sbi clamps it."""
    batch_size, origin = call.settings.train.batch_size, call.settings.origin("train.batch_size")
    if call.sbi_compat or origin.source == "default" or batch_size <= num_train:
        return
    raise DataError(
        f"batch_size={batch_size} ({origin.where}) is larger than the {num_train} training rows. "
        f"Take at most {num_train}, or leave it out: the default adapts to the data."
    )


def make_loaders(
    trainer: Any,
    call: Call,
    tensors: Sequence[Tensor],
    batch_size: int,
    dataloader_kwargs: Mapping[str, Any] | None,
) -> tuple[Any, Any]:
    """Return batches over the trainer's split: in sbi's order, or every row and in a fixed order.

    Args:
        trainer: Has `train_indices` and `val_indices`.
        call: The call.
        tensors: Tensors that share their first dimension.
        batch_size: Rows in a batch, at most.
        dataloader_kwargs: Users' arguments for torch's DataLoader; None slices batches by index.
    """
    train_rows, val_rows = trainer.train_indices, trainer.val_indices
    train_size, val_size = min(batch_size, len(train_rows)), min(batch_size, len(val_rows))
    if call.sbi_compat:
        return (
            SbiOrderBatches(tensors, train_rows, train_size),
            SbiOrderBatches(tensors, val_rows, val_size),
        )
    seed = int(torch.empty((), dtype=torch.int64).random_().item())
    if dataloader_kwargs is None:
        return (
            ShuffledBatches(tensors, train_rows, train_size, seed),
            OrderedBatches(tensors, val_rows, val_size),
        )
    return (
        _torch_loader(tensors, BatchIndices(train_rows, train_size, seed), dataloader_kwargs),
        _torch_loader(tensors, BatchIndices(val_rows, val_size, None), dataloader_kwargs),
    )


def _torch_loader(
    tensors: Sequence[Tensor], indices: BatchIndices, dataloader_kwargs: Mapping[str, Any]
) -> DataLoader[Any]:
    """Return a DataLoader with users' arguments, by default over every row in even batches."""
    own_batches = {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"}
    if own_batches & set(dataloader_kwargs):
        subset = torch.utils.data.Subset(TensorDataset(*tensors), indices.indices.tolist())
        return DataLoader(subset, **{"batch_size": indices.batch_size, **dataloader_kwargs})
    return DataLoader(TensorDataset(*tensors), batch_sampler=indices, **dataloader_kwargs)


# --- the loop


def run_training_loop(
    trainer: Any,
    train_loader: Any,
    val_loader: Any,
    train_config: Any,
    loss_args: Any = None,
    summarization_kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Train a trainer's network where sbi would run its loop.

    Args:
        trainer: One of sbi's trainers.
        train_loader: Batches of training data.
        val_loader: Batches of validation data.
        train_config: sbi's own configuration.
        loss_args: sbi's own loss arguments.
        summarization_kwargs: sbi's arguments for `_summarize_epoch`.

    Returns:
        The trained network.
    """
    call = active_call(trainer) or _implied_call(trainer, train_config)
    loss = loss_of(trainer, loss_args)
    fit(trainer, call, loss, train_loader, val_loader, loss_args, summarization_kwargs or {})
    report_end(trainer, call)
    return trainer._neural_net


def _implied_call(trainer: Any, train_config: Any) -> Call:
    """Return the call that a user's own `train()` stands for, when it runs sbi's loop directly."""
    keywords = dict(vars(train_config))

    def everything(
        self: Any,
        training_batch_size: Any,
        learning_rate: Any,
        validation_fraction: Any,
        stop_after_epochs: Any,
        max_num_epochs: Any,
        resume_training: Any,
        retrain_from_scratch: Any,
        show_train_summary: Any,
        clip_max_norm: Any,
    ) -> None:
        """Stand for a train() that has every keyword of sbi's configuration."""

    return parse_call(trainer, everything, (), keywords)


def fit(
    trainer: Any,
    call: Call,
    loss: Loss,
    train_loader: Any,
    val_loader: Any,
    loss_args: Any = None,
    summarization_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Train `trainer._neural_net` through `run_training` and keep sbi's books.

    Args:
        trainer: One of sbi's trainers.
        call: The call that is carried out.
        loss: Loss of the trainer's method.
        train_loader: Batches of training data.
        val_loader: Batches of validation data.
        loss_args: sbi's own loss arguments, for overridden epoch methods.
        summarization_kwargs: sbi's arguments for `_summarize_epoch`.
    """
    config, net = call.settings.train, trainer._neural_net
    net.to(trainer._device)
    state, resume_from = _start(trainer, call)
    rules, best = _rules(trainer, call, state)

    def keep_books(epoch_started: float) -> None:
        trainer._val_loss = state.validation_loss
        # MarginalTrainer has no such method and writes the same three lists in its loop.
        summarize = getattr(trainer, "_summarize_epoch", _summarizer(trainer))
        summarize(
            state.train_loss, trainer._val_loss, epoch_started, dict(summarization_kwargs or {})
        )
        trainer.epoch += 1
        trainer._maybe_show_progress(trainer._show_progress_bars, trainer.epoch)

    train_step = validation_step = None
    if hasattr(trainer, "_train_epoch") and not is_sbis_own(trainer, "_train_epoch"):
        train_step = _whole_epoch(trainer._train_epoch, config.clip_max_norm, loss_args)
        train_loader = [train_loader]
    if hasattr(trainer, "_validate_epoch") and not is_sbis_own(trainer, "_validate_epoch"):
        validation_step = _whole_epoch(trainer._validate_epoch, loss_args)
        val_loader = [val_loader]

    _, trainer.training_summary = run_training(
        None,
        net,
        loss,
        train_loader,
        val_loader,
        optimizer=trainer.optimizer,
        callbacks=call.callbacks,
        device=trainer._device,
        host=Host(
            method=type(trainer).__name__,
            settings=call.settings,
            state=state,
            rules=rules,
            best_weights=best,
            train_step=train_step,
            validation_step=validation_step,
            resume_from=resume_from,
            on_epoch_end=keep_books,
            keep_snapshot=None if config.sbi_compat else _keep_on(trainer),
        ),
    )


def _summarizer(trainer: Any) -> Callable[..., None]:
    """Return sbi's plain way of noting an epoch in its summary, bound to a trainer."""
    return NeuralInference._summarize_epoch.__get__(trainer)


def _start(trainer: Any, call: Call) -> tuple[TrainingState, Mapping[str, Any] | None]:
    """Return the state from which training counts on, and the snapshot that it continues."""
    config = call.settings.train
    state = TrainingState(model=trainer._neural_net)
    earlier = getattr(trainer, "training_summary", None)
    if not config.resume_training or not hasattr(trainer, "optimizer"):
        trainer.optimizer = make_optimizer(config, trainer._neural_net.parameters())
        trainer.epoch, trainer._val_loss = 0, math.inf
        trainer._ignite_snapshot = None
        return state, None
    state.epoch = trainer.epoch
    if earlier is not None:
        for name in vars(state.history):
            getattr(state.history, name).extend(getattr(earlier, name))
        state.best_epoch = earlier.best_epoch
    snapshot = getattr(trainer, "_ignite_snapshot", None)
    if config.sbi_compat or snapshot is None or earlier is None:
        return state, None
    if call.settings.origin("train.learning_rate").source == "default":
        return state, snapshot
    before = earlier.config["train"]["learning_rate"]["value"]
    return state, _with_rate(snapshot, config.learning_rate / before)


def _with_rate(snapshot: Mapping[str, Any], factor: float) -> Mapping[str, Any]:
    """Return a snapshot whose learning rates are scaled, for a new rate given on resume."""
    if factor == 1.0:
        return snapshot
    scaled = deepcopy(dict(snapshot))
    for group in scaled["optimizer"]["param_groups"]:
        group.update({n: group[n] * factor for n in ("lr", "initial_lr") if n in group})
    if "base_lrs" in scaled.get("schedule", {}):
        scaled["schedule"]["base_lrs"] = [r * factor for r in scaled["schedule"]["base_lrs"]]
    return scaled


def _keep_on(trainer: Any) -> Callable[[dict[str, Any]], None]:
    """Return what stores the last weights, optimizer and random state for an exact resume."""

    def keep(snapshot: dict[str, Any]) -> None:
        trainer._ignite_snapshot = snapshot

    return keep


def _whole_epoch(epoch: Callable[..., float], *args: Any) -> Step:
    """Return a step that hands the whole loader to an epoch method that a user has overridden."""

    def step(engine: Engine, loader: Any) -> StepOutput:
        return StepOutput(loss_sum=float(epoch(loader, *args)), rows=1)

    return step


# --- stopping and best weights


def _rules(trainer: Any, call: Call, state: TrainingState) -> tuple[tuple[Rule, ...], BestWeights]:
    """Return the stopping rules of a call and the keeper of its best weights.

    In sbi's form the trainer's own `_converged` decides, and keeps the best weights, as long as the
    call asks for nothing that it does not know.
    """
    asked, config = call.settings.early_stopping, call.settings.train
    if not config.sbi_compat:
        rules = tuple(make_rule(rule, call.ema_loss_decay) for rule in asked)
        return rules, KeptOnTrainer(trainer)
    budget = SbiBudget(trainer, config.max_epochs)
    own = next((rule for rule in asked if _is_sbis(rule, call)), None)
    others = tuple(make_rule(rule, call.ema_loss_decay) for rule in asked if rule is not own)
    if own is None:
        return (budget, *others), KeptOnTrainer(trainer)
    converged = SbiConverged(trainer, own.patience, config.max_epochs)
    return (budget, converged, *others), KeptBySbi(trainer, converged)


def _is_sbis(rule: EarlyStopping, call: Call) -> bool:
    """Return whether a rule is the one that sbi's `_converged` implements for this family."""
    return rule.kind == call.family.default_rule.kind and rule.min_delta == 0.0


class _Trainers:
    """A rule whose memory is the trainer's own attributes."""

    def __init__(self, trainer: Any, max_epochs: int) -> None:
        self._trainer, self._max_epochs = trainer, max_epochs

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes of the trainer that sbi's rules use."""
        names = ("epoch", "_val_loss", "_best_val_loss", "_epochs_since_last_improvement")
        return {name: getattr(self._trainer, name, None) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set them."""
        for name, value in state.items():
            setattr(self._trainer, name, value)

    @property
    def spent(self) -> bool:
        """Whether the trainer's count is over the budget."""
        return self._trainer.epoch > self._max_epochs


class SbiBudget(_Trainers):
    """sbi's budget of epochs: `max_num_epochs=N` trains up to N + 1."""

    reason = "max_epochs"

    def should_stop(self, state: TrainingState) -> bool:
        """Say whether the trainer's count is over the budget."""
        return self.spent

    def already_stopped(self, state: TrainingState) -> bool:
        """Say so before the first epoch."""
        return self.spent


class SbiConverged(_Trainers):
    """The trainer's own `_converged`, asked when sbi would ask it.

    Args:
        trainer: One of sbi's trainers.
        patience: sbi's `stop_after_epochs`.
        max_epochs: sbi's `max_num_epochs`.
    """

    reason = "patience"

    def __init__(self, trainer: Any, patience: int, max_epochs: int) -> None:
        super().__init__(trainer, max_epochs)
        self._patience = patience
        self.converged = False

    def should_stop(self, state: TrainingState) -> bool:
        """Ask after an epoch; as in sbi, not after the last one of the budget."""
        before = getattr(self._trainer, "_best_model_state_dict", None)
        stop = self._ask(state)
        if self._trainer._best_model_state_dict is not before:
            state.best_epoch = state.epoch
        return stop

    def already_stopped(self, state: TrainingState) -> bool:
        """Ask before the first epoch, which also resets the trainer's memory at epoch 0."""
        return self._ask(state)

    def _ask(self, state: TrainingState) -> bool:
        if self.spent:
            return False
        trainer = self._trainer
        self.converged = bool(trainer._converged(trainer.epoch, self._patience))
        state.best_validation_loss = trainer._best_val_loss
        return self.converged


class KeptBySbi(BestWeights):
    """The best weights as sbi's `_converged` keeps them on the trainer.

    Args:
        trainer: One of sbi's trainers.
        rule: The rule that asks `_converged`.
    """

    def __init__(self, trainer: Any, rule: SbiConverged) -> None:
        super().__init__()
        self._trainer, self._rule = trainer, rule
        self._state = TrainingState(model=None)

    def update(self, state: TrainingState) -> None:
        """Leave the weights to `_converged`."""
        self._state = state

    def restore(self, model: nn.Module) -> None:
        """Load the best weights that the trainer has."""
        if self._trainer._best_model_state_dict is not None:
            model.load_state_dict(self._trainer._best_model_state_dict)

    def conclude(self, model: nn.Module) -> None:
        """Do what `_converged` has not done: it never sees the last epoch of a spent budget."""
        trainer = self._trainer
        if self._rule.spent and trainer._val_loss < trainer._best_val_loss:
            trainer._best_val_loss = self._state.best_validation_loss = trainer._val_loss
            trainer._best_model_state_dict = deepcopy(model.state_dict())
            self._state.best_epoch = self._state.epoch
        elif not self._rule.converged:
            self.restore(model)


class KeptOnTrainer(BestWeights):
    """The best weights, shown on the trainer under sbi's names."""

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self._trainer = trainer

    def update(self, state: TrainingState) -> None:
        """Look at the epoch and tell the trainer."""
        super().update(state)
        self._trainer._best_val_loss = self.loss
        self._trainer._best_model_state_dict = self.weights
        self._trainer._epochs_since_last_improvement = state.epoch - self.epoch


# --- the end, in sbi's words


def report_end(trainer: Any, call: Call) -> None:
    """Close sbi's books after training: messages, summary lists, tracker.

    Args:
        trainer: The trainer.
        call: The call that was carried out.
    """
    config, epoch = call.settings.train, trainer.epoch
    if config.sbi_compat:
        _report_convergence(trainer, epoch, config.max_epochs)
    elif trainer._show_progress_bars:
        reason = trainer.training_summary.stop_reason
        print("\r", f"Training ended after {epoch} epochs ({reason}).", end="")
    close_books(trainer, config)


def close_books(trainer: Any, config: TrainConfig) -> None:
    """Write the totals of a call into sbi's summary and tracker."""
    trainer._summary["epochs_trained"].append(trainer.epoch)
    trainer._summary["best_validation_loss"].append(trainer._best_val_loss)
    trainer._summarize(round_=trainer._round)
    if config.show_train_summary:
        print(trainer._describe_round(trainer._round, trainer._summary))


def _report_convergence(trainer: Any, epoch: int, max_epochs: int) -> None:
    """Print or warn as sbi does, with the warning attributed to the user's line."""
    if not is_sbis_own(trainer, "_report_convergence_at_end"):
        trainer._report_convergence_at_end(epoch, max_epochs)
    elif epoch <= max_epochs:
        print("\r", f"Neural network successfully converged after {epoch} epochs.", end="")
    else:
        warn_budget_spent(max_epochs)


def warn_budget_spent(max_epochs: int) -> None:
    """Warn, in sbi's words, that the budget of epochs ran out."""
    warnings.warn(
        f"Maximum number of epochs `max_num_epochs={max_epochs}` reached, "
        "but network has not yet fully converged. Consider increasing it.",
        stacklevel=_stacklevel_of_user(),
    )


def _stacklevel_of_user() -> int:
    """Return the stacklevel of the first frame that belongs to neither sbi nor this package."""
    import sbi

    inside = tuple(f"{Path(str(p)).parent}/" for p in (sbi.__file__, Path(__file__).parents[0]))
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    return level
