"""Make torch's learning-rate schedulers from the settings, and determine their length."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from sbi_ignite.data.source import Batches
from sbi_ignite.exceptions import ArgumentError, SbiIgniteWarning, SettingsError
from sbi_ignite.explain import PLAIN_ERRORS, explain
from sbi_ignite.handlers.schedule import Schedule, Schedulers, steps_by_iteration
from sbi_ignite.settings import LRSchedule, Resolved, TrainConfig
from sbi_ignite.settings.field_types import NO_LIMIT
from sbi_ignite.settings.serialization import qualified_name
from sbi_ignite.training.checks import check_scheduler

ONE_CYCLE_RISE = 0.3
"""Share of a cycle in which the rate rises; torch's default."""

ONE_CYCLE_BEGIN = 25.0
"""Ratio of the peak of a cycle to its first rate; torch's default."""


def make_schedulers(config: TrainConfig, optimizer: Optimizer, batches: Batches) -> Schedulers:
    """Return the schedulers that the settings ask for.

    Args:
        config: Gives lr_schedule, max_epochs and sbi_compat.
        optimizer: The optimizer to schedule.
        batches: Training data, from which the length in steps is computed.

    Raises:
        SettingsError: If a schedule needs a length and none can be derived.
        ArgumentError: If a callable fails, or returns something other than a scheduler.
    """
    wanted = config.schedule
    if wanted is None:
        return Schedulers()
    if not isinstance(wanted, LRSchedule):
        try:
            scheduler = wanted(optimizer)
        except PLAIN_ERRORS as error:
            what = (
                f"lr_schedule: expected a callable that makes a scheduler for "
                f"{type(optimizer).__name__}, {qualified_name(wanted)} failed"
            )
            explain(error, what, "Bind its other arguments with functools.partial or a lambda.")
        check_scheduler(scheduler, "lr_schedule")
        return of_user(scheduler, len(batches))
    if wanted.kind == "plateau":
        return _plateau(wanted, optimizer)
    if wanted.kind == "constant":
        return Schedulers(warmup=_warmup(wanted, optimizer), warmup_steps=wanted.warmup_steps)
    epochs = length_in_epochs(wanted, config, batches)
    steps = epochs * len(batches)
    make = _cosine if wanted.kind == "cosine" else _one_cycle
    main, last_step = make(wanted, optimizer, steps)
    return Schedulers(
        main,
        per_iteration=True,
        last_step=last_step,
        epochs=epochs,
        remake=lambda other: make(wanted, other, steps)[0],
    )


