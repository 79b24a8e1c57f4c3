"""Two loggers never write the same numbers to the same place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sbi_ignite import ArgumentError, LoggingConfig, TrainConfig
from sbi_ignite.loggers import Memory, make_loggers
from tests.loggers import read
from tests.loggers.small import trained
from tests.small import SBI_WARNS, Silent, ready

pytestmark = SBI_WARNS


@pytest.mark.parametrize("name", list(LoggingConfig.takes))
def test_a_backend_that_is_named_twice_is_refused(name: Any) -> None:
    """By name or by fields that change nothing about where it writes."""
    for second in (name, LoggingConfig(name), LoggingConfig(name, tags=["again"])):
        with pytest.raises(ArgumentError, match=rf"^logging: .*'{name}' and .*{name}.*Leave one"):
            make_loggers([name, second])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"backend": "jsonl", "log_dir": "a"}, {"log_dir": "./b/../a"}),
        ({"backend": "tensorboard", "run_name": "x"}, {"run_name": "x", "log_dir": "sbi-logs"}),
        ({"backend": "wandb", "project": "p"}, {"project": "p", "mode": "offline"}),
        ({"backend": "mlflow", "experiment_name": "e"}, {"every_n_iterations": 3}),
    ],
    ids=lambda fields: fields.get("backend", ""),
)
def test_the_same_place_in_other_words_is_refused(
    first: Any, second: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Including a place that the environment names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "e")
    pair = [LoggingConfig(**first), LoggingConfig(**{**first, **second})]
    if first["backend"] == "mlflow":
        pair[1] = LoggingConfig("mlflow", **second)
    with pytest.raises(ArgumentError, match=r"^logging: .*both write to .*or give one another"):
        make_loggers(pair)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"backend": "jsonl", "log_dir": "a"}, {"log_dir": "b"}),
        ({"backend": "tensorboard", "log_dir": "a"}, {"log_dir": "a", "run_name": "x"}),
        ({"backend": "wandb", "project": "p"}, {"project": "q"}),
        ({"backend": "mlflow"}, {"tracking_uri": "http://127.0.0.1:5000"}),
        ({"backend": "jsonl", "log_dir": "a"}, {"backend": "tensorboard", "log_dir": "a"}),
    ],
    ids=lambda fields: fields.get("backend", ""),
)
def test_two_places_are_two_loggers(first: Any, second: Any) -> None:
    pair = [LoggingConfig(**first), LoggingConfig(**{"backend": first["backend"], **second})]
    assert len(make_loggers(pair).backends) == 2


def test_two_folders_of_one_training_both_hold_every_epoch_once(tmp_path: Path) -> None:
    names = ("a", "b")
    trained([LoggingConfig("jsonl", log_dir=tmp_path / name) for name in names], 3)
    for name in names:
        rows = read.jsonl(tmp_path / name / "metrics.jsonl")
        assert [step for step, _ in rows] == [1, 2, 3]


def test_a_run_directory_holds_one_log_of_a_backend_whatever_its_run_name(tmp_path: Path) -> None:
    """Nothing is written before the second is refused."""
    pair = [LoggingConfig("jsonl", run_name=name) for name in ("one", "two")]
    with pytest.raises(ArgumentError, match=r"'one'.*'two'.*run/logs.*give one a log_dir"):
        trained(pair, 3, checkpoint=str(tmp_path / "run"))
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_backend_of_environment_and_call_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBI_IGNITE_LOGGING__BACKEND", "jsonl")
    monkeypatch.setenv("SBI_IGNITE_LOGGING__LOG_DIR", str(tmp_path))
    trained("jsonl", 3)
    assert [p.parent for p in tmp_path.rglob("metrics.jsonl")] == [tmp_path]
    with pytest.raises(ArgumentError, match=r"^logging: .*both write to jsonl in"):
        trained(["jsonl", LoggingConfig("jsonl", log_dir=tmp_path)], 3)


def test_an_object_that_is_passed_twice_is_refused() -> None:
    memory, tracker = Memory(), Silent()
    for one in (memory, tracker):
        with pytest.raises(ArgumentError, match=rf"the same {type(one).__name__}\. Leave one"):
            make_loggers([one, one])
    assert len(make_loggers([Memory(), Memory(), Silent(), tracker]).backends) == 4


def test_a_trainers_own_tracker_is_not_told_twice() -> None:
    """It gets every epoch anyway, under sbi's numbers."""
    trainer = ready("NPE_C")
    with pytest.raises(ArgumentError, match=r"^logging: .*the same Silent\. Leave one"):
        trainer.train(TrainConfig(max_epochs=1), logging=trainer._tracker)
    ready("NPE_C").train(TrainConfig(max_epochs=1), logging=Silent())
