"""What is logged about best loss and patience is what those say who decide by it."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events

from sbi_ignite import (
    Callback,
    CheckpointConfig,
    EarlyStopping,
    Stage,
    TrainConfig,
    TrainingState,
    run_training,
)
from sbi_ignite.callback import History
from sbi_ignite.handlers.best_weights import BestWeights
from sbi_ignite.handlers.stages import StageRule
from sbi_ignite.handlers.stopping import StopOnRules
from sbi_ignite.loggers import Memory
from sbi_ignite.runs.load import load_run, summary_from
from tests.loggers import read
from tests.loggers.test_laws import LOG_TO, SINGLE_PRECISION, Recorder
from tests.small import METHODS, SBI_WARNS, ready, train

pytestmark = SBI_WARNS

NAN, INF = math.nan, math.inf
SCRIPT = [8.0, 5.0, 4.0, 3.75, 4.0, 4.5, 3.0, 3.25, 3.5, 9.0, -1.0, -0.75, 6.0, 7.0]
"""Validation losses: in small steps, in one that counts, noisy, negative."""


class Scripted:
    """A loss whose validation, two rows at once, follows a script, over and over."""

    def __init__(self, losses: list[float]) -> None:
        self._losses: Iterator[float] = itertools.cycle(losses)

    def __call__(self, model: Any, batch: Any) -> Any:
        return model(batch).square().mean(dim=1)

    def validate(self, model: Any, batch: Any) -> Any:
        loss = next(self._losses)
        return torch.tensor([loss - 0.5, loss + 0.5])


RULES: dict[str, dict[str, Any]] = {
    "patience": {"early_stopping": EarlyStopping.validation_loss(patience=4)},
    "min_delta": {"early_stopping": EarlyStopping.validation_loss(patience=8, min_delta=2.0)},
    "two deviations": {"early_stopping": EarlyStopping.two_standard_deviations(patience=2)},
    "no count": {"early_stopping": EarlyStopping.lr_threshold(1e-9)},
    "several": {
        "early_stopping": [
            EarlyStopping.when(lambda state: False),
            EarlyStopping.validation_loss(patience=9),
            EarlyStopping.validation_loss(patience=6, min_delta=1.0),
        ]
    },
    "stages": {
        "config": {
            "stages": (
                Stage(patience=2, patience_steps=9, average_best=2),
                Stage(patience=3, min_improvement=0.1, restart=False),
            )
        },
        "early_stopping": EarlyStopping.never(),
    },
}
"""Arguments for every rule, alone and together."""


def fruitless_until_stop(rule: Any, state: TrainingState) -> int | None:
    """Return how many epochs without improvement a rule would still count; None if it counts none.

    The rule is asked by trial, on a copy.
    """
    if not hasattr(rule, "fruitless_epochs"):
        return None
    rule, counted = deepcopy(rule), 0
    for epoch in range(1, 100):
        if isinstance(rule, StageRule):
            if rule.has_ended:
                return counted
            rule.observe(NAN, state.iteration + 3 * epoch)
            counted += 1
        else:
            if rule.fruitless_epochs >= rule.patience:
                return counted
            before = rule.fruitless_epochs
            rule.observe(NAN)
            counted += rule.fruitless_epochs - before
    raise AssertionError(f"{rule} never stops")


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Return what the rules of all trainings say about their patience, epoch by epoch."""
    said: list[int | None] = []
    ask = StopOnRules._ask

    def asked(self: Any) -> None:
        ask(self)
        counts = [fruitless_until_stop(rule, self._state) for rule in self.rules]
        said.append(min((c for c in counts if c is not None), default=None))

    monkeypatch.setattr(StopOnRules, "_ask", asked)
    return said


