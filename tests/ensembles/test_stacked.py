"""Stacked members learn what single ones do, and each lives a life of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import warnings
from typing import Any

import pytest
import torch
from sbi.neural_nets import classifier_nn, likelihood_nn, posterior_nn
from torch import Tensor

from sbi_ignite import (
    Callback,
    EarlyStopping,
    LRSchedule,
    SbiIgniteWarning,
    SettingsError,
    TrainConfig,
    load_run,
    train_ensemble,
)
from sbi_ignite.training import stacked as module
from tests.ensembles.small import CONFIG, ensemble, maker
from tests.ensembles.test_kill import notes, start, until
from tests.ensembles.test_summary import seeds
from tests.small import append, draw, empty, flow, same

STEPS = 6
FEW = TrainConfig(max_epochs=2, batch_size=36)  # three batches an epoch


def weights_of(found: Any) -> list[dict[str, Tensor]]:
    return [dict(estimator.state_dict()) for estimator in found.estimators]


def assert_close(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Assert that all weights are equal up to rounding."""
    for ours, theirs in zip(weights_of(found), weights_of(expected), strict=True):
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, atol=tolerance, rtol=tolerance)


def were_stacked(found: Any) -> bool:
    return {summary.executor for summary in found.summary.summaries} == {"stacked"}


# --- which networks


def nre(kind: str) -> dict[str, Any]:
    return {"classifier": classifier_nn(kind, hidden_features=8)}


def npe(kind: str) -> dict[str, Any]:
    return {"density_estimator": posterior_nn(kind, hidden_features=8, num_transforms=2)}


NETWORKS = {
    **{f"NPE_C {kind}": npe(kind) for kind in ("maf", "nsf", "maf_rqs", "made", "mdn")},
    **{f"NPE_C {kind}": npe(kind) for kind in ("zuko_maf", "zuko_nsf", "zuko_gf", "zuko_bpf")},
    "NPE_A": {},
    "NPE_B": {},
    "MNPE": {},
    "NLE_A": {},
    "NLE_A nsf": {"density_estimator": likelihood_nn("nsf", hidden_features=8, num_transforms=2)},
    "MNLE": {},
    "NRE_A": {},
    "NRE_B resnet": nre("resnet"),
    "NRE_C": {},
    "BNRE": {},
    "FMPE": {},
    "NPSE": {},
}
ONE_OF_EACH_KIND = (
    *("NPE_C maf", "NPE_C nsf", "NPE_C mdn", "NPE_C zuko_nsf"),
    *("NLE_A", "NRE_B resnet", "FMPE", "NPSE"),
)


@pytest.fixture
def compared(monkeypatch):
    """Compare every stacked step with the eager one of each member; return how far they are."""
    found: list[float] = []
    step = module.Stack.step

    def spied(self: Any, batches: Any, **asked: Any) -> Any:
        before = [member.random.state_dict() for member in self.members]
        given = step(self, batches, **asked)
        after = [member.random.state_dict() for member in self.members]
        for k, (member, batch) in enumerate(zip(self.members, batches, strict=True)):
            member.random.load_state_dict(before[k])
            with member.random.in_force():
                losses, backward = member.eager(batch)
                gradients = module.gradients_of(self.parameters[k], backward)
            drawn = member.random.state_dict()
            # The stacked step draws what the member would have drawn, and as much.
            assert torch.equal(drawn["torch"], after[k]["torch"])
            stacked = given[k]
            assert stacked is not None
            pairs = [(losses.detach(), stacked[0])]
            pairs += list(zip(gradients, self.parted(stacked[1]), strict=True))
            scale = max(float(a.abs().max()) for a, _ in pairs)
            found.append(max(float((a - b).abs().max()) for a, b in pairs) / scale)
        return given

    monkeypatch.setattr(module.Stack, "step", spied)
    return found


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ONE_OF_EACH_KIND else pytest.mark.slow)
        for name in NETWORKS
    ],
)
@pytest.mark.filterwarnings("ignore:.*")
def test_the_gradients_of_a_stacked_step_are_those_of_each_member_alone(name, compared):
    method, _, _ = name.partition(" ")
    found = ensemble(maker(method, **NETWORKS[name]), members=3, config=FEW, stacked=True)
    assert were_stacked(found), found.summary.stacked
    assert len(compared) == 3 * STEPS
    assert max(compared) < 1e-5


