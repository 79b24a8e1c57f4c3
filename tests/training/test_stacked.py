"""Trainings that are stacked end as each would alone, up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from torch import nn

from sbi_ignite import (
    ArgumentError,
    CheckpointConfig,
    NonFiniteLossError,
    TrainConfig,
    TrainingSummary,
)
from sbi_ignite.capture import stacking
from sbi_ignite.data.foreign import ForeignBatches
from sbi_ignite.data.in_memory import ShuffledBatches
from sbi_ignite.handlers.stop_mid_epoch import stop_after_batch
from sbi_ignite.settings import resolve
from sbi_ignite.training.joint_update import JointUpdate
from sbi_ignite.training.run import in_turns, run
from sbi_ignite.training.stacked import Stacking, run_stacked
from sbi_ignite.training.training import Training, assemble

X = torch.randn(41, 2, generator=torch.Generator().manual_seed(0))
Y = X.sum(dim=1, keepdim=True) + 0.5
EPOCHS = 4


def squared_error(model: Any, batch: Any) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean(dim=1)


def noisy(model: Any, batch: Any) -> torch.Tensor:
    x, y = batch
    return (model(x + 0.1 * torch.randn_like(x)) - y).square().mean(dim=1)


def assembled(
    number: int, directory: Path | None = None, loss: Any = squared_error, batches: Any = None
) -> Training:
    """Return the training of a network with that number."""
    torch.manual_seed(number)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    settings = resolve(
        train=TrainConfig(max_epochs=EPOCHS, compile="trace"),
        checkpoint=None if directory is None else CheckpointConfig(directory / str(number)),
    )
    # Five batches an epoch: one of nine rows, four of eight.
    batches = batches or ShuffledBatches((X, Y), torch.arange(41), 9, number)
    return assemble(settings, model, loss, batches)


def run_all(trainings: Sequence[Training]) -> list[TrainingSummary]:
    """Run trainings stacked, none of which ends with an error."""
    outcomes = run_stacked(trainings, Stacking(True))
    summaries = [outcome for outcome in outcomes if isinstance(outcome, TrainingSummary)]
    assert len(summaries) == len(trainings)
    return summaries


def close(one: Training, other: Training) -> bool:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize("loss", [squared_error, noisy])
def test_stacked_trainings_end_as_each_would_alone(loss):
    together = [assembled(number, loss=loss) for number in range(3)]
    alone = [assembled(number, loss=loss) for number in range(3)]
    summaries = run_all(together)
    for number, (one, other) in enumerate(zip(together, alone, strict=True)):
        torch.manual_seed(number)
        single = run(other) if loss is squared_error else _run_from_its_states(other)
        assert close(one, other)
        assert summaries[number].executor == "stacked"
        assert summaries[number].training_loss == pytest.approx(single.training_loss, rel=1e-5)


def _run_from_its_states(training: Training) -> Any:
    """Run a training from the random states in which it was put together."""
    with training.random.in_force():
        return run(training)


def test_trainings_that_stand_at_different_places_catch_up_and_are_stacked(tmp_path):
    first = assembled(0, tmp_path)
    stop = Events.ITERATION_COMPLETED(once=7)
    first.engine.add_event_handler(stop, lambda e: stop_after_batch(e, first.state, "signal"))
    assert run(first).epochs_trained == 1
    together = [assembled(0, tmp_path), assembled(1, tmp_path)]
    summaries = run_all(together)
    assert [summary.executor for summary in summaries] == ["stacked", "stacked"]
    assert [summary.epochs_trained for summary in summaries] == [EPOCHS, EPOCHS]
    for number, training in enumerate(together):
        other = assembled(number)
        run(other)
        assert close(training, other)


def test_a_stop_within_an_epoch_saves_the_random_states_of_its_training(tmp_path):
    """States are exchanged only where they are asked for, which such a stop does."""
    together = [assembled(number, tmp_path, noisy) for number in range(2)]
    for training in together:
        stop = Events.ITERATION_COMPLETED(once=8)
        training.engine.add_event_handler(
            stop, lambda e, t=training: stop_after_batch(e, t.state, "signal")
        )
    run_stacked(together, Stacking(True))
    again = [assembled(number, tmp_path, noisy) for number in range(2)]
    torch.manual_seed(99)
    run_stacked(again, Stacking(True))
    through = [assembled(number, None, noisy) for number in range(2)]
    run_stacked(through, Stacking(True))
    assert all(map(close, again, through))


def test_batches_of_different_shapes_are_not_stacked():
    batches = [ForeignBatches([(X[:rows], Y[:rows])] * 2) for rows in (8, 9)]
    stacking = Stacking(True)
    run_stacked([assembled(k, batches=b) for k, b in enumerate(batches)], stacking)
    assert stacking.chosen is False
    assert stacking.because == "the members' batches are of different shapes"


def test_a_network_that_changes_between_epochs_is_recorded_anew():
    together = [assembled(number) for number in range(2)]
    alone = [assembled(number) for number in range(2)]
    for training in (*together, *alone):

        def changed(engine: Any, training: Training = training) -> None:
            assert isinstance(training.model, nn.Sequential)
            training.model[1] = nn.ReLU()

        training.engine.add_event_handler(Events.EPOCH_COMPLETED(once=2), changed)
    assert {s.executor for s in run_all(together)} == {"stacked"}
    for one, other in zip(together, alone, strict=True):
        run(other)
        assert close(one, other)


def test_one_recorded_step_does_for_all_that_are_the_same_computation(monkeypatch):
    recorded: list[Any] = []
    of = stacking._Recorded.of.__func__

    def spied(cls: Any, member: Any, batch: Any) -> Any:
        recorded.append(member.model)
        return of(cls, member, batch)

    monkeypatch.setattr(stacking._Recorded, "of", classmethod(spied))
    together = [assembled(number) for number in range(3)]
    assert {s.executor for s in run_all(together)} == {"stacked"}
    assert recorded == [together[0].model] * 2  # for each of two shapes of batches
    recorded.clear()
    other = [assembled(number) for number in range(2)]
    other[1].model.note = "unlike the other"  # type: ignore[assignment] # any attribute
    assert {s.executor for s in run_all(other)} == {"stacked"}
    assert recorded == [training.model for training in other] * 2


@pytest.mark.parametrize("max_norm", [0.05, None])
def test_steps_that_are_taken_together_are_those_that_each_would_take(max_norm, monkeypatch):
    """With gradients that are clipped, rates that change, and one member further than others."""

    def made(number: int) -> Training:
        training = assembled(number)
        training.clipping.max_norm = max_norm
        rate = training.optimizer.param_groups[0]

        def change() -> None:
            rate["lr"] *= 0.8 if number else 0.95

        training.engine.add_event_handler(Events.ITERATION_COMPLETED, change)
        return training

    found: list[list[Any]] = []
    take = JointUpdate.take

    def spied(self: Any, *args: Any) -> Any:
        found.append(take(self, *args))
        return found[-1]

    monkeypatch.setattr(JointUpdate, "take", spied)
    together = [made(number) for number in range(3)]
    run_all(together)
    taken = [outputs[0] is not None for outputs in found]
    assert taken == [False] * taken.count(False) + [True] * taken.count(True)
    assert taken.count(True) >= len(taken) - 3
    monkeypatch.setattr(JointUpdate, "take", lambda self, batches, _: [None] * len(batches))
    singly = [made(number) for number in range(3)]
    run_all(singly)
    for one, other in zip(together, singly, strict=True):
        assert all(map(torch.equal, one.model.parameters(), other.model.parameters()))
        assert one.state.history.gradient_norm == other.state.history.gradient_norm
        assert one.state.history.training_loss == other.state.history.training_loss
        pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
        for p, q in pairs:
            mine, its = one.optimizer.state[p], other.optimizer.state[q]
            assert all(torch.equal(mine[name], its[name]) for name in its)


def test_a_loss_that_is_not_finite_ends_its_member_only():
    x = X.clone()
    x[7] = torch.inf
    together = [assembled(0), assembled(1, batches=ShuffledBatches((x, Y), torch.arange(41), 9, 1))]
    alone = [assembled(0), assembled(1, batches=ShuffledBatches((x, Y), torch.arange(41), 9, 1))]
    outcomes = run_stacked(together, Stacking(True))
    run(alone[0])
    assert close(together[0], alone[0])
    with pytest.raises(NonFiniteLossError) as error:
        run(alone[1])
    assert isinstance(outcomes[1], NonFiniteLossError)
    assert str(outcomes[1]) == str(error.value)
    assert close(together[1], alone[1])


def test_two_trainings_in_one_directory_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="a run directory of its own for each"):
        run_stacked([assembled(0, tmp_path), assembled(0, tmp_path)], Stacking(True))


def test_without_pauses_a_training_in_turns_runs_to_its_end():
    turns = in_turns(assembled(0))
    next(turns)
    with pytest.raises(StopIteration):
        next(turns)
