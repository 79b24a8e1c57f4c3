"""Compare the settings of a `.train()` call with each other and with the training it continues.

Two arguments of one call that set the same thing are refused where they are parsed
(`bridge.arguments`), two such fields by `TrainConfig`. Here are the conflicts that only a
trainer can detect:

| setting | beside | typed form | sbi's keywords alone |
|---|---|---|---|
| `resume_training` | `retrain_from_scratch` | error | warning, and sbi's behaviour |
| `resume_training` | nothing to continue | warning, trains anew | sbi's error |
| `resume_training` | `checkpoint` with `resume="never"` | error | error |
| `resume_training` | another `optimizer`, `weight_decay`, `lr_schedule`, `validation_fraction` or \
`seed` than that of the training it continues | error | sbi's behaviour |
| `resume_training` | no `lr_schedule`, where that training has one | error | sbi has none |
| `resume_training` | another `learning_rate` | the new one counts | sbi's behaviour: the old one |
| a `TrainConfig` | a trainer with its own test of convergence | warning | it decides |
| `compile`, `precision` | a trainer with its own `_train_epoch` | error | error |
| `validation` | `validation_fraction` in the call | error | error |
| `validation` | a trainer with its own `get_dataloaders` | error | error |
| `resume_training` | another `validation` than that of the training it continues | error | error |
| `init_from` | a training that is resumed | not read again | not read again |
| `dataloader_kwargs` | a keyword that torch's DataLoader lacks | error | error |
"""

from __future__ import annotations

import warnings
from typing import Any

from sbi_ignite.bridge.arguments import Call
from sbi_ignite.bridge.initial_weights import check_init_from
from sbi_ignite.bridge.lines import SbiTrainer, private
from sbi_ignite.bridge.loss_arguments import kept_loss_arguments
from sbi_ignite.bridge.memory import memory_of
from sbi_ignite.bridge.ownership import is_sbis_own
from sbi_ignite.exceptions import ArgumentError, SbiIgniteWarning, SettingsError
from sbi_ignite.settings import Origin, Resolved
from sbi_ignite.settings.redaction import shorten
from sbi_ignite.settings.schedule import same_course
from sbi_ignite.settings.serialization import plain
from sbi_ignite.training.options import check_loader_kwargs

_KEPT_ON_RESUME = ("optimizer", "weight_decay", "lr_schedule", "validation_fraction", "seed")
"""Fields that a resumed training keeps as they were."""

_IDLE_IN_OWN_EPOCHS = ("compile", "precision")
"""Fields that determine how steps are computed; a trainer's own epochs do that themselves."""


def check_call(trainer: Any, call: Call) -> None:
    """Refuse settings that contradict each other, and warn of those without effect.

    Args:
        trainer: The trainer.
        call: The call; nothing has been done yet.

    Raises:
        ArgumentError: If two settings exclude each other.
        SettingsError: If a setting cannot be carried out by this trainer.
    """
    settings = call.settings
    if is_sbis_own(trainer, "get_dataloaders"):
        origin = settings.origin("train.dataloader_kwargs")
        check_loader_kwargs(settings.train.dataloader_kwargs, origin)
    if private(trainer).is_overridden(SbiTrainer.TRAIN_EPOCH):
        _refuse_idle(trainer, settings)
    check_init_from(call.init_from)
    if call.validation is not None:
        _check_validation(trainer, settings)
    if not call.sbi_compat and not private(trainer).converges_as_sbi:
        warnings.warn(
            f"{type(trainer).__name__} overrides sbi's own test of convergence, which only calls "
            "with sbi's keywords ask. With a TrainConfig, early_stopping= decides: pass yours as "
            "EarlyStopping.when(...), or take TrainConfig(sbi_compat=True).",
            SbiIgniteWarning,
            stacklevel=4,
        )
    if settings.train.resume_training:
        _check_resume(trainer, call)


def kept_on_resume(settings: Resolved) -> dict[str, Any]:
    """Return the settings that a later call cannot change when it resumes, as plain data."""
    return {name: plain(getattr(settings.train, name), name) for name in _KEPT_ON_RESUME}


def _refuse_idle(trainer: Any, settings: Resolved) -> None:
    for name in _IDLE_IN_OWN_EPOCHS:
        value, origin = getattr(settings.train, name), settings.origin(f"train.{name}")
        if origin.source == "call" and value != type(settings.train).model_fields[name].default:
            raise SettingsError(
                f"{name}: expected a trainer with sbi's own _train_epoch, because "
                f"{type(trainer).__name__} overrides it and computes its steps itself, got "
                f"{name}={value!r} from {origin}. Leave it out"
            )