def scripted(logging: Any, config: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """Train a small network whose validation losses follow the script; three steps an epoch."""
    return run_training(
        TrainConfig(**{"max_epochs": len(SCRIPT), "compile": "off", "seed": 0, **(config or {})}),
        torch.nn.Linear(2, 1),
        kwargs.pop("loss", None) or Scripted(SCRIPT),
        [torch.ones(2, 2)] * 3,
        [torch.ones(2, 2)],
        logging=logging,
        **kwargs,
    )[1]


class _Kept:
    """Notes, when all is done that an epoch's end brings about, the loss of the best weights."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.best: list[float] = []
        self._keepers: list[BestWeights] = []
        make = BestWeights.__init__

        def made(keeper: BestWeights, state: TrainingState) -> None:
            make(keeper, state)
            self._keepers.append(keeper)

        patch.setattr(BestWeights, "__init__", made)

    def attach(self, engine: Any) -> None:
        (keeper,) = self._keepers
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.best.append(keeper.loss))


def best_and_patience(rows: read.Rows) -> list[Any]:
    return [(row["best_validation_loss"], row.get("patience_left")) for _, row in rows]


def check_rules(names: list[str], folder: Path, patience: list[int | None]) -> None:
    for rule, arguments in RULES.items():
        patience.clear()
        place = folder / rule.replace(" ", "-")
        place.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            logs = {name: LOG_TO[name](place) for name in names}
            kept = _Kept(patch)
            summary = scripted([log for log, _ in logs.values()], callbacks=[kept], **arguments)
            best = kept.best
            assert summary.epochs_trained == len(patience) == len(best) >= 8, rule
            lowest = [min(SCRIPT[: i + 1]) for i in range(len(best))]
            assert (best == lowest) == (rule != "stages"), rule  # a mean may be above the lowest
            assert best[-1] == summary.best_validation_loss
            assert {left is None for left in patience} == {rule == "no count"}, rule
            for name, (_, rows) in logs.items():
                as_kept = np.float32 if name in SINGLE_PRECISION else float
                expected = [(float(as_kept(b)), p) for b, p in zip(best, patience, strict=True)]
                assert best_and_patience(rows()) == expected, (rule, name)


def test_logged_best_and_patience_are_the_rules_in_every_backend_of_this_process(
    tmp_path: Path, patience: list[int | None]
) -> None:
    """Every rule, by trial on a copy of it after each epoch."""
    check_rules(["memory", "jsonl", "tensorboard", "tracker", "ignite"], tmp_path, patience)


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_logged_best_and_patience_are_the_rules_in_every_backend(
    tmp_path: Path, patience: list[int | None]
) -> None:
    """The same with those that live in processes of their own."""
    check_rules(["memory", "wandb", "mlflow"], tmp_path, patience)


class _Told(Callback):
    """Notes what a trainer knows after an epoch, by sbi's own names."""

    def __init__(self, trainer: Any) -> None:
        self._trainer, self.best, self.fruitless = trainer, [], []

    def on_epoch_end(self, state: TrainingState) -> None:
        self.best.append(self._trainer._best_val_loss)
        self.fruitless.append(self._trainer._epochs_since_last_improvement)
        assert state.history.best_validation_loss[-1] == state.best_validation_loss
        columns = [c for c in vars(state.history).values() if isinstance(c, list)]
        assert len({len(column) for column in columns}) == 1


def test_logged_best_and_patience_are_those_of_every_method_in_both_forms(
    patience: list[int | None],
) -> None:
    """Sbi's form against the memory of sbi's own `_converged`, the others against their rules."""
    for method in METHODS:
        trainer, memory = ready(method, 60), Memory()
        told = _Told(trainer)
        rate = 0.05
        train(
            trainer,
            max_num_epochs=9,
            learning_rate=rate,
            training_batch_size=20,
            stop_after_epochs=4,
            logging=memory,
            callbacks=[told],
        )
        left = [4 - fruitless for fruitless in told.fruitless]
        assert len(set(told.best)) > 1, method
        last = trainer.training_summary.best_validation_loss
        found = [(row["best_validation_loss"], row["patience_left"]) for row in memory.rows]
        assert found == list(zip(told.best, left, strict=True)), method
        assert found[-1][0] == last == trainer._summary["best_validation_loss"][-1], method

        for config in (TrainConfig, functools.partial(TrainConfig.fast, batch_size=20)):
            trainer, memory = ready(method, 60), Memory()
            told = _Told(trainer)
            patience.clear()
            train(trainer, config(max_epochs=6), logging=memory, callbacks=[told])
            found = [(row["best_validation_loss"], row["patience_left"]) for row in memory.rows]
            assert found == list(zip(told.best, patience, strict=True)), method
            assert None not in patience, method


def test_a_user_who_decides_about_convergence_has_no_patience_that_could_be_logged() -> None:
    """What counts then, nobody else knows; the best loss is still the trainer's."""
    from sbi_ignite.inference import NPE
    from tests.small import append, box, draw, flow

    class Own(NPE):
        def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
            super()._converged(epoch, stop_after_epochs)
            return epoch >= 3

    trainer = Own(box(), density_estimator=flow(), tracker=Recorder(), show_progress_bars=False)
    memory = Memory()
    train(append(trainer, *draw(60)), max_num_epochs=9, logging=memory)
    assert len(memory.rows) == 3
    assert all("patience_left" not in row for row in memory.rows)
    assert memory.rows[-1]["best_validation_loss"] == trainer._best_val_loss


@pytest.mark.usefixtures("patient")
def test_without_validation_data_nobody_gets_a_validation_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not per epoch, not among the results, in no backend; the best training loss is named so."""
    monkeypatch.chdir(tmp_path)
    logs = {name: log(tmp_path) for name, log in LOG_TO.items()}
    _, summary = run_training(
        TrainConfig(max_epochs=4, compile="off", learning_rate=0.05),
        torch.nn.Linear(2, 1),
        lambda model, batch: model(batch).square().mean(dim=1),
        [torch.ones(2, 2)] * 3,
        early_stopping=EarlyStopping.validation_loss(patience=3),
        logging=["stdout", *(log for log, _ in logs.values())],
        checkpoint=str(tmp_path / "run"),
    )
    best = [min(summary.training_loss[: i + 1]) for i in range(4)]
    for name, (_, rows) in logs.items():
        as_kept = np.float32 if name in SINGLE_PRECISION else float
        found = rows()
        assert [row["best_training_loss"] for _, row in found] == [as_kept(b) for b in best], name
        assert not any("validation" in metric for _, row in found for metric in row), name
    memory, tracker = Memory.latest, logs["tracker"][0]
    assert memory is not None
    assert "best_training_loss" in tracker.params
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    names = {
        "memory": {name for row in memory.rows for name in row},
        "jsonl": set(_keys((tmp_path / "j" / "metrics.jsonl").read_text())),
        "run directory": set(_keys((tmp_path / "run" / "metrics.jsonl").read_text())),
        "mlflow": {name for (name,) in read.sqlite(uri, "select distinct key from metrics")},
        "wandb": {
            item.key or item.nested_key[0]
            for kind in ("history", "summary")
            for record in read.wandb_records(tmp_path, kind)
            for item in getattr(record, "update" if kind == "summary" else "item")
        },
        "tracker": set(tracker.params),
        "tensorboard": set(read.tensorboard_tags(tmp_path / "tb")),
        "ignite": set(read.tensorboard_tags(tmp_path / "ignite")),
    }
    for name, found in names.items():
        assert found, name
        assert not [metric for metric in found if "validation_loss" in metric], name
        assert any("training_loss" in metric for metric in found), name
    printed = capsys.readouterr().out
    header, line = printed.splitlines()[1:3]
    assert "validation" not in printed
    assert len(header) == len(line)
    assert line.split()[2] == f"{best[0]:.4f}"
    assert f"best training loss {best[-1]:.4f}" in printed
    assert "best training loss" in str(summary)
    assert "validation loss" not in str(summary)
    assert "validation" not in repr(summary)
    assert load_run(tmp_path / "run").summary == summary
    of_first_release = {**summary.to_dict(), "validation_loss": [None] * 4}
    del of_first_release["validated"]
    assert not summary_from(of_first_release).validated
    legend = [text.get_text() for text in summary.plot().axes[0].get_legend().get_texts()]
    assert legend == ["training", f"best: epoch {summary.best_epoch}, {best[-1]:.3f}"]


def _keys(lines: str) -> Iterator[str]:
    """Yield the keys of JSON lines, those of the results included, settings apart."""
    for line in map(json.loads, lines.splitlines()):
        yield from (key for key in line if key not in ("settings", "origins"))
        yield from line.get("summary", {})


def test_a_resumed_run_logs_the_epochs_before_it_as_the_rules_saw_them(tmp_path: Path) -> None:
    """A backend that missed them gets what an uninterrupted run logs, with min_delta and all."""
    arguments = {"early_stopping": EarlyStopping.validation_loss(patience=8, min_delta=2.0)}
    whole, resumed = Memory(), Memory()
    losses = [5.0, 4.5, 4.4, 2.0, 1.9, 1.8, -3.0, -2.0]
    scripted(whole, {"max_epochs": 8}, loss=Scripted(losses), **arguments)
    for epochs, part, memory in ((5, losses, Memory()), (8, losses[5:], resumed)):
        scripted(
            memory,
            {"max_epochs": epochs},
            loss=Scripted(part),
            checkpoint=CheckpointConfig(tmp_path / "run"),
            **arguments,
        )
    own = ("step", "validation_loss", "best_validation_loss", "patience_left")
    assert [[row[n] for n in own] for row in resumed.rows] == [
        [row[n] for n in own] for row in whole.rows
    ]
    assert [row["patience_left"] for row in whole.rows] == [8, 7, 6, 8, 7, 6, 8, 7]


def test_a_checkpoint_without_best_and_patience_continues_and_nothing_is_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first release wrote them: what nobody noted is left out, and then goes on."""
    go = functools.partial(
        scripted,
        checkpoint=CheckpointConfig(tmp_path / "run"),
        early_stopping=EarlyStopping.validation_loss(patience=9),
    )
    new = ("best_validation_loss", "patience_left")
    of_history, of_state = History.state_dict, TrainingState.state_dict

    def without_new(method: Any) -> Any:
        return lambda self: {n: v for n, v in method(self).items() if n != "patience_left"}

    with monkeypatch.context() as patch:
        patch.setattr(
            History,
            "state_dict",
            lambda self: {n: v for n, v in of_history(self).items() if n not in new},
        )
        patch.setattr(TrainingState, "state_dict", without_new(of_state))
        go(Memory(), {"max_epochs": 3}, loss=Scripted([3.0, 2.0, 2.5]))
    memory = Memory()
    go(memory, {"max_epochs": 5}, loss=Scripted([2.2, 1.0]))
    assert [[row.get(name) for name in new] for row in memory.rows] == [
        *([None, None],) * 3,
        [2.0, 7],
        [1.0, 9],
    ]