def of_user(scheduler: Any, steps_per_epoch: int) -> Schedulers:
    """Return a user's scheduler with its length, if it raises after its last step.

    Args:
        scheduler: The scheduler.
        steps_per_epoch: Batches in an epoch.
    """
    if not isinstance(scheduler, OneCycleLR):
        return Schedulers(scheduler)
    per_epoch = steps_per_epoch if steps_by_iteration(scheduler) else 1
    return Schedulers(scheduler, epochs=max(scheduler.total_steps // per_epoch, 1))


def length_in_epochs(schedule: LRSchedule, config: TrainConfig, batches: Batches) -> int:
    """Return the length of a cosine or a cycle, as `LRSchedule` defines it.

    Args:
        schedule: May set its length.
        config: May bound the training.
        batches: Training data, whose number of rows decides if neither does.

    Raises:
        SettingsError: If neither does and the batches do not tell how many rows they have.
    """
    if schedule.total_epochs is not None:
        return schedule.total_epochs
    if config.max_epochs != NO_LIMIT:
        # sbi's budget is one epoch longer than its name says.
        return config.max_epochs + config.sbi_compat
    rows = batches.num_rows
    if rows is None:
        raise SettingsError(
            f"lr_schedule: {schedule.kind!r} needs a length, expected total_epochs in the "
            "LRSchedule, or max_epochs, or a loader that shows its number of rows, which "
            f"{batches.name} does not. Write LRSchedule({schedule.kind!r}, total_epochs=...)."
        )
    return derived_length(rows)


def derived_length(rows: int) -> int:
    """Return the epochs of a schedule without a given length, for this number of training rows.

    Ten times as much data gets about three times as many steps, in a third of the epochs.

    Example:
        >>> [derived_length(rows) for rows in (100, 1_000, 10_000, 1_000_000)]
        [300, 300, 95, 30]
    """
    return max(30, min(300, round(300 * math.sqrt(1000 / max(rows, 1)))))


def epochs_to_train(config: TrainConfig, schedulers: Schedulers) -> int:
    """Return the maximum number of epochs of a training.

    Args:
        config: May set the maximum.
        schedulers: End an otherwise unbounded training, if they have an end.
    """
    if config.max_epochs == NO_LIMIT and schedulers.epochs is not None:
        return schedulers.epochs
    return config.max_epochs + config.sbi_compat  # sbi's budget is one longer than its name says


def continue_schedule(
    settings: Resolved, schedule: Schedule, budget: int, steps_per_epoch: int
) -> None:
    """Stretch a resumed schedule if asked to, and refuse epochs at a rate of zero.

    Args:
        settings: All settings.
        schedule: The schedule, restored where the training is resumed.
        budget: Maximum number of epochs.
        steps_per_epoch: Batches in an epoch.

    Raises:
        SettingsError: If a resumed training has more epochs than its schedule.
        ArgumentError: If a user's scheduler would raise before the last epoch.
    """
    _refuse_short_cycle(settings, schedule, budget, steps_per_epoch)
    wanted = settings.train.schedule
    if not isinstance(wanted, LRSchedule) or not wanted.needs_length:
        return
    if schedule.is_short and wanted.on_extend == "stretch":
        schedule.stretch()
    if schedule.last_step is None or wanted.min_lr:
        return
    # A cycle reaches its last rate one step before its end.
    steps = schedule.last_step + (wanted.kind == "one_cycle")
    length = math.ceil(steps / steps_per_epoch)
    if budget <= length:
        return
    stays = "stays at 0" if wanted.kind == "cosine" else "stays at next to nothing"
    if schedule.is_short:
        raise SettingsError(
            f"lr_schedule: the {wanted.kind!r} schedule of the training that is resumed ends with "
            f"epoch {length}, and its rate {stays} from there on, expected at most {length} "
            f"epochs, got {budget} from {_budget_origin(settings)}. Ask for a longer schedule by "
            f'LRSchedule({wanted.kind!r}, on_extend="stretch"), or train anew'
        )
    if not any(rule.kind == "lr_threshold" for rule in settings.early_stopping):
        _warn(
            f"lr_schedule: total_epochs={length} from {settings.origin('train.lr_schedule')} is "
            f"less than the {budget} epochs from {_budget_origin(settings)}: the rate {stays} "
            f"after epoch {length}. Leave total_epochs out, or name a min_lr above 0."
        )


def _refuse_short_cycle(
    settings: Resolved, schedule: Schedule, budget: int, steps_per_epoch: int
) -> None:
    """Refuse a user's OneCycleLR that has fewer steps than the training, and raises after them."""
    left = schedule.steps_until_error
    if left is None:
        return
    by_iteration, resumed = schedule.by_iteration, schedule.steps_done > 0
    wanted = budget * (steps_per_epoch if by_iteration else 1)
    total = schedule.steps_done + left
    if wanted <= total:
        return
    each = f"epochs of {steps_per_epoch} batches" if by_iteration else "epochs"
    total_epochs = total // steps_per_epoch if by_iteration else total
    longer = (
        "A run that is resumed keeps the length that it began with: train anew with"
        if resumed
        else "Make it with"
    )
    raise ArgumentError(
        f"scheduler: expected total_steps of at least {wanted} ({budget} {each}, from "
        f"{_budget_origin(settings)}), got a OneCycleLR of {total}, which fails after its last "
        f"step. {longer} total_steps={wanted}, or set max_epochs={max(total_epochs, 1)}."
    )


def _budget_origin(settings: Resolved) -> str:
    origin = settings.origin("train.max_epochs")
    return "the number of training rows" if origin.source == "default" else str(origin)


def check_rates(settings: Resolved, optimizer: Optimizer) -> None:
    """Refuse a schedule whose lowest rate lies above the rate to begin with.

    Args:
        settings: All settings.
        optimizer: The optimizer, at the rate that a schedule starts from.

    Raises:
        SettingsError: If a schedule would end above the rate that it starts from.
    """
    rate = max(float(group["lr"]) for group in optimizer.param_groups)
    wanted = settings.train.schedule
    where = settings.origin("train.learning_rate")
    if isinstance(wanted, LRSchedule) and wanted.min_lr > rate:
        raise SettingsError(
            f"lr_schedule: expected a min_lr of at most the learning rate, at which a "
            f"{wanted.kind!r} schedule ends, got min_lr={wanted.min_lr:g} from "
            f"{settings.origin('train.lr_schedule')} and a rate of {rate:g} ({where}). Lower "
            "min_lr, or raise learning_rate"
        )


def warn_of_idle(
    settings: Resolved, optimizer: Optimizer, scheduled: bool, budget: int, steps_per_epoch: int
) -> None:
    """Warn of settings for the rate, and for stages, that can have no effect in this training.

    Args:
        settings: All settings.
        optimizer: The optimizer, at its first rate.
        scheduled: Whether a scheduler or a callback may change the rate.
        budget: Maximum number of epochs.
        steps_per_epoch: Batches in an epoch.
    """
    wanted, steps = settings.train.schedule, budget * steps_per_epoch
    warmup = wanted.warmup_steps if isinstance(wanted, LRSchedule) else 0
    origin = settings.origin("train.lr_schedule")
    # Nobody asked for a recipe's own warm-up, and short trials with it are common.
    if warmup >= steps and origin.source != "recipe":
        _warn(
            f"lr_schedule: warmup_steps={warmup} from {origin} is not less than the {steps} steps "
            f"of this training ({budget} epochs of {steps_per_epoch}), so that the rate never "
            "falls, or never reaches learning_rate. Take fewer warmup_steps or more max_epochs."
        )
    for rule in settings.early_stopping:
        lowest = min(float(group["lr"]) for group in optimizer.param_groups)
        if rule.kind == "lr_threshold" and not scheduled and lowest >= rule.min_lr:
            _warn(
                f"early_stopping: lr_threshold(min_lr={rule.min_lr:g}) never stops this training, "
                f"because its rate stays at {lowest:g}. Name an lr_schedule, or another rule."
            )
    forgetful = any(stage.reset_average for stage in settings.train.stages)
    if forgetful and settings.train.averages is None:
        _warn(
            "stages: reset_average=True does nothing, because no average of the weights is kept. "
            "Name averaging or ema_decay, or leave it out."
        )


def _warn(text: str) -> None:
    warnings.warn(text, SbiIgniteWarning, stacklevel=4)


def _after_rise(
    optimizer: Optimizer, rest: LRScheduler, steps: int, start: float | None
) -> LRScheduler:
    """Return a scheduler that begins with a linear rise over some steps."""
    start = 1 / (steps + 1) if start is None else start
    rise = LinearLR(optimizer, start_factor=start, total_iters=steps)
    return SequentialLR(optimizer, [rise, rest], milestones=[steps])


def _warmup(schedule: LRSchedule, optimizer: Optimizer) -> LRScheduler | None:
    """Return a scheduler that rises to the optimizer's rate and leaves it there."""
    if not schedule.warmup_steps:
        return None
    # LinearLR alone would end a rounding error away from the requested rate.
    rate = ConstantLR(optimizer, factor=1.0, total_iters=1)
    return _after_rise(optimizer, rate, schedule.warmup_steps, schedule.warmup_start)


def _plateau(schedule: LRSchedule, optimizer: Optimizer) -> Schedulers:
    warmup = _warmup(schedule, optimizer)
    main = ReduceLROnPlateau(
        optimizer, factor=schedule.factor, patience=schedule.patience, min_lr=schedule.min_lr
    )
    return Schedulers(main, warmup, schedule.warmup_steps)


def _cosine(schedule: LRSchedule, optimizer: Optimizer, steps: int) -> tuple[LRScheduler, int]:
    warmup = min(schedule.warmup_steps, steps - 1)
    fall = CosineAnnealingLR(optimizer, T_max=steps - warmup, eta_min=schedule.min_lr)
    if not warmup:
        return fall, steps
    return _after_rise(optimizer, fall, warmup, schedule.warmup_start), steps


def _one_cycle(schedule: LRSchedule, optimizer: Optimizer, steps: int) -> tuple[LRScheduler, int]:
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    total = max(steps, 3)  # torch divides by zero below
    peak_at = min(schedule.warmup_steps, total - 2)
    main = OneCycleLR(
        optimizer,
        max_lr=peaks,
        total_steps=total,
        pct_start=(peak_at + 1) / total if peak_at else ONE_CYCLE_RISE,
        div_factor=ONE_CYCLE_BEGIN,
        final_div_factor=peaks[0] / ONE_CYCLE_BEGIN / schedule.min_lr if schedule.min_lr else 1e4,
        cycle_momentum=False,
    )
    return main, steps - 1
