"""Resolved settings are plain data for a manifest and a table for people."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sbi_ignite
from sbi_ignite.settings import (
    EarlyStopping,
    LoggingConfig,
    LRSchedule,
    Origin,
    Resolved,
    TrainConfig,
    resolve,
)


@pytest.fixture
def resolved(environment) -> Resolved:
    environment(TRAIN__BATCH_SIZE="50", CHECKPOINT__DIRECTORY="runs/a")
    return resolve(
        train=TrainConfig(
            optimizer=torch.optim.SGD,
            max_time=3661.5,
            lr_schedule=LRSchedule("cosine"),
            dataloader_kwargs={"worker_init_fn": print, "auth_token": "swordfish", "n": 2},
        ),
        early_stopping=[EarlyStopping.lr_threshold(), EarlyStopping.when(bool)],
        logging=[LoggingConfig("mlflow", tracking_uri="http://me:swordfish@host"), object()],
    )


def test_plain_data_survives_json(resolved):
    data = resolved.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert list(data) == ["train", "early_stopping", "logging", "checkpoint"]


def test_plain_data_holds_value_origin_and_place_of_every_field(resolved):
    train = resolved.to_dict()["train"]
    assert set(train) == set(TrainConfig.model_fields)
    assert train["batch_size"] == {
        "value": 50,
        "origin": "environment",
        "where": "SBI_IGNITE_TRAIN__BATCH_SIZE",
    }
    assert train["seed"] == {"value": None, "origin": "default", "where": ""}
    assert train["optimizer"]["value"] == "torch.optim.sgd.SGD"
    assert train["max_time"]["value"] == "01:01:01.500000"
    assert train["lr_schedule"]["value"]["kind"] == "cosine"
    assert train["dataloader_kwargs"]["value"]["worker_init_fn"] == "builtins.print"


def test_plain_data_lists_rules_loggers_and_the_run_directory(resolved):
    data = resolved.to_dict()
    assert [rule["kind"]["value"] for rule in data["early_stopping"]] == ["lr_threshold", "when"]
    assert data["early_stopping"][1]["rule"]["value"] == "builtins.bool"
    assert data["logging"][0]["backend"]["value"] == "mlflow"
    assert data["logging"][1]["logger"]["value"] == "builtins.object"
    assert data["checkpoint"]["directory"]["value"] == "runs/a"
    assert resolve(checkpoint=None).to_dict()["checkpoint"] is not None  # from the environment


def test_no_secret_leaves_through_plain_data_or_the_table(resolved):
    assert "swordfish" not in json.dumps(resolved.to_dict())
    assert "swordfish" not in resolved.describe()
    assert "swordfish" not in repr(resolved)


def test_the_table_is_aligned_and_shows_every_value_with_its_origin(resolved):
    header, *rows = resolved.describe().splitlines()
    start = header.index("origin")
    assert header.split() == ["name", "value", "origin", "where"]
    assert all(row[start:].split()[0] in {"call", "environment", "default"} for row in rows)
    assert {row.split()[0] for row in rows} >= {
        f"train.{name}" for name in TrainConfig.model_fields
    }
    batch_size = next(row for row in rows if row.startswith("train.batch_size"))
    assert batch_size.split()[1:] == ["50", "environment", "SBI_IGNITE_TRAIN__BATCH_SIZE"]


def test_the_origin_of_what_nobody_set_is_the_default(resolved):
    assert resolved.origin("train.seed") == Origin("default")
    assert resolved.origin("no.such") == Origin("default")


def test_resolved_settings_are_values(resolved):
    first, second = resolve(keywords={"seed": 1}), resolve(keywords={"seed": 1})
    assert first == second
    assert hash(first) == hash(second)
    assert pickle.loads(pickle.dumps(first)) == first
    with pytest.raises(AttributeError):
        first.train = TrainConfig()
    with pytest.raises(TypeError, match="frozen"):
        first.origins["train.seed"] = Origin("default")


def test_values_alone_import_neither_torch_nor_sbi_nor_the_readers_of_sources():
    code = (
        "import sys; from sbi_ignite.settings import TrainConfig, resolve; resolve();"
        "print([m for m in ('torch', 'sbi', 'ignite', 'pydantic_settings') if m in sys.modules])"
    )
    root = Path(sbi_ignite.__file__).parents[1]  # found there, installed or not
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    assert done.stdout.strip() == "[]"