def _check_validation(trainer: Any, settings: Resolved) -> None:
    fraction = settings.origin("train.validation_fraction")
    if fraction.source == "call":
        raise ArgumentError(
            "validation: expected it without validation_fraction, because no simulations are set "
            f"aside beside a validation set of your own, got validation=... and "
            f"validation_fraction={settings.train.validation_fraction:g} from {fraction}. Leave "
            "one of them out"
        )
    if not is_sbis_own(trainer, "get_dataloaders"):
        raise ArgumentError(
            f"validation: expected a trainer with sbi's own get_dataloaders, because "
            f"{type(trainer).__name__} overrides it and makes its batches itself, got "
            "validation=.... Return its rows from there"
        )


def _check_resume(trainer: Any, call: Call) -> None:
    settings = call.settings
    resume = settings.origin("train.resume_training")
    checkpoint = settings.checkpoint
    if checkpoint is not None and checkpoint.resume == "never":
        raise ArgumentError(
            'resume_training: expected it without resume="never", which starts anew, got '
            f'resume_training=True from {resume} and resume="never" from '
            f"{settings.origin('checkpoint.resume')}. Leave one of them out"
        )
    if settings.train.retrain_from_scratch:
        _two_wishes(call)
    if call.sbi_compat and (resume.source == "call" or hasattr(trainer, "optimizer")):
        return
    if not hasattr(trainer, "optimizer"):
        # The run directory itself determines whether there is something to continue.
        if checkpoint is None and not hasattr(trainer, "train_indices"):
            warnings.warn(
                f"resume_training=True from {resume}: {type(trainer).__name__} has no training to "
                "continue yet, so that this one starts anew. To continue that of an earlier "
                'process, name its run directory by checkpoint="...".',
                SbiIgniteWarning,
                stacklevel=5,
            )
        return
    _refuse_other_loss(trainer, call, resume)
    earlier = memory_of(trainer).kept_on_resume
    for name, value in kept_on_resume(settings).items():
        origin = settings.origin(f"train.{name}")
        # If left out, a schedule would be dropped and its last rate would stay for good.
        dropped = name == "lr_schedule" and value is None and not settings.awaits_recipe
        unsaid = origin.source in ("default", "recipe") and not dropped
        advice = "Name it, or its recipe, again" if dropped else f"Leave {name} out"
        if not unsaid and name in earlier and not _is_same(name, earlier[name], value):
            raise ArgumentError(
                f"resume_training: the training that is continued has "
                f"{name}={shorten(earlier[name], name)}, which cannot change on the way, got "
                f"{name}={shorten(value, name)} from {origin} and resume_training=True from "
                f"{resume}. {advice}, or train anew without resume_training"
            )


def _refuse_other_loss(trainer: Any, call: Call, resume: Origin) -> None:
    """Refuse to compare the losses of two kinds."""
    earlier, now = memory_of(trainer).loss_arguments, kept_loss_arguments(trainer, call)
    for name in earlier.keys() & now.keys():
        if earlier[name] != now[name]:
            shown = (
                "another function"
                if name == "calibration_kernel"
                else f"{earlier[name]!r}, got {now[name]!r}"
            )
            raise ArgumentError(
                f"resume_training: the training that is continued has {name}={shown}, and losses "
                f"of two kinds cannot be compared, with resume_training=True from {resume}. Pass "
                "the same loss arguments, or train anew without resume_training"
            )


def _two_wishes(call: Call) -> None:
    origins = [call.settings.origin(f"train.{n}") for n in _EITHER_OR]
    text = (
        "resume_training and retrain_from_scratch exclude each other: expected one of the two, got "
        f"resume_training=True from {origins[0]} and retrain_from_scratch=True from {origins[1]}. "
    )
    if not call.sbi_form:
        raise ArgumentError(f"{text}Leave one of them out")
    warnings.warn(
        f"{text}As in sbi, the new network is not trained, because the optimizer is that of the "
        "old one. Leave one of them out.",
        SbiIgniteWarning,
        stacklevel=6,
    )


_EITHER_OR = ("resume_training", "retrain_from_scratch")


def _is_same(name: str, earlier: Any, value: Any) -> bool:
    if name != "lr_schedule" or earlier is None:
        return earlier == value or (name == "lr_schedule" and earlier is None)
    return same_course(earlier, value)


def refuse_arguments(trainer: Any, args: Any, kwargs: Any) -> None:
    """Refuse arguments for a trainer that trains nothing."""
    if args or kwargs:
        given = [*(type(arg).__name__ for arg in args), *kwargs]
        raise ArgumentError(
            f"{type(trainer).__name__}.train() takes no arguments, because it uses a network that "
            f"is trained already; got {', '.join(given)}."
        )