def test_an_atomic_second_round_is_stacked_like_the_first(compared):
    found = ensemble(members=2, config=FEW, stacked=True)
    posterior = found.build_posterior().set_default_x(torch.zeros(1, 2))
    theta = posterior.sample((60,), show_progress_bars=False).detach()
    found.append_simulations(theta, theta + 0.3 * torch.randn_like(theta), proposal=posterior)
    compared.clear()
    found.train(FEW, stacked=True)
    assert were_stacked(found), found.summary.stacked
    assert max(compared) < 1e-5


@pytest.mark.parametrize("asked", [{}, {"bootstrap": True}, {"resplit": True}])
def test_stacked_members_are_those_of_single_training_up_to_rounding(asked):
    alone = ensemble(members=3, config=FEW, **asked)
    together = ensemble(members=3, config=FEW, stacked=True, **asked)
    assert were_stacked(together)
    assert_close(together, alone)
    for one, other in zip(alone.trainers, together.trainers, strict=True):
        assert torch.equal(one.train_indices, other.train_indices)
    assert together.summary.losses == pytest.approx(alone.summary.losses, rel=1e-4)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.RMSprop])
def test_any_optimizer_steps_on_stacked_gradients(optimizer):
    config = FEW.model_copy(update={"optimizer": lambda parameters: optimizer(parameters, lr=1e-3)})
    found = ensemble(members=2, config=config, stacked=True)
    assert were_stacked(found)
    assert_close(found, ensemble(members=2, config=config))


# --- each member for itself


@pytest.mark.parametrize(
    ("asked", "rates"),
    [
        ({"lr_schedule": "cosine"}, 8),
        ({"lr_schedule": LRSchedule("plateau", patience=0), "learning_rate": 0.02}, 2),
        ({"ema_decay": 0.9}, 1),
    ],
    ids=["cosine", "plateau", "ema"],
)
def test_members_keep_schedules_and_averages_of_their_own(asked, rates):
    config = FEW.model_copy(update={"max_epochs": 8, **asked})
    alone, together = (ensemble(members=3, config=config, stacked=s) for s in (False, True))
    assert were_stacked(together)
    assert_close(together, alone, 1e-3)
    pairs = list(zip(alone.summary.summaries, together.summary.summaries, strict=True))
    for one, other in pairs:
        assert other.learning_rate == pytest.approx(one.learning_rate, rel=1e-6)
        assert other.validation_loss == pytest.approx(one.validation_loss, rel=1e-3)
    assert max(len(set(other.learning_rate)) for _, other in pairs) >= rates
    if "learning_rate" in asked:  # each has a plateau of its own
        assert len({other.learning_rate for _, other in pairs}) > 1


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_each_member_returns_the_weights_of_its_own_best_epoch(ema_decay):
    config = TrainConfig(max_epochs=20, batch_size=36, learning_rate=0.1, ema_decay=ema_decay)
    found = ensemble(members=3, config=config, stacked=True, early_stopping=EarlyStopping.never())
    assert were_stacked(found)
    summaries = found.summary.summaries
    best = {summary.best_epoch for summary in summaries}
    assert len(best) > 1
    assert min(best) < 20
    for trainer, summary in zip(found.trainers, summaries, strict=True):
        losses = summary.validation_loss
        assert len(losses) == summary.epochs_trained == 20
        assert summary.best_validation_loss == min(losses) == losses[summary.best_epoch - 1]
        theta, x, _ = trainer.get_simulations()
        rows = trainer.val_indices
        with torch.no_grad():
            loss = trainer._neural_net.loss(theta[rows], x[rows]).mean().item()
        assert loss == pytest.approx(summary.best_validation_loss, rel=1e-5)


def test_members_stop_by_their_own_rules_and_leave_the_stack(monkeypatch):
    sizes: list[int] = []
    step = module.Stack.step

    def counted(self: Any, batches: Any) -> Any:
        sizes.append(len(batches))
        return step(self, batches)

    monkeypatch.setattr(module.Stack, "step", counted)
    config = TrainConfig(max_epochs=60, batch_size=36, learning_rate=0.02)
    asked = {"config": config, "early_stopping": EarlyStopping.validation_loss(patience=3)}
    found = ensemble(members=4, stacked=True, **asked)
    epochs = [summary.epochs_trained for summary in found.summary.summaries]
    assert len(set(epochs)) > 1
    for summary in found.summary.summaries:
        assert summary.stop_reason == "patience"
        assert summary.epochs_trained == summary.best_epoch + 3
    # Three batches an epoch: each lockstep computes those that are still training, and no others.
    left = [sum(e > epoch for e in epochs) for epoch in range(max(epochs))]
    assert sizes == [size for size in left for _ in range(3) if size > 1]


