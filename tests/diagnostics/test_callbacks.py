"""Checks of the posterior while it is trained."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from sbi_ignite import (
    SBC,
    ArgumentError,
    Callback,
    Coverage,
    DataError,
    EarlyStopping,
    PosteriorPairplot,
    SbiIgniteWarning,
    TrainConfig,
    TrainingState,
    load_run,
    run_training,
)
from sbi_ignite.diagnostics import callbacks as module
from sbi_ignite.diagnostics.calibration import coverage_of
from sbi_ignite.diagnostics.draws import draw as draws_of
from sbi_ignite.diagnostics.draws import own_random_state, ranks_of
from sbi_ignite.diagnostics.held_out import validation_rows
from sbi_ignite.loggers import Memory
from tests.diagnostics.small import WITH_POSTERIOR, generators, many, pairs
from tests.small import SBI_WARNS, ready, same, second_round, train, weights

pytestmark = [
    *SBI_WARNS,
    # Networks of two epochs know little, so that most draws of the prior count; some few do not.
    pytest.mark.filterwarnings("ignore:Posteriors are so narrow"),
]


def checks(every: int = 1) -> list[Callback]:
    return [
        Coverage(every=every, num_posterior_samples=20),
        SBC(every=every, num_posterior_samples=20),
        PosteriorPairplot(torch.zeros(2), every=every, num_posterior_samples=50),
    ]


@pytest.mark.parametrize(
    ("name", "typed"),
    [*((name, True) for name in WITH_POSTERIOR), ("NPE_C", False), ("FMPE", False)],
)
def test_training_is_bitwise_the_same_with_and_without_checks(name: str, typed: bool):
    """Weights, losses and all random generators; the form does not depend on the method."""
    args, kwargs = ([TrainConfig(max_epochs=2)], {}) if typed else ([], {"max_num_epochs": 1})
    memory = Memory()
    trainers, drawn = [], []
    for callbacks in ((), checks()):
        np.random.seed(3)
        random.seed(4)
        trainers.append(train(many(name), *args, **kwargs, callbacks=callbacks, logging=memory))
        drawn.append(generators())
    assert same(*trainers)
    assert drawn[0] == drawn[1]
    plain, checked = (t.training_summary for t in trainers)
    assert plain.validation_loss == checked.validation_loss
    assert {epoch for epoch, _ in checked.metrics["coverage/error"]} == {1, 2}
    assert {figure[1] for figure in memory.figures} == {"coverage", "sbc", "posterior"}


def test_training_on_recorded_steps_is_the_same_too():
    """Where a recording replaces the network, and averages replace its weights."""
    config = TrainConfig(max_epochs=4, compile="trace", averaging="ema")
    plain = train(many(), config)
    assert same(plain, train(many(), config, callbacks=checks(2)))


def test_what_is_checked_is_the_network_of_the_epoch():
    """The numbers are those of a check after training that stopped there."""
    trainer = train(
        many(), TrainConfig(max_epochs=3), callbacks=Coverage(every=3, num_posterior_samples=50)
    )
    last = trainer.training_summary
    assert last.best_epoch == 3
    theta, x = validation_rows(trainer, "test")
    with own_random_state(0, 3):
        ranks = ranks_of(theta, x, draws_of(trainer, trainer._neural_net, x, 50))
    share = coverage_of(ranks.astype(float), 50, 0.9).mean()
    assert last.metrics["coverage/90"] == ((3, pytest.approx(share)),)


def test_a_trained_posterior_covers_and_a_narrowed_one_does_not():
    """The numbers mean what they say: a network whose samples lie closer together covers less."""
    prior_rows = pairs(200)
    kept: dict[str, float] = {}

    class Narrowed(Callback):
        def on_epoch_end(self, state: Any) -> None:
            kept.update(state.metrics)

    trainer = many(num_rows=2_000)
    check = Coverage(every=1, theta=prior_rows[0], x=prior_rows[1])
    train(trainer, TrainConfig(max_epochs=15, learning_rate=5e-3), callbacks=[check, Narrowed()])
    assert kept["coverage/90"] == pytest.approx(0.9, abs=0.06)
    assert kept["coverage/error"] < 0.15

    class Narrow(nn.Module):
        def __init__(self, net: Any) -> None:
            super().__init__()
            self.net: Any = net

        def sample(self, shape: Any, condition: Any) -> Any:
            found = self.net.sample(shape, condition=condition)
            return found.mean(0) + 0.4 * (found - found.mean(0))

    state = TrainingState(model=Narrow(trainer._neural_net), trainer=trainer, epoch=1)
    check.on_train_start(state)
    check.on_measure(state)
    assert state.metrics["coverage/90"] < 0.65


def test_numbers_are_logged_only_every_so_many_epochs():
    memory = Memory()
    trainer = train(many(), TrainConfig(max_epochs=5), callbacks=checks(2), logging=memory)
    assert [row["step"] for row in memory.rows if "sbc/p" in row] == [2, 4]
    assert [epoch for epoch, _ in trainer.training_summary.metrics["sbc/p"]] == [2, 4]
    assert [(step, name) for step, name, _ in memory.figures if name == "sbc"] == [
        (2, "sbc"),
        (4, "sbc"),
    ]


def test_the_numbers_of_every_parameter_have_its_name():
    names = ["rate é", "scale/2"]
    callbacks = [
        Coverage(1, parameter_names=names, num_posterior_samples=20),
        SBC(1, parameter_names=names, num_posterior_samples=20),
        PosteriorPairplot(torch.zeros(1, 2), 1, parameter_names=names),
    ]
    found = train(many(), TrainConfig(max_epochs=1), callbacks=callbacks).training_summary.metrics
    assert set(found) == {
        *("coverage/50", "coverage/90", "coverage/error", "coverage/joint_error", "sbc/p"),
        *("coverage/rate _/90", "coverage/scale_2/90"),
        *("sbc/rate _/bias", "sbc/rate _/width", "sbc/scale_2/bias", "sbc/scale_2/width"),
        *("posterior/rate _/mean", "posterior/rate _/sd"),
        *("posterior/scale_2/mean", "posterior/scale_2/sd"),
    }


@pytest.mark.parametrize("typed", [True, False])
def test_a_rule_sees_the_check_of_the_same_epoch(typed: bool):
    """And stops in it, in both forms."""
    args, kwargs = ([TrainConfig(max_epochs=9)], {}) if typed else ([], {"max_num_epochs": 8})
    seen = []

    def rule(state: Any) -> bool:
        seen.append(state.metrics.get("coverage/error"))
        return len(seen) == 4

    trainer = train(
        many(),
        *args,
        **kwargs,
        callbacks=Coverage(2, num_posterior_samples=20),
        early_stopping=EarlyStopping.when(rule),
    )
    assert seen[0] is None
    assert seen[1] is not None
    assert seen[2] == seen[1] != seen[3]
    summary = trainer.training_summary
    assert (summary.stop_reason, summary.epochs_trained) == ("rule", 4)
    assert dict(summary.metrics["coverage/error"]) == {2: seen[1], 4: seen[3]}


def test_a_resumed_run_knows_what_was_measured_and_measures_the_same(tmp_path: Path):
    once = train(many(), TrainConfig(max_epochs=4), callbacks=checks(2)).training_summary
    train(many(), TrainConfig(max_epochs=3), callbacks=checks(2), checkpoint=str(tmp_path))
    newest: list[Any] = []

    class Look(Callback):
        def on_train_start(self, state: Any) -> None:
            newest.append(dict(state.metrics))

    kwargs = {"callbacks": [Look(), *checks(2)], "checkpoint": str(tmp_path)}
    summary = train(many(), TrainConfig(max_epochs=4), **kwargs).training_summary
    assert newest[0]["coverage/error"] == dict(once.metrics["coverage/error"])[2]
    assert summary.metrics == once.metrics
    run = load_run(tmp_path)
    assert run.summary is not None
    assert run.summary.metrics == once.metrics
    rows = [row.get("coverage/error") for row in run.metrics]
    assert [row is None for row in rows] == [True, False, True, False]


def test_a_training_resumed_in_the_process_knows_them_too():
    trainer = train(many(), TrainConfig(max_epochs=2), callbacks=checks(2))
    first = trainer.training_summary.metrics["sbc/p"]
    trainer.train(TrainConfig(max_epochs=4, resume_training=True), callbacks=checks(2))
    assert trainer.training_summary.metrics["sbc/p"][:1] == first
    assert len(trainer.training_summary.metrics["sbc/p"]) == 2


def test_checkpoints_without_such_numbers_are_read():
    state = TrainingState(model=None)
    state.history.append(training_loss=1.0)
    old = state.state_dict()
    del old["metrics"], old["history"]["metrics"]
    state.log({"a": 1.0})
    other = TrainingState(model=None)
    other.load_state_dict(old)
    assert other.metrics == other.history.metrics == {}
    assert other.history.training_loss == [1.0]


def test_given_simulations_take_the_place_of_validation_rows():
    theta, x = pairs(60)
    found = [
        train(
            many(),
            TrainConfig(max_epochs=1),
            callbacks=Coverage(1, theta=rows[0], x=rows[1], num_posterior_samples=20),
        ).training_summary.metrics
        for rows in ((theta, x), (theta.numpy(), x.numpy()), (theta[:30], x[:30]))
    ]
    assert found[0] == found[1] != found[2]


def test_a_validation_set_of_the_users_own_is_checked_on():
    theta, x = pairs(60)
    own = train(
        many(),
        TrainConfig(max_epochs=1),
        validation=(theta, x),
        callbacks=Coverage(1, num_posterior_samples=20),
    )
    given = train(
        many(),
        TrainConfig(max_epochs=1),
        validation=(theta, x),
        callbacks=Coverage(1, theta=theta, x=x, num_posterior_samples=20),
    )
    assert own.training_summary.metrics == given.training_summary.metrics


def test_rows_from_a_proposal_are_no_held_out_simulations():
    """In a later round, those of the first are taken, or others asked for."""
    trainer = second_round(train(many(), TrainConfig(max_epochs=1)), 300)
    trainer.train(TrainConfig(max_epochs=1), callbacks=Coverage(1, num_posterior_samples=20))
    trainer = second_round(train(many(), TrainConfig(max_epochs=1)), 300)
    with pytest.raises(ArgumentError, match="all draws from a proposal"):
        trainer.train(
            TrainConfig(max_epochs=1, discard_prior_samples=True),
            callbacks=Coverage(1, num_posterior_samples=20),
        )


def test_a_posterior_too_narrow_for_weights_is_said_to_be_so():
    """Of 4,000 draws of the prior, hardly one is in it."""

    class Exact(nn.Module):
        """log p(x | theta) of x = theta + noise."""

        def __init__(self) -> None:
            super().__init__()
            self.noise = nn.Parameter(torch.tensor(0.005))

        def log_prob(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            return -0.5 * ((x - condition) / self.noise).square().sum(dim=-1)

    trainer = many("NLE_A")
    state = TrainingState(model=Exact(), trainer=trainer, epoch=1)
    train(trainer, TrainConfig(max_epochs=1))
    check = SBC(every=1)
    check.on_train_start(state)
    with pytest.warns(SbiIgniteWarning, match=r"only \d+ of 4000 draws of the prior count"):
        check.on_measure(state)


def test_trainings_without_a_posterior_are_refused_before_they_begin():
    with pytest.raises(ArgumentError, match=r"Coverage: expected a trainer .* got run_training"):
        run_training(
            TrainConfig(max_epochs=1),
            nn.Linear(2, 1),
            lambda model, batch: model(batch).square().mean(dim=1),
            [torch.zeros(4, 2)],
            callbacks=[Coverage()],
        )
    with pytest.raises(ArgumentError, match="got MarginalTrainer"):
        train(ready("MarginalTrainer"), TrainConfig(max_epochs=1), callbacks=SBC())
    trainer = ready("NLE_A", prior=None)
    with pytest.raises(ArgumentError, match="expected a prior"):
        train(trainer, TrainConfig(max_epochs=1), callbacks=SBC())


def test_too_few_held_out_simulations_are_refused_before_training():
    with pytest.raises(DataError, match=r"at least 20 held-out simulations .* got 12"):
        train(ready(), TrainConfig(max_epochs=1), callbacks=Coverage())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Coverage(every=0), "every as a whole number from 1 on, got 0"),
        (lambda: SBC(every=2.5), "every as a whole number"),  # type: ignore[arg-type]
        (lambda: SBC(num_posterior_samples=5), "num_posterior_samples as a whole number from 20"),
        (lambda: Coverage(num_simulations="all"), "num_simulations as a whole number"),  # type: ignore[arg-type]
        (lambda: Coverage(theta=torch.zeros(30, 2)), "theta and x, or neither"),
        (lambda: PosteriorPairplot(torch.zeros(2), seed=-1), "seed as a whole number from 0"),
    ],
)
def test_nonsense_is_refused_at_once(make: Any, text: str):
    with pytest.raises(ArgumentError, match=text):
        make()


def test_an_observation_of_another_shape_and_names_too_few_are_refused():
    with pytest.raises(ArgumentError, match=r"x_o of shape \(2,\), one row of x, got \(3,\)"):
        train(many(), TrainConfig(max_epochs=1), callbacks=PosteriorPairplot(torch.zeros(3)))
    with pytest.raises(ArgumentError, match="expected 2 parameter_names"):
        train(many(), TrainConfig(max_epochs=1), callbacks=Coverage(parameter_names=["a"]))


def test_without_loggers_that_show_figures_none_is_drawn(monkeypatch: pytest.MonkeyPatch):
    for name in ("coverage_figure", "rank_figure", "pairplot"):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("drawn"))
    trainer = train(many(), TrainConfig(max_epochs=1), callbacks=checks(), logging="none")
    assert math.isfinite(trainer.training_summary.metrics["sbc/p"][0][1])


def test_figures_do_not_touch_pyplot():
    before = plt.get_fignums()
    memory = Memory()
    train(many(), TrainConfig(max_epochs=1), callbacks=checks(), logging=memory)
    assert plt.get_fignums() == before
    titles = [figure.axes[0].get_title(loc="left") for _, name, figure in memory.figures[:1]]
    assert titles == ["epoch 1, 40 simulations"]


def test_a_users_callback_logs_like_them():
    class Norm(Callback):
        def on_measure(self, state: Any) -> None:
            state.log({"norm": sum(p.norm().item() for p in state.model.parameters())})

    trainer = train(ready(), TrainConfig(max_epochs=2), callbacks=Norm())
    assert [epoch for epoch, _ in trainer.training_summary.metrics["norm"]] == [1, 2]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"a:b": 1.0}, "expected a name of letters"),
        ({3: 1.0}, "expected a name of letters"),
        ({"training_loss": 1.0}, "logged already"),
        ({"a": "high"}, "expected a number as 'a', got str 'high'"),
    ],
)
def test_what_loggers_cannot_take_is_refused(values: Any, text: str):
    with pytest.raises(ArgumentError, match=text):
        TrainingState(model=None).log(values)


def test_weights_are_not_touched_by_a_check():
    trainer = train(many(), TrainConfig(max_epochs=1))
    before = weights(trainer)
    was_training = trainer._neural_net.training
    draws_of(trainer, trainer._neural_net, pairs(30)[1], 20)
    assert same(before, trainer)
    assert trainer._neural_net.training == was_training
