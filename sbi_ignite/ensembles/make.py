"""Make the trainers of an ensemble's members, and check that they belong together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from ignite.utils import manual_seed
from torch import nn

from sbi_ignite.bridge.lines import can_train, private
from sbi_ignite.bridge.networks import describe_network
from sbi_ignite.data.fingerprint import fingerprint_data
from sbi_ignite.ensembles.seeds import member_seeds
from sbi_ignite.ensembles.shipping import simulations_of
from sbi_ignite.exceptions import ArgumentError, DataError
from sbi_ignite.random_state import random_states, set_random_states

_FEW_ROWS = 200
"""Rows from which a network is built to see whether a builder makes new ones."""


@dataclass(frozen=True)
class Made:
    """The trainers of an ensemble.

    Attributes:
        trainers: By number of the member; the same trainer where it stands for several.
        seed: Seed of the ensemble.
        ours: Whether they were made here, so that nobody else needs their tensors.
    """

    trainers: dict[int, Any]
    seed: int
    ours: bool


def make_trainers(
    make_trainer: Callable[[], Any] | Sequence[Any],
    members: int,
    chosen: Sequence[int],
    seed_of: Callable[[Any], int],
) -> Made:
    """Return the trainers of the chosen members.

    Args:
        make_trainer: Makes a trainer, or a list of them.
        members: How many there are.
        chosen: Those that are trained.
        seed_of: Returns the seed of the ensemble, given a trainer.

    Raises:
        ArgumentError: If they do not belong together.
        DataError: If they have different simulations.
    """
    if isinstance(make_trainer, list | tuple):
        trainers = dict(enumerate(make_trainer))
        for index, trainer in trainers.items():
            _check_trainer(trainer, f"trainer {index} of the list")
        _check_together(list(trainers.values()), "the list of trainers")
        for one, two in pairwise(trainers.values()):
            _check_builders(one, two)
        return Made({i: trainers[i] for i in chosen}, seed_of(trainers[0]), ours=False)
    if not callable(make_trainer):
        raise ArgumentError(
            "make_trainer: expected a function that returns a trainer with its simulations, or a "
            f"list of trainers, got {type(make_trainer).__name__}. Write lambda: "
            "NPE(prior).append_simulations(theta, x)."
        )
    before = random_states()
    try:
        first = make_trainer()
        _check_trainer(first, "make_trainer()")
        seed = seed_of(first)
        if _is_plain(first) or len(chosen) == members == 1:
            _check_untrained(first)
            return Made(dict.fromkeys(chosen, first), seed, ours=True)
        return Made(_made_anew(make_trainer, first, chosen, seed), seed, ours=True)
    finally:
        set_random_states(before)


def _made_anew(
    make_trainer: Callable[[], Any], first: Any, chosen: Sequence[int], seed: int
) -> dict[int, Any]:
    """Return a trainer per member, made under a seed of its own, with one set of simulations."""
    made: dict[int, Any] = {}
    tensors = simulations_of(first)
    for index in chosen:
        manual_seed(member_seeds(seed, index).make)
        trainer = make_trainer()
        _check_trainer(trainer, "make_trainer()")
        _check_together([first, *made.values(), trainer], "make_trainer, called once per member,")
        if not made:
            _check_untrained(first)
            _check_builders(first, trainer)
        private(trainer).replace_simulations(tensors)
        made[index] = trainer
    return made


def _check_trainer(trainer: Any, source: str) -> None:
    if not can_train(trainer):
        raise ArgumentError(
            f"train_ensemble: expected a trainer with a network to train, such as NPE(prior), got "
            f"{type(trainer).__name__} from {source}."
        )


def _check_together(trainers: Sequence[Any], source: str) -> None:
    """Refuse trainers that are one and the same, or of different methods or simulations."""
    first, *_, last = trainers if len(trainers) > 1 else (trainers[0], trainers[0])
    for number, trainer in enumerate(trainers[:-1]):
        if trainer is last or private(trainer).network is private(last).network is not None:
            raise ArgumentError(
                f"train_ensemble: expected a new trainer for every member, got the same "
                f"{type(trainer).__name__}, or the same network, for members {number} and "
                f"{len(trainers) - 1} from {source}. Make a new one in every call."
            )
    for trainer in trainers[1:]:
        _check_pair(first, trainer, source)


def _check_pair(first: Any, other: Any, source: str) -> None:
    if type(first) is not type(other):
        raise ArgumentError(
            f"train_ensemble: expected members of one method, got {type(first).__name__} and "
            f"{type(other).__name__} from {source}. Train an ensemble of each, and put their "
            "posteriors into one EnsemblePosterior of sbi."
        )
    ours, theirs = simulations_of(first), simulations_of(other)
    same = len(ours) == len(theirs) and all(
        a.shape == b.shape
        and a.dtype == b.dtype
        and (a.data_ptr() == b.data_ptr() or fingerprint_data([a]) == fingerprint_data([b]))
        for a, b in zip(ours, theirs, strict=True)
    )
    if not same:
        raise DataError(
            "train_ensemble: expected members with the same simulations, got different ones from "
            f"{source}: {_shapes(ours)} and {_shapes(theirs)}. Simulate once, outside of it, and "
            "append the same tensors for every member."
        )


def _shapes(tensors: Sequence[Any]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "none"


def _is_plain(trainer: Any) -> bool:
    """Say whether the builder of a network comes down to names and numbers, without a network."""
    return describe_network(private(trainer).builder)["builder"] is not None


def _check_untrained(first: Any) -> None:
    """Refuse to start all members from one trained network."""
    if private(first).network is not None:
        raise ArgumentError(
            "train_ensemble: expected a trainer that has not been trained yet, got a "
            f"{type(first).__name__} with a network, from whose weights every member would start. "
            "Make a new one in make_trainer; for more rounds, use Ensemble.append_simulations() "
            "and Ensemble.train()."
        )


def _check_builders(first: Any, other: Any) -> None:
    """Refuse builders that return a network with the same weights whenever they are called."""
    trained = private(first).network is not None or private(other).network is not None
    if trained or _is_plain(first) or _is_plain(other):
        return
    one, two = (_built(trainer, seed) for seed, trainer in ((1, first), (2, other)))
    if one is None or two is None:
        return
    pairs = list(zip(one.parameters(), two.parameters(), strict=False))
    if one is two or (pairs and all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)):
        raise ArgumentError(
            f"train_ensemble: expected a builder that makes a new network in every call, got one "
            f"for {type(first).__name__} that returns the same {type(one).__name__} with the same "
            "weights, so that all members would start from the same point. Make the network inside "
            "the builder, without setting a seed."
        )


def _built(trainer: Any, seed: int) -> nn.Module | None:
    """Return a network that a builder makes from few rows, None if they are not enough for it."""
    tensors = [t[:_FEW_ROWS] for t in simulations_of(trainer)]
    rows = tensors[:1] if len(tensors) == 1 else _theta_and_x(trainer, tensors)
    manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return private(trainer).builder(*rows)
        except Exception:  # the training will say what is wrong
            return None


def _theta_and_x(trainer: Any, tensors: Sequence[Any]) -> list[Any]:
    theta, x, *_ = private(trainer).simulations(0)
    return [theta[:_FEW_ROWS].cpu(), x[:_FEW_ROWS].cpu()]