def test_members_keep_their_own_files_loggers_and_random_states(tmp_path):
    make = maker()
    before = torch.get_rng_state()
    found = ensemble(
        make, members=3, stacked=True, config=FEW, checkpoint=tmp_path / "ens", logging="jsonl"
    )
    assert torch.equal(torch.get_rng_state(), before)
    for number, summary in enumerate(found.summary.summaries):
        folder = tmp_path / "ens" / f"member-{number}"
        run = load_run(folder)
        assert run.status == "complete"
        assert run.summary is not None
        assert run.summary.validation_loss == summary.validation_loss
        assert json.loads((folder / "run.json").read_text())["executor"] == "stacked"
    again = ensemble(members=3, stacked=True, config=FEW, checkpoint=tmp_path / "ens")
    assert [s.resumed_from_epoch for s in again.summary.summaries] == [2, 2, 2]
    assert all(map(same, again.trainers, found.trainers))


class Failing(Callback):
    """Fails in some members."""

    def __init__(self, seeds: list[int]) -> None:
        self.seeds = seeds

    def on_epoch_end(self, state: Any) -> None:
        if torch.initial_seed() in self.seeds:
            raise OSError("the disk is full")


def test_a_member_that_fails_leaves_the_others_in_the_stack():
    asked = {"members": 3, "config": FEW, "callbacks": [Failing(seeds(1))]}
    with pytest.warns(SbiIgniteWarning, match=r"member 1 has failed .*the disk is full"):
        found = ensemble(stacked=True, **asked)
    assert [member.index for member in found.summary.failed] == [1]
    assert were_stacked(found)
    assert_close(found, ensemble(members=3, config=FEW, only=[0, 2]))


class Warns(Callback):
    """Warns in some members."""

    def __init__(self, seeds: list[int]) -> None:
        self.seeds = seeds

    def on_epoch_end(self, state: Any) -> None:
        if torch.initial_seed() in self.seeds:
            warnings.warn("look here", UserWarning, stacklevel=1)


def test_a_warning_is_told_of_the_member_that_has_warned():
    with pytest.warns(UserWarning, match="^member 0: look here"):
        ensemble(members=3, config=FEW, stacked=True, callbacks=[Warns(seeds(0))])


@pytest.mark.slow
def test_in_workers_there_are_as_many_stacks_as_jobs():
    found = ensemble(members=4, config=FEW, n_jobs=2, stacked=True)
    assert were_stacked(found)
    assert "2 networks" in found.summary.stacked
    assert_close(found, ensemble(members=4, config=FEW))


@pytest.mark.slow
def test_a_killed_stack_continues_where_each_member_stood(tmp_path):
    out, calm = tmp_path / "killed.pt", tmp_path / "calm.pt"
    process = start(tmp_path / "killed", out, 1, 0.3, stacked=True)
    until(lambda: len(notes(out)) > 15 or process.poll() is not None)
    process.kill()
    process.wait()
    assert start(tmp_path / "killed", out, 1, 0.0, stacked=True).wait(600) == 0
    assert start(tmp_path / "calm", calm, 1, 0.0, stacked=True).wait(600) == 0
    found, expected = (torch.load(file, weights_only=True) for file in (out, calm))
    assert min(found["resumed"]) > 0
    assert found["executors"] == ["stacked"] * 3
    assert all(map(same, found["weights"], expected["weights"]))


def test_a_signal_ends_a_stack_cleanly_and_it_continues(tmp_path):
    out = tmp_path / "ended.pt"
    process = start(tmp_path / "ended", out, 1, 0.2, stacked=True)
    until(lambda: len(notes(out)) > 5 or process.poll() is not None)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(120) == 128 + 15
    for number in range(3):
        assert load_run(tmp_path / "ended" / f"member-{number}").status != "complete"
    assert start(tmp_path / "ended", out, 1, 0.0, stacked=True).wait(600) == 0
    assert min(torch.load(out, weights_only=True)["resumed"]) > 0


# --- what was chosen, and why


