"""Whatever the source, resolve() gives the same checked value and says where it came from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbi_ignite.exceptions import ArgumentError, SettingsError, WrongTypeError
from sbi_ignite.settings import (
    CheckpointConfig,
    EarlyStopping,
    LoggingConfig,
    LRSchedule,
    Origin,
    TrainConfig,
    resolve,
    valid_variables,
)

POSITIVE = st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False)
FRACTION = st.floats(min_value=1e-9, max_value=1 - 1e-9)
COUNT = st.integers(min_value=1, max_value=2**40)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=10)
KINDS = st.sampled_from(["constant", "plateau", "cosine", "one_cycle"])
SCHEDULES = st.builds(lambda kind, steps: {"kind": kind, "warmup_steps": steps}, KINDS, COUNT)
AVERAGES = st.builds(lambda factor: {"kind": "power", "factor": factor}, POSITIVE)
STAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "lr_factor": POSITIVE,
            "weight_decay": POSITIVE | st.just("best"),
            "patience": COUNT,
            "patience_steps": COUNT,
            "max_epochs": COUNT,
            "max_relative_length": POSITIVE,
            "restart": st.booleans(),
            "reset_optimizer": st.booleans(),
            "reset_average": st.booleans(),
        },
    ),
    max_size=3,
).map(lambda stages: [{**stage, "max_relative_length": None} for stage in stages[:1]] + stages[1:])

VALUES = {
    "batch_size": COUNT,
    "training_batch_size": COUNT,
    "learning_rate": POSITIVE,
    "max_epochs": COUNT,
    "max_num_epochs": COUNT,
    "validation_fraction": FRACTION,
    "clip_max_norm": st.none() | POSITIVE,
    "device": st.none() | st.sampled_from(["cpu", "cuda", "cuda:3", "mps"]),
    "optimizer": st.sampled_from(["adam", "adamw", "sgd"]),
    "weight_decay": POSITIVE,
    "lr_schedule": st.none() | KINDS | SCHEDULES,
    "ema_decay": st.none() | FRACTION,
    "averaging": st.none() | st.sampled_from(["ema", "power"]) | AVERAGES,
    "stages": STAGES,
    "recipe": st.sampled_from([None, "fast"]),
    "max_time": st.none() | st.integers(1, 10**6) | st.sampled_from(["01:30:00", "99:00:00.5"]),
    "seed": st.none() | st.integers(0, 2**63 - 1),
    "compile": st.sampled_from(["auto", "off", "trace", "inductor", "cuda_graph"]),
    "precision": st.sampled_from(["32", "bf16-mixed"]),
    "resume_training": st.booleans(),
    "retrain_from_scratch": st.booleans(),
    "discard_prior_samples": st.booleans(),
    "show_train_summary": st.booleans(),
    "dataloader_kwargs": st.none() | st.dictionaries(NAMES, st.integers() | st.booleans()),
    "shards": st.sampled_from(["same", "own", "alone"]),
    "process_timeout": st.integers(1, 10**6) | st.sampled_from(["00:01:30"]),
    "sbi_compat": st.booleans(),
}


def as_text(value: object) -> str:
    """Write a value as one would in a shell."""
    if isinstance(value, dict | list):
        return json.dumps(value)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def as_toml(value: object) -> str:
    """Write a value as one would in a file; TOML has no None, so the word stands for it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, str) or value is None:
        return json.dumps(as_text(value))
    return as_text(value)


