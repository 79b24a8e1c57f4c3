"""When a stage ends, as a pure rule: against the definition, written as a search over epochs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbi_ignite import Stage
from sbi_ignite.handlers.stages import StageRule

STEPS = 10
"""Optimizer steps in an epoch."""

ERROR = 0.5
"""What losses are uncertain by."""


def ends(stages, losses):
    """Return the epochs with which stages end, counted from 1."""
    rule, found = StageRule(stages), []
    for epoch, loss in enumerate(losses, 1):
        if rule.observe(loss, epoch * STEPS, ERROR):
            found.append(epoch)
            if rule.is_last:
                break
            rule.advance()
    return found


def by_search(stages, losses):
    """Look at all epochs so far, anew in every epoch."""
    found, begin = [], 0
    for epoch in range(1, len(losses) + 1):
        stage = stages[len(found)]
        seen = [math.inf if math.isnan(loss) else loss for loss in losses[:epoch]]
        last, reference = begin, math.inf
        while True:
            better = (
                e for e in range(last, epoch) if seen[e] < reference - stage.min_improvement * ERROR
            )
            if (first := next(better, None)) is None:
                break
            last, reference = first + 1, seen[first]
        fruitless = epoch - last
        length = epoch - begin
        longest = min(
            math.inf if stage.max_epochs is None else stage.max_epochs,
            begin * stage.max_relative_length
            if stage.max_relative_length is not None and found
            else math.inf,
        )
        out_of_patience = fruitless >= stage.patience and fruitless * STEPS >= stage.patience_steps
        if out_of_patience or length >= longest:
            found.append(epoch)
            begin = epoch
            if len(found) == len(stages):
                break
    return found


STAGES = st.builds(
    lambda patience, steps, delta, longest, relative: Stage(
        patience=patience,
        patience_steps=steps,
        min_improvement=delta,
        max_epochs=longest,
        max_relative_length=relative,
    ),
    st.integers(1, 4),
    st.integers(0, 60),
    st.just(0.0) | st.floats(0, 5),
    st.none() | st.integers(1, 8),
    st.none() | st.floats(0.1, 3),
)
LOSSES = st.lists(st.floats(-10, 10) | st.just(math.nan), max_size=50)


@settings(max_examples=200, deadline=None)
@given(st.lists(STAGES, min_size=1, max_size=3), LOSSES)
def test_a_stage_ends_when_its_patience_or_its_length_does(stages, losses):
    assert ends(stages, losses) == by_search(stages, losses)


def test_both_patiences_must_be_at_their_end():
    flat = [0.0] * 30
    assert ends([Stage(patience=5, patience_steps=60)], flat) == [7]
    assert ends([Stage(patience=5, patience_steps=40)], flat) == [6]


def test_a_stage_waits_from_the_lowest_of_its_own_losses():
    losses = [1.0, 2.0, 2.0, 1.5, 1.4, 0.5, 0.6, 0.7]
    assert ends([Stage(patience=2), Stage(patience=2)], losses) == [3, 8]
    assert ends([Stage(patience=2), Stage(patience=3)], losses) == [3]


def test_small_improvements_add_up_until_they_count():
    falling = [-0.25 * epoch for epoch in range(20)]
    assert ends([Stage(patience=3, min_improvement=1.0)], falling) == []
    assert ends([Stage(patience=3, min_improvement=1.5)], falling) == [4]


def test_where_nobody_knows_the_error_every_improvement_counts():
    rule = StageRule([Stage(patience=1, min_improvement=1.0)])
    assert [rule.observe(-0.01 * step, step) for step in range(3)] == [False, False, False]


def test_best_is_the_weight_decay_of_the_stage_with_the_best_loss():
    stages = [
        Stage(patience=1, weight_decay=0.1),
        Stage(patience=1, weight_decay=0.2),
        Stage(patience=1, weight_decay="best"),
        Stage(patience=1),
    ]

    def decays(losses):
        rule, seen = StageRule(stages, weight_decay=0.3), []
        for step, loss in enumerate(losses):
            seen.append(rule.weight_decay)
            is_best = loss < min(losses[:step], default=math.inf)
            if rule.observe(loss, step, is_best=is_best) and not rule.is_last:
                rule.advance()
        return seen

    helped = [0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.3]
    assert decays([1.0, 1.1, 0.9, 1.0, 1.0, 1.0, 1.0]) == helped
    harmed = [0.1, 0.1, 0.2, 0.2, 0.1, 0.1, 0.3]
    assert decays([1.0, 1.1, 1.2, 1.2, 1.0, 1.0, 1.0]) == harmed


@pytest.mark.parametrize("is_over", [True, False])
def test_a_training_that_ended_by_its_last_stage_knows_it(is_over):
    rule, again = (StageRule([Stage(patience=2)]) for _ in range(2))
    for step in range(3 if is_over else 2):
        rule.observe(0.0, step)
    again.load_state_dict(rule.state_dict())
    assert again.already_stopped(None) is is_over  # type: ignore[arg-type] # it asks itself only