def test_auto_measures_and_says_what_it_chose(caplog):
    config = TrainConfig(max_epochs=40, batch_size=50)
    with caplog.at_level(logging.INFO, "sbi_ignite.ensembles"):
        found = ensemble(
            members=4, config=config, stacked="auto", early_stopping=EarlyStopping.never()
        )
    said = found.summary.stacked
    assert " ms stacked and " in said
    assert any(" ms stacked and " in record.message for record in caplog.records)
    assert f"trained {said}" in str(found.summary)
    assert said.startswith("stacked") == were_stacked(found)


@pytest.mark.parametrize(
    ("seconds", "stacked"), [((1.0, 2.0), True), ((2.0, 1.0), False), ((0.95, 1.0), False)]
)
def test_auto_does_what_the_measurement_says(monkeypatch, seconds, stacked):
    measured: list[int] = []

    def measure(stack: Any, waiting: Any, batches: Any) -> tuple[float, float]:
        measured.append(len(waiting))
        return seconds

    monkeypatch.setattr(module, "_measured", measure)
    config = TrainConfig(max_epochs=40, batch_size=50)
    asked = {"members": 3, "config": config, "early_stopping": EarlyStopping.never()}
    found = ensemble(stacked="auto", **asked)
    assert measured == [3]
    assert were_stacked(found) == stacked
    assert found.summary.stacked.startswith("stacked" if stacked else "one after the other")
    together, alone = (f"{1e3 * each:.2f} ms" for each in seconds)
    assert f"takes {together} stacked and {alone} one after the other" in found.summary.stacked


def test_auto_that_does_not_pay_gives_bit_for_bit_single_training(monkeypatch):
    monkeypatch.setattr(module, "WORTH_IT", 0.0)
    config = TrainConfig(max_epochs=40, batch_size=50)
    asked = {"members": 3, "config": config, "early_stopping": EarlyStopping.never()}
    found = ensemble(stacked="auto", **asked)
    assert found.summary.stacked.startswith("one after the other (a step of 3 networks takes")
    assert all(map(same, found.trainers, ensemble(**asked).trainers))


class Attached(Callback):
    """Attaches a handler to the engine."""

    def attach(self, engine: Any) -> None:
        """Do nothing."""


REFUSED = {
    "sbi's own keywords": {"config": None, "max_num_epochs": 1, "stop_after_epochs": 1},
    "compile='off'": {"config": CONFIG.model_copy(update={"compile": "off"})},
    "compile='inductor'": {"config": CONFIG.model_copy(update={"compile": "inductor"})},
    r"callbacks with attach\(\)": {"callbacks": [Attached()]},
    "there is only one member": {"members": 1},
}


@pytest.mark.parametrize(
    "reason",
    [pytest.param(r, marks=[pytest.mark.slow] * ("inductor" in r)) for r in REFUSED],
)
@pytest.mark.filterwarnings("ignore:.*Maximum number of epochs", "ignore:.*compile='inductor'")
def test_what_cannot_be_stacked_is_trained_singly_with_one_warning_that_says_why(reason):
    asked = {"members": 2, **REFUSED[reason]}
    with pytest.warns(SbiIgniteWarning, match=f"stacked=True: .*one after the other.*{reason}"):
        found = ensemble(stacked=True, **asked)
    assert found.summary.stacked.startswith("one after the other (")
    assert all(map(same, found.trainers, ensemble(**asked).trainers))


def test_networks_that_write_to_buffers_are_not_stacked():
    torch.manual_seed(1)
    theta, x = draw()
    with pytest.warns(SbiIgniteWarning, match="its steps write to the network's buffers"):
        found = ensemble(
            lambda: append(empty("NPE_C", density_estimator=flow(use_batch_norm=True)), theta, x),
            stacked=True,
        )
    assert not were_stacked(found)


def test_networks_whose_shapes_depend_on_values_are_not_stacked():
    with pytest.warns(SbiIgniteWarning, match="shapes inside it depend on values"):
        found = ensemble(maker(density_estimator=posterior_nn("zuko_nice")), stacked=True)
    assert not were_stacked(found)


def test_members_of_different_networks_are_not_stacked():
    torch.manual_seed(1)
    theta, x = draw()
    trainers = [
        append(empty("NPE_C", density_estimator=flow(width)), theta, x) for width in (8, 12)
    ]
    with pytest.warns(SbiIgniteWarning, match="the members' networks are different computations"):
        found = train_ensemble(trainers, config=FEW, seed=1, stacked=True)
    assert not were_stacked(found)


def test_stacked_takes_three_values():
    with pytest.raises(SettingsError, match="stacked: expected False, True or 'auto', got 'yes'"):
        ensemble(stacked="yes")