@contextmanager
def said_outside(variables: dict[str, str], toml: str = "") -> Iterator[Path]:
    """Set variables and a settings file for the length of a block."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "settings.toml"
        path.write_text(toml, encoding="utf-8")
        with mock.patch.dict(os.environ, {**variables, "SBI_IGNITE_CONFIG": str(path)}):
            yield path


def own_name(name: str) -> str:
    return TrainConfig.aliases.get(name, name)


def test_the_strategies_above_cover_every_field_and_name():
    assert set(VALUES) == {*TrainConfig.model_fields, *TrainConfig.aliases}


@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", VALUES)
@given(data=st.data())
def test_every_source_gives_the_same_value_and_its_own_origin(name, data):
    value = data.draw(VALUES[name])
    field, variable = own_name(name), f"SBI_IGNITE_TRAIN__{name.upper()}"
    expected = getattr(TrainConfig(**{name: value}), field)

    from_config = resolve(train=TrainConfig(**{name: value}))
    from_keyword = resolve(keywords={name: value})
    with said_outside({variable: as_text(value)}):
        from_environment = resolve()
    with said_outside({}, f"[train]\n{name} = {as_toml(value)}\n") as path:
        from_file = resolve()

    found = {
        Origin("call", f"TrainConfig({field}=...)"): from_config,
        Origin("call", f"train({name}=...)"): from_keyword,
        Origin("environment", variable): from_environment,
        Origin("file", f"{path} [train]"): from_file,
    }
    for origin, resolved in found.items():
        assert getattr(resolved.train, field) == expected
        assert type(getattr(resolved.train, field)) is type(expected)
        assert resolved.origins[f"train.{field}"] == origin
        assert resolved.train.model_fields_set == {field}
        assert hash(resolved.train) == hash(from_config.train)


LAYERS = ["call", "environment", "file"]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["batch_size", "max_epochs", "seed", "clip_max_norm"]),
        st.dictionaries(st.sampled_from(LAYERS), st.integers(1, 1000), max_size=3),
    ),
    st.booleans(),
)
def test_each_field_comes_from_the_strongest_source_that_sets_it(said, by_keyword):
    call = {name: layers["call"] for name, layers in said.items() if "call" in layers}
    variables = {
        f"SBI_IGNITE_TRAIN__{name.upper()}": str(layers["environment"])
        for name, layers in said.items()
        if "environment" in layers
    }
    lines = [f"{name} = {layers['file']}" for name, layers in said.items() if "file" in layers]
    with said_outside(variables, "\n".join(["[train]", *lines])):
        resolved = resolve(keywords=call) if by_keyword else resolve(train=TrainConfig(**call))
    for name, info in TrainConfig.model_fields.items():
        layers = said.get(name, {})
        strongest = next((layer for layer in LAYERS if layer in layers), "default")
        assert resolved.origin(f"train.{name}").source == strongest
        assert getattr(resolved.train, name) == layers.get(strongest, info.default)


def test_none_that_was_passed_beats_the_environment(environment):
    environment(TRAIN__CLIP_MAX_NORM="3", TRAIN__SEED="4")
    resolved = resolve(train=TrainConfig(clip_max_norm=None))
    assert resolved.train.clip_max_norm is None
    assert resolved.train.seed == 4


def test_a_default_that_was_passed_beats_the_environment(environment):
    environment(TRAIN__BATCH_SIZE="100")
    assert resolve(train=TrainConfig(batch_size=200)).train.batch_size == 200


def test_nothing_said_gives_the_defaults_and_saves_and_logs_nothing():
    resolved = resolve()
    assert resolved.train == TrainConfig()
    assert resolved.early_stopping == (EarlyStopping.validation_loss(),)
    assert resolved.logging == ()
    assert resolved.checkpoint is None
    assert {origin.source for origin in resolved.origins.values()} == {"default"}


def test_another_default_stays_a_default_and_the_weakest(environment):
    changed = {"sbi_compat": True, "training_batch_size": 50}
    resolved = resolve(defaults=changed)
    assert (resolved.train.sbi_compat, resolved.train.batch_size) == (True, 50)
    assert resolved.origins["train.sbi_compat"] == Origin("default")
    assert resolved.train.model_fields_set == set()
    environment(TRAIN__SBI_COMPAT="false")
    resolved = resolve(defaults=changed)
    assert resolved.train.sbi_compat is False
    assert resolved.origins["train.sbi_compat"].where == "SBI_IGNITE_TRAIN__SBI_COMPAT"


def test_a_keyword_beside_a_config_fills_what_the_config_left_unset():
    resolved = resolve(train=TrainConfig(batch_size=3), keywords={"max_num_epochs": 7})
    assert resolved.train == TrainConfig(batch_size=3, max_epochs=7)
    assert resolved.origins["train.max_epochs"].where == "train(max_num_epochs=...)"


def test_a_keyword_for_a_field_that_the_config_set_is_refused_by_both_names():
    with pytest.raises(TypeError) as caught:
        resolve(train=TrainConfig(batch_size=3), keywords={"training_batch_size": 3})
    assert isinstance(caught.value, ArgumentError)
    assert "TrainConfig(batch_size=...)" in str(caught.value)
    assert "train(training_batch_size=...)" in str(caught.value)


def test_two_keywords_for_one_field_are_refused_by_both_names():
    with pytest.raises(ArgumentError, match=r"train\(max_epochs=.*train\(max_num_epochs="):
        resolve(keywords={"max_epochs": 3, "max_num_epochs": 3})


def test_a_keyword_of_the_wrong_type_is_a_type_error_and_a_settings_error():
    with pytest.raises(WrongTypeError, match=r"expected an integer, got '3' from the call train\("):
        resolve(keywords={"training_batch_size": "3"})
    with pytest.raises(SettingsError) as caught:
        resolve(keywords={"training_batch_size": -3})
    assert not isinstance(caught.value, TypeError)


def test_an_unknown_keyword_is_refused_with_the_closest_match():
    with pytest.raises(
        ArgumentError, match=r"'training_batchsize' \(did you mean 'training_batch_"
    ):
        resolve(keywords={"training_batchsize": 3})


@pytest.mark.parametrize(
    "arguments",
    [
        {"train": 100},
        {"train": {"batch_size": 3}},
        {"early_stopping": "validation_loss"},
        {"early_stopping": [EarlyStopping.never(), 3]},
        {"early_stopping": EarlyStopping},
        {"checkpoint": 3},
        {"stop_after_epochs": "20"},
    ],
)
def test_an_argument_of_the_wrong_type_is_a_type_error_that_shows_it(arguments):
    with pytest.raises(ArgumentError, match=r"expected .*got"):
        resolve(**arguments)


# --- the environment


@pytest.mark.parametrize("text", ["true", "True", "1", "yes", "on"])
def test_the_environment_says_yes_in_the_usual_words(environment, text):
    environment(TRAIN__SBI_COMPAT=text)
    assert resolve().train.sbi_compat is True


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("MAX_TIME", "3600", "max_time", timedelta(hours=1)),
        ("MAX_TIME", " 01:00:00 ", "max_time", timedelta(hours=1)),
        ("CLIP_MAX_NORM", "None", "clip_max_norm", None),
        ("SEED", " 7 ", "seed", 7),
        ("DEVICE", "null", "device", None),
        ("LR_SCHEDULE", "cosine", "lr_schedule", "cosine"),
        ("DATALOADER_KWARGS", '{"a": [1, "x"]}', "dataloader_kwargs", {"a": [1, "x"]}),
    ],
)
def test_texts_are_read_as_people_write_them(environment, variable, text, field, value):
    environment(**{f"TRAIN__{variable}": text})
    assert getattr(resolve().train, field) == value


def test_parts_of_a_field_can_be_variables_of_their_own(environment):
    environment(
        TRAIN__LR_SCHEDULE__KIND="plateau",
        TRAIN__LR_SCHEDULE__FACTOR="0.3",
        TRAIN__DATALOADER_KWARGS__NUM_WORKERS="2",
    )
    resolved = resolve()
    assert resolved.train.lr_schedule == LRSchedule("plateau", factor=0.3)
    assert resolved.train.dataloader_kwargs == {"num_workers": 2}
    assert "LR_SCHEDULE__FACTOR" in resolved.origins["train.lr_schedule"].where


def test_lower_case_variables_count_too(monkeypatch):
    monkeypatch.setenv("sbi_ignite_train__batch_size", "7")
    resolved = resolve()
    assert resolved.train.batch_size == 7
    assert resolved.origins["train.batch_size"].where == "sbi_ignite_train__batch_size"


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"TRAIN__BATCH_SIZE": "1", "TRAIN__TRAINING_BATCH_SIZE": "1"}, "TRAINING_BATCH_SIZE"),
        ({"TRAIN__SEED": "1", "train__seed": "1"}, "SBI_IGNITE_train__seed"),
        ({"TRAIN__LR_SCHEDULE": "cosine", "TRAIN__LR_SCHEDULE__FACTOR": "0.3"}, "__FACTOR"),
    ],
)
def test_one_field_set_by_two_variables_is_refused_by_both_names(environment, variables, named):
    environment(**variables)
    with pytest.raises(SettingsError, match=f"given twice.*{named}"):
        resolve()


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("TRAIN__BATCHSIZE", "SBI_IGNITE_TRAIN__BATCH_SIZE"),
        ("TRAIN_BATCH_SIZE", "SBI_IGNITE_TRAIN__BATCH_SIZE"),
        ("TRIAN__BATCH_SIZE", "SBI_IGNITE_TRAIN__BATCH_SIZE"),
        ("LOGGING__BACKENT", "SBI_IGNITE_LOGGING__BACKEND"),
        ("CHECKPOINT__DIR", "SBI_IGNITE_CHECKPOINT__DIRECTORY"),
        ("CHECKPOINT", "SBI_IGNITE_CHECKPOINT__RESUME"),
        ("TRAIN__LR_SCHEDULE__FACTR", "SBI_IGNITE_TRAIN__LR_SCHEDULE__FACTOR"),
        ("CONFIG__FILE", "SBI_IGNITE_CONFIG"),
        ("TRAIN__SEED__DEEPER", "SBI_IGNITE_TRAIN__SEED"),
        ("TRAIN__STOP_AFTER_EPOCHS", "SBI_IGNITE_EARLY_STOPPING__PATIENCE"),
        ("PATIENCE", "SBI_IGNITE_EARLY_STOPPING__PATIENCE"),
        ("TRAIN__DIRECTORY", "SBI_IGNITE_CHECKPOINT__DIRECTORY"),
    ],
)
def test_a_misspelt_variable_gets_the_closest_match_and_the_valid_ones(
    environment, variable, meant
):
    environment(**{variable: "swordfish"})
    with pytest.raises(SettingsError) as caught:
        resolve()
    text = str(caught.value)
    assert f"unknown environment variable SBI_IGNITE_{variable} " in text
    assert f"did you mean '{meant}'?" in text
    assert all(name in text for name in valid_variables())
    assert "swordfish" not in text


def test_every_valid_variable_is_known(environment):
    for name in valid_variables():
        environment(**{name.removeprefix("SBI_IGNITE_"): ""})
        with pytest.raises(SettingsError) as caught:  # the empty text is no value for any of them
            resolve()
        assert "unknown" not in str(caught.value)
        del os.environ[name]


@pytest.mark.parametrize(
    ("variable", "text", "expectation"),
    [
        ("TRAIN__BATCH_SIZE", "many", "integer"),
        ("TRAIN__BATCH_SIZE", "1.5", "integer"),
        ("TRAIN__BATCH_SIZE", "none", "integer"),
        ("TRAIN__SEED", "", "integer"),
        ("TRAIN__LEARNING_RATE", "nan", "finite"),
        ("TRAIN__LEARNING_RATE", "-1", "greater than 0"),
        ("TRAIN__OPTIMIZER", "torch.optim.SGD", "Python only"),
        ("TRAIN__LR_SCHEDULE", "my.schedule", "Python only"),
        ("TRAIN__MAX_TIME", "soon", "HH:MM:SS"),
        ("TRAIN__MAX_TIME", "inf", "HH:MM:SS"),
        ("TRAIN__DATALOADER_KWARGS", "workers", "mapping"),
        ("EARLY_STOPPING__PATIENCE", "0", "greater than or equal to 1"),
        ("LOGGING__BACKEND", "wandbb", "'wandb'"),
        ("CHECKPOINT__DIRECTORY", "", "not empty"),
        ("CHECKPOINT__KEEP_LAST", "few", "integer"),
    ],
)
def test_a_wrong_text_names_its_variable_even_where_the_call_overrides_it(
    environment, variable, text, expectation
):
    environment(**{variable: text})
    group, field = variable.lower().split("__")
    owner = {"train": "TrainConfig", "logging": "LoggingConfig", "checkpoint": "CheckpointConfig"}
    for arguments in ({}, {"train": TrainConfig(batch_size=3, seed=3, optimizer="sgd")}):
        with pytest.raises(SettingsError) as caught:
            resolve(**arguments)
        message = str(caught.value)
        assert message.startswith(f"{owner.get(group, 'EarlyStopping')}.{field}: expected ")
        assert expectation in message
        assert f"got {text!r} from the environment variable SBI_IGNITE_{variable}" in message


def test_a_wrong_part_of_a_schedule_names_its_variable(environment):
    environment(TRAIN__LR_SCHEDULE__KIND="cosine", TRAIN__LR_SCHEDULE__FACTOR="2")
    with pytest.raises(SettingsError, match=r"LRSchedule.factor: .*SBI_IGNITE_TRAIN__LR_SCHEDULE"):
        resolve()


@pytest.mark.parametrize(("variable", "text"), [("RULE", "loss < 1"), ("KIND", "when")])
def test_a_rule_cannot_be_said_in_the_environment_and_the_error_says_so(
    environment, variable, text
):
    environment(**{f"EARLY_STOPPING__{variable}": text})
    with pytest.raises(SettingsError, match=r"passed from Python only, as EarlyStopping\.when"):
        resolve()


# --- the file


def test_a_file_may_use_its_own_types(file):
    file(
        """
        [train]
        batch_size = 50
        learning_rate = "1e-3"
        max_time = 01:30:00
        precision = 32
        clip_max_norm = "none"
        [train.lr_schedule]
        kind = "plateau"
        factor = 0.3
        [train.dataloader_kwargs]
        label = "7"
        [logging]
        backend = "jsonl"
        run_name = 7
        tags = ["a", "b"]
        """
    )
    resolved = resolve()
    assert resolved.train == TrainConfig(
        batch_size=50,
        learning_rate=1e-3,
        max_time="01:30:00",
        clip_max_norm=None,
        lr_schedule=LRSchedule("plateau", factor=0.3),
        dataloader_kwargs={"label": "7"},
    )
    assert resolved.train.dataloader_kwargs == {"label": "7"}
    assert resolved.logging == (LoggingConfig("jsonl", run_name="7", tags=("a", "b")),)


def test_an_empty_file_says_nothing(file):
    file("")
    assert resolve().train == TrainConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trian]\nseed = 1", r"unknown table \[trian\].*did you mean 'train'"),
        ("sede = 1", r"unknown table \[sede\].*Valid tables: train, early_stopping, logging"),
        ("seed = 1", r"key 'seed' .* must stand in a table: write \[train\] above it"),
        ("log_dir = 'a'", r"must stand in a table: write \[logging\] above it"),
        ("train = 1", r"'train' .* must be a table"),
        ("[train]\nbatchsize = 1", r"unknown key 'batchsize'.*did you mean 'batch_size'.*Valid"),
        ("[train]\nbatch_size = 0", r"TrainConfig.batch_size: .*got 0 from the file .*\[train\]"),
        ("[train]\nbatch_size = true", r"expected an integer, got True from the file"),
        ("[train]\nbatch_size = 1\ntraining_batch_size = 1", r"batch_size is given twice"),
        ("[train.lr_schedule]\nkind = 'cosine'\nfactr = 1", r"'factr'.*from the file"),
        ("[early_stopping]\nrule = 'x'", r"'rule'.*from Python only"),
        ("[train\n", r"is not valid TOML"),
    ],
)
def test_a_wrong_file_is_named_with_its_mistake(file, text, message):
    path = file(text)
    with pytest.raises(SettingsError, match=message) as caught:
        resolve()
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_text_is_named(file):
    path = file("")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="not valid TOML"):
        resolve()


@pytest.mark.parametrize("name", ["missing.toml", ".", ""])
def test_a_file_that_is_not_there_is_named_with_its_variable(environment, tmp_path, name):
    path = str(tmp_path / name) if name else ""
    environment(CONFIG=path)
    with pytest.raises(SettingsError, match="SBI_IGNITE_CONFIG names does not exist") as caught:
        resolve()
    assert repr(path) in str(caught.value)


# --- early stopping


def rules(**arguments: object) -> tuple[EarlyStopping, ...]:
    return resolve(**arguments).early_stopping


def test_the_rule_of_the_call_is_the_only_one(environment):
    environment(EARLY_STOPPING__PATIENCE="3")
    assert rules(early_stopping=EarlyStopping.never()) == (EarlyStopping.never(),)
    several = [EarlyStopping.lr_threshold(1e-5), EarlyStopping.validation_loss(5)]
    assert rules(early_stopping=several) == tuple(several)
    assert rules(early_stopping=[]) == ()


def test_patience_comes_from_the_call_then_the_environment_then_the_file(environment, file):
    file("[early_stopping]\npatience = 3")
    assert rules() == (EarlyStopping.validation_loss(3),)
    environment(EARLY_STOPPING__PATIENCE="4")
    assert rules() == (EarlyStopping.validation_loss(4),)
    assert rules(stop_after_epochs=5) == (EarlyStopping.validation_loss(5),)
    origins = resolve(stop_after_epochs=5).origins
    assert origins["early_stopping.patience"] == Origin("call", "train(stop_after_epochs=...)")
    assert origins["early_stopping.kind"] == Origin("default")


def test_the_file_about_another_rule_than_the_environment_is_left_out(environment, file):
    file('[early_stopping]\nkind = "lr_threshold"\nmin_lr = 1e-3')
    environment(EARLY_STOPPING__KIND="validation_loss", EARLY_STOPPING__PATIENCE="4")
    assert rules() == (EarlyStopping.validation_loss(4),)


SBI = EarlyStopping.two_standard_deviations(30)


@pytest.mark.parametrize(
    ("variables", "rule"),
    [
        ({}, SBI),
        ({"PATIENCE": "5"}, EarlyStopping.two_standard_deviations(5)),
        ({"MIN_DELTA": "0.1"}, EarlyStopping.validation_loss(30, 0.1)),
        ({"MIN_DELTA": "0.1", "PATIENCE": "5"}, EarlyStopping.validation_loss(5, 0.1)),
        ({"MIN_LR": "1e-4"}, EarlyStopping.lr_threshold(1e-4)),
        ({"KIND": "validation_loss"}, EarlyStopping.validation_loss(30)),
        ({"KIND": "never"}, EarlyStopping.never()),
    ],
)
def test_the_environment_changes_the_default_rule_as_little_as_it_says(
    environment, variables, rule
):
    environment(**{f"EARLY_STOPPING__{name}": text for name, text in variables.items()})
    assert rules(default_early_stopping=SBI) == (rule,)


def test_a_kind_from_outside_wins_over_the_patience_of_an_unchanged_script(environment):
    environment(EARLY_STOPPING__KIND="never")
    assert rules(stop_after_epochs=20) == (EarlyStopping.never(),)


def test_patience_makes_a_rule_where_the_default_has_none():
    assert rules(stop_after_epochs=4, default_early_stopping=EarlyStopping.never()) == (
        EarlyStopping.validation_loss(4),
    )


@pytest.mark.parametrize(
    ("variables", "field"),
    [
        ({"PATIENCE": "5", "MIN_LR": "1e-4"}, "min_lr"),
        ({"KIND": "lr_threshold", "PATIENCE": "5"}, "patience"),
        ({"KIND": "two_standard_deviations", "MIN_DELTA": "1"}, "min_delta"),
    ],
)
def test_variables_that_do_not_fit_each_other_are_refused_by_name(environment, variables, field):
    environment(**{f"EARLY_STOPPING__{name}": text for name, text in variables.items()})
    variable = f"SBI_IGNITE_EARLY_STOPPING__{field.upper()}"
    with pytest.raises(SettingsError, match=rf"EarlyStopping.{field}: kind .*{variable}"):
        resolve()


def test_stop_after_epochs_joins_rules_without_patience():
    found = resolve(
        early_stopping=EarlyStopping.lr_threshold(), stop_after_epochs=5, default_early_stopping=SBI
    )
    assert found.early_stopping == (
        EarlyStopping.lr_threshold(),
        EarlyStopping.two_standard_deviations(5),
    )
    assert found.origins["early_stopping.0.min_lr"].where == "EarlyStopping(min_lr=...)"
    assert found.origins["early_stopping.1.patience"].where == "train(stop_after_epochs=...)"


@pytest.mark.parametrize("rule", [EarlyStopping.validation_loss(3), SBI])
def test_two_patiences_in_one_call_are_refused_by_both_names(rule):
    with pytest.raises(ArgumentError, match=rf"stop_after_epochs.*EarlyStopping\.{rule.kind}\("):
        resolve(early_stopping=[EarlyStopping.never(), rule], stop_after_epochs=3)


# --- logging


def test_an_unchanged_script_is_logged_by_variables_alone(environment):
    environment(LOGGING__BACKEND="mlflow", LOGGING__EXPERIMENT_NAME="x", LOGGING__TAGS="a, b")
    resolved = resolve()
    assert resolved.logging == (LoggingConfig("mlflow", experiment_name="x", tags=("a", "b")),)
    assert resolved.origins["logging.backend"].source == "environment"
    assert resolved.origins["logging.run_name"] == Origin("default")


def test_a_field_of_another_backend_is_refused_with_the_backend_that_takes_it(environment):
    environment(LOGGING__PROJECT="x")
    with pytest.raises(
        SettingsError, match=r"'stdout' .*SBI_IGNITE_LOGGING__PROJECT.*For project, name backend 'w"
    ):
        resolve()


def test_the_backend_none_is_a_backend(environment):
    environment(LOGGING__BACKEND="none")
    assert resolve().logging == (LoggingConfig("none"),)


def test_tags_may_have_values(environment):
    environment(LOGGING__BACKEND="mlflow", LOGGING__TAGS='{"stage": "test"}')
    assert resolve().logging == (LoggingConfig("mlflow", tags={"stage": "test"}),)


def test_a_field_from_outside_that_the_backend_does_not_take_names_its_variable(environment):
    environment(LOGGING__BACKEND="jsonl", LOGGING__PROJECT="p")
    with pytest.raises(
        SettingsError, match=r"backend 'jsonl'.*'p' from .*SBI_IGNITE_LOGGING__PROJ"
    ):
        resolve()


def test_what_the_call_left_unset_is_filled_for_the_same_backend_only(environment):
    environment(LOGGING__BACKEND="wandb", LOGGING__PROJECT="p", LOGGING__RUN_NAME="outside")
    same, text, other = resolve(
        logging=[LoggingConfig("wandb", run_name="inside"), "wandb", LoggingConfig("jsonl")]
    ).logging
    assert same == LoggingConfig("wandb", run_name="inside", project="p")
    assert text == LoggingConfig("wandb", run_name="outside", project="p")
    assert other == LoggingConfig("jsonl")


def test_fields_without_a_backend_reach_the_loggers_that_take_them(environment):
    environment(LOGGING__PROJECT="p")
    assert resolve(logging=["wandb", "stdout"]).logging == (
        LoggingConfig("wandb", project="p"),
        LoggingConfig("stdout"),
    )


def test_the_file_about_another_backend_than_the_environment_is_left_out(environment, file):
    file('[logging]\nbackend = "wandb"\nproject = "p"')
    environment(LOGGING__BACKEND="jsonl")
    assert resolve().logging == (LoggingConfig("jsonl"),)


def test_a_field_of_the_call_that_the_backend_from_outside_does_not_take_is_refused(environment):
    environment(LOGGING__BACKEND="wandb")
    assert resolve(logging=LoggingConfig(run_name="r")).logging == (
        LoggingConfig("wandb", run_name="r"),
    )


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match=r"'wandb'.*got 'wandbb' from the call train\(logging"):
        resolve(logging="wandbb")


def test_loggers_of_other_make_pass_untouched_and_an_empty_list_means_none(environment):
    environment(LOGGING__BACKEND="wandb")
    foreign = object()
    resolved = resolve(logging=[foreign, "memory"])
    assert resolved.logging[0] is foreign
    assert resolved.origins["logging.0.logger"].source == "call"
    assert resolved.origins["logging.1.backend"].source == "call"
    assert resolve(logging=[]).logging == ()


# --- checkpoint


def test_checkpoint_false_saves_nothing_whatever_the_environment_says(environment):
    environment(CHECKPOINT__DIRECTORY="runs/a")
    assert resolve(checkpoint=False).checkpoint is None
    assert resolve().checkpoint == CheckpointConfig("runs/a")


def test_an_unchanged_script_is_saved_by_variables_alone(environment):
    environment(CHECKPOINT__DIRECTORY="runs/a", CHECKPOINT__KEEP_LAST="3")
    resolved = resolve()
    assert resolved.checkpoint == CheckpointConfig("runs/a", keep_last=3)
    assert resolved.origins["checkpoint.directory"].where == "SBI_IGNITE_CHECKPOINT__DIRECTORY"


@pytest.mark.parametrize(
    "asked", ["runs/b", Path("runs/b"), CheckpointConfig("runs/b")], ids=lambda a: type(a).__name__
)
def test_the_directory_of_the_call_wins_and_the_rest_is_filled(environment, asked):
    environment(CHECKPOINT__DIRECTORY="runs/a", CHECKPOINT__EVERY_SECONDS="60")
    assert resolve(checkpoint=asked).checkpoint == CheckpointConfig("runs/b", every_seconds=60)


def test_nothing_is_saved_without_a_directory():
    assert resolve().checkpoint is None


@pytest.mark.parametrize(
    ("field", "text"),
    [("RESUME", "must"), ("KEEP_LAST", "3"), ("EVERY_EPOCHS", "2"), ("EVERY_SECONDS", "60")],
)
def test_settings_of_checkpoints_without_a_directory_are_refused(environment, file, field, text):
    """They would do nothing; the error names the variable or the file, and what is missing."""
    environment(**{f"CHECKPOINT__{field}": text})
    with pytest.raises(SettingsError, match=rf"directory.*{text}.*SBI_IGNITE_CHECKPOINT__{field}"):
        resolve()
    assert resolve(checkpoint=False).checkpoint is None
    found = resolve(checkpoint="runs/a").checkpoint
    assert found is not None
    assert str(getattr(found, field.lower())).startswith(text)


def test_a_file_about_checkpoints_without_a_directory_is_refused(file):
    file("[checkpoint]\nkeep_last = 3")
    with pytest.raises(SettingsError, match=r"expected a directory.*keep_last=3 from the file"):
        resolve()


# --- nested settings


NESTED = [
    (
        {"LR_SCHEDULE__WARMUP_STEPS": "5"},
        r"LRSchedule.kind: expected a value.*got only warmup_steps from the environment variable "
        r"SBI_IGNITE_TRAIN__LR_SCHEDULE__WARMUP_STEPS. Set SBI_IGNITE_TRAIN__LR_SCHEDULE__KIND too",
    ),
    (
        {"AVERAGING__DECAY": "0.5"},
        r"WeightAveraging.kind.*SBI_IGNITE_TRAIN__AVERAGING__DECAY. Set .*TRAIN__AVERAGING__KIND",
    ),
    (
        {"LR_SCHEDULE": '{"warmup_steps": 5}'},
        r"LRSchedule.kind.*variable SBI_IGNITE_TRAIN__LR_SCHEDULE. Name kind beside it",
    ),
    (
        {"LR_SCHEDULE__KIND": "plateau", "LR_SCHEDULE__FACTOR": "2"},
        r"LRSchedule.factor: expected .*'2' from the environment variable "
        r"SBI_IGNITE_TRAIN__LR_SCHEDULE__FACTOR$",
    ),
    (
        {"LR_SCHEDULE__KIND": "linear", "LR_SCHEDULE__WARMUP_STEPS": "5"},
        r"LRSchedule.kind: .*'linear' from the environment variable "
        r"SBI_IGNITE_TRAIN__LR_SCHEDULE__KIND$",
    ),
    (
        {"LR_SCHEDULE__KIND": "constant", "LR_SCHEDULE__MIN_LR": "0.1"},
        r"kind 'constant' does not take this field.*LR_SCHEDULE__MIN_LR. It takes",
    ),
    (
        {"STAGES": '[{"patiance": 3}]'},
        r"Stage has no field 'patiance' .*SBI_IGNITE_TRAIN__STAGES.*did you mean 'patience'",
    ),
]


@pytest.mark.parametrize(("variables", "message"), NESTED)
def test_a_nested_variable_that_is_wrong_is_named_with_what_to_do(environment, variables, message):
    environment(**{f"TRAIN__{name}": text for name, text in variables.items()})
    with pytest.raises(SettingsError, match=message):
        resolve()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[train.lr_schedule]\nwarmup_steps = 5",
            r"LRSchedule.kind: expected a value.*warmup_steps from the file .*Name kind beside it",
        ),
        (
            "[train.lr_schedule]\nkind = 'cosine'\nwarmup_step = 5",
            r"no field 'warmup_step' .*from the file .*\[train\].*did you mean 'warmup_steps'",
        ),
        ("[train.averaging]\nkind = 'ema'\ndecay = 2", r"WeightAveraging.decay.*2 from the file"),
    ],
)
def test_a_nested_table_that_is_wrong_is_named_with_what_to_do(file, text, message):
    file(text)
    with pytest.raises(SettingsError, match=message):
        resolve()
