"""Scenarios of what trackers are told."""

from __future__ import annotations

from types import ModuleType

from tests.parity.observe import CALLS

from .problem import SHORT, draw, make, require, scalars, small, small_npe, two_rounds
from .registry import Notes, scenario


@scenario(patched=True)
def default_tracker(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference, tracker=None)
    trainer.train(**SHORT)
    notes[CALLS] = scalars()
    require(len(notes[CALLS]) == 2 + 3 * 4)
    return trainer


@scenario()
def default_tracker_of_the_marginal_trainer(inference: ModuleType, notes: Notes):
    trainer = inference.MarginalTrainer("maf").append_samples(draw()[1])
    trainer.train(**SHORT)
    notes[CALLS] = scalars()
    return trainer


@scenario()
def tracker_over_two_rounds(inference: ModuleType, notes: Notes):
    trainer = two_rounds(make(inference.NPE_C, density_estimator=small()))
    require(len(trainer._tracker.calls) == 2 * (2 + 3 * 4))
    return trainer
