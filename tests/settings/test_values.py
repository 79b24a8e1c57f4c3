"""Settings are frozen, checked at birth, printable and hashable by content."""

from __future__ import annotations

import copy
import inspect
import pickle
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sbi_ignite.exceptions import ArgumentError, SettingsError
from sbi_ignite.handlers.stopping import make_rule
from sbi_ignite.settings import (
    CheckpointConfig,
    EarlyStopping,
    LoggingConfig,
    LRSchedule,
    Settings,
    Stage,
    TrainConfig,
    WeightAveraging,
)

CLASSES = [
    TrainConfig,
    LRSchedule,
    WeightAveraging,
    Stage,
    EarlyStopping,
    LoggingConfig,
    CheckpointConfig,
]
EXAMPLES = [
    TrainConfig(),
    TrainConfig(optimizer=torch.optim.SGD, dataloader_kwargs={"nested": {"a": [1]}}, max_time=90),
    TrainConfig(averaging=WeightAveraging("power"), stages=[Stage(lr_factor=0.3), Stage()]),
    LRSchedule("cosine", warmup_steps=10),
    LRSchedule("plateau", warmup_steps=10, warmup_start=0.25),
    WeightAveraging("ema", decay=0.9),
    Stage(weight_decay="best"),
    EarlyStopping.when(bool),
    EarlyStopping.never(),
    LoggingConfig("mlflow", tags={"stage": "test"}),
    CheckpointConfig("runs/a"),
]

DEFAULTS = {
    "batch_size": 200,
    "learning_rate": 5e-4,
    "max_epochs": 2**31 - 1,
    "validation_fraction": 0.1,
    "clip_max_norm": 5.0,
    "device": None,
    "optimizer": "adam",
    "weight_decay": 0.0,
    "lr_schedule": None,
    "ema_decay": None,
    "averaging": None,
    "stages": (),
    "recipe": None,
    "max_time": None,
    "seed": None,
    "compile": "auto",
    "precision": "32",
    "resume_training": False,
    "retrain_from_scratch": False,
    "discard_prior_samples": False,
    "show_train_summary": False,
    "dataloader_kwargs": None,
    "shards": "same",
    "process_timeout": timedelta(seconds=60),
    "sbi_compat": False,
}


def test_a_train_config_has_the_promised_fields_and_defaults():
    assert dict(TrainConfig()) == DEFAULTS


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_is_described_in_one_sentence(cls):
    for name, info in cls.model_fields.items():
        assert info.description, name
        assert info.description.endswith("."), name
        assert info.description.count(". ") == 0, name


@pytest.mark.parametrize(
    ("accepted", "meant"),
    [
        ({"batch_size": np.int64(7)}, 7),
        ({"training_batch_size": 7}, 7),
        ({"max_num_epochs": 7}, 7),
        ({"learning_rate": 1}, 1.0),
        ({"learning_rate": np.float32(0.5)}, 0.5),
        ({"learning_rate": Fraction(1, 4)}, 0.25),
        ({"clip_max_norm": None}, None),
        ({"device": "cuda:1"}, "cuda:1"),
        ({"device": torch.device("cuda", 1)}, "cuda:1"),
        ({"optimizer": torch.optim.SGD}, torch.optim.SGD),
        ({"lr_schedule": "one_cycle"}, "one_cycle"),
        ({"lr_schedule": LRSchedule("plateau")}, LRSchedule("plateau")),
        ({"lr_schedule": {"kind": "plateau", "factor": 0.3}}, LRSchedule("plateau", factor=0.3)),
        ({"max_time": 90}, timedelta(seconds=90)),
        ({"max_time": "36:00:01.5"}, timedelta(hours=36, seconds=1.5)),
        ({"max_time": timedelta(hours=2)}, timedelta(hours=2)),
        ({"precision": 32}, "32"),
        ({"sbi_compat": np.bool_(True)}, True),
        ({"dataloader_kwargs": {"num_workers": 2}}, {"num_workers": 2}),
    ],
)
def test_a_value_is_accepted_in_every_form_that_says_it(accepted, meant):
    (name,) = accepted
    value = getattr(TrainConfig(**accepted), TrainConfig.aliases.get(name, name))
    assert value == meant
    assert type(value) is type(meant) or isinstance(value, dict)


WRONG = [
    *((name, "100") for name in ("batch_size", "max_epochs", "seed", "learning_rate", "ema_decay")),
    *((name, True) for name in ("batch_size", "max_epochs", "seed", "learning_rate", "max_time")),
    *((name, 1.5) for name in ("batch_size", "seed", "validation_fraction", "device")),
    *((name, 0) for name in ("batch_size", "max_epochs", "learning_rate", "clip_max_norm")),
    *((name, float("nan")) for name in ("learning_rate", "weight_decay", "max_time")),
    *((name, float("inf")) for name in ("learning_rate", "clip_max_norm", "max_time")),
    *((name, None) for name in ("batch_size", "learning_rate", "optimizer", "sbi_compat")),
    *((name, 1) for name in ("sbi_compat", "resume_training", "dataloader_kwargs", "lr_schedule")),
    *((name, "none") for name in ("clip_max_norm", "device", "lr_schedule", "max_time")),
    *((name, 1.0) for name in ("validation_fraction", "ema_decay")),
    ("seed", -1),
    ("seed", 2**64),
    ("learning_rate", 10**400),
    ("weight_decay", -0.1),
    ("device", "cudaa"),
    ("device", ""),
    ("optimizer", "sdg"),
    ("optimizer", torch.optim.SGD([torch.zeros(1)], lr=0.1)),
    ("lr_schedule", "cosin"),
    ("lr_schedule", {1: 2}),
    ("max_time", "1:2"),
    ("max_time", "3600"),
    ("max_time", timedelta(0)),
    ("max_time", 10**400),
    ("compile", "on"),
    ("precision", "16"),
    ("dataloader_kwargs", {1: 2}),
    ("dataloader_kwargs", "{}"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_refused_with_field_expectation_value_and_origin(name, value):
    with pytest.raises(SettingsError) as caught:
        TrainConfig(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"TrainConfig.{name}: expected ")
    assert f"from the call TrainConfig({name}=...)" in text
    assert ", got " in text
    assert "pydantic" not in text
    assert "http" not in text


def test_an_error_shows_the_value_that_arrived():
    with pytest.raises(SettingsError, match=r"expected an integer, got '100' from"):
        TrainConfig(batch_size="100")


def test_an_error_names_the_name_that_was_used():
    with pytest.raises(SettingsError, match=r"TrainConfig\(training_batch_size=\.\.\.\)"):
        TrainConfig(training_batch_size="100")


def test_an_error_is_not_drowned_by_a_long_value():
    with pytest.raises(SettingsError) as caught:
        TrainConfig(batch_size=list(range(10_000)))
    assert len(str(caught.value)) < 300


def test_a_value_that_cannot_be_shown_still_gets_its_error():
    class Shy:
        def __repr__(self):
            raise RuntimeError

    with pytest.raises(SettingsError, match=r"batch_size: expected an integer, got <Shy> from"):
        TrainConfig(batch_size=Shy())


def test_all_problems_are_reported_at_once():
    with pytest.raises(SettingsError) as caught:
        TrainConfig(batch_size=0, learning_rate="fast", sead=1)
    assert all(name in str(caught.value) for name in ("batch_size", "learning_rate", "'sead'"))


@pytest.mark.parametrize("value", EXAMPLES, ids=repr)
def test_a_misspelt_field_gets_the_closest_match_and_the_valid_names(value):
    meant = list(type(value).model_fields)[1]
    with pytest.raises(SettingsError) as caught:
        type(value)(**{f"{meant}x": 3})
    assert f"no field '{meant}x'" in str(caught.value)
    assert f"did you mean '{meant}'?" in str(caught.value)
    assert all(name in str(caught.value) for name in type(value).model_fields)


def test_a_misspelt_field_inside_a_schedule_is_named_once():
    with pytest.raises(SettingsError, match=r"^TrainConfig.lr_schedule: LRSchedule has no field"):
        TrainConfig(lr_schedule={"kind": "cosine", "factr": 0.3})


@pytest.mark.parametrize(
    ("one", "other"), [("batch_size", "training_batch_size"), ("max_num_epochs", "max_epochs")]
)
def test_both_names_of_one_field_are_refused_by_name(one, other):
    with pytest.raises(SettingsError, match=f"'{one}'.*'{other}'"):
        TrainConfig(**{one: 100, other: 100})


def test_a_field_without_default_must_be_given():
    with pytest.raises(SettingsError, match=r"CheckpointConfig.directory: expected a value"):
        CheckpointConfig(keep_last=1)


def test_a_train_config_takes_nothing_by_position():
    with pytest.raises(ArgumentError, match="by position"):
        TrainConfig(100)


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [(CheckpointConfig, "directory", "a"), (LoggingConfig, "backend", "jsonl")],
)
def test_the_leading_field_may_be_passed_by_position_but_not_twice(cls, name, value):
    assert cls(value) == cls(**{name: value})
    with pytest.raises(ArgumentError, match=f"{name} is given twice"):
        cls(value, **{name: value})


@pytest.mark.parametrize("directory", ["", "  ", 3, None, b"runs", "~no-such-user-here/runs"])
def test_what_is_no_path_is_refused_as_a_directory(directory):
    with pytest.raises(SettingsError, match=r"CheckpointConfig.directory: expected a path"):
        CheckpointConfig(directory)


def test_a_path_is_a_path_however_it_was_said():
    assert CheckpointConfig("runs/a") == CheckpointConfig(Path("runs/a"))
    assert CheckpointConfig("~/a").directory == Path.home() / "a"


@pytest.mark.parametrize("value", EXAMPLES, ids=repr)
def test_settings_are_frozen(value):
    name = next(iter(type(value).model_fields))
    before = getattr(value, name)
    with pytest.raises(SettingsError, match="frozen"):
        setattr(value, name, before)
    with pytest.raises(SettingsError, match="frozen"):
        delattr(value, name)
    assert getattr(value, name) == before


def test_the_mapping_in_a_config_neither_changes_nor_follows_its_origin():
    original = {"num_workers": 1}
    config = TrainConfig(dataloader_kwargs=original)
    original["num_workers"] = 2
    assert config.dataloader_kwargs == {"num_workers": 1}
    changes = [
        lambda kwargs: kwargs.update(num_workers=3),
        lambda kwargs: kwargs.__setitem__("num_workers", 3),
        lambda kwargs: kwargs.pop("num_workers"),
        lambda kwargs: kwargs.__ior__({"num_workers": 3}),
    ]
    for change in changes:
        with pytest.raises(TypeError, match="frozen"):
            change(config.dataloader_kwargs)


@pytest.mark.parametrize("value", EXAMPLES, ids=repr)
def test_copies_are_equal_and_hash_equal(value):
    copies = [
        pickle.loads(pickle.dumps(value)),
        copy.copy(value),
        copy.deepcopy(value),
        value.model_copy(),
        type(value).model_validate(value),
        type(value)(**{name: getattr(value, name) for name in value.model_fields_set}),
    ]
    for copied in copies:
        assert copied == value
        assert hash(copied) == hash(value)
        assert copied.model_fields_set == value.model_fields_set


@given(st.dictionaries(st.text(min_size=1), st.lists(st.integers()) | st.text() | st.none()))
def test_equal_content_hashes_equal_in_any_order(kwargs):
    backwards = dict(reversed(kwargs.items()))
    one, other = TrainConfig(dataloader_kwargs=kwargs), TrainConfig(dataloader_kwargs=backwards)
    assert one == other
    assert hash(one) == hash(other)


def test_different_content_makes_different_members_of_a_set():
    values = [TrainConfig(batch_size=n, dataloader_kwargs={"n": [n]}) for n in (1, 2, 3, 1)]
    assert len(set(values)) == 3
    assert len({hash(value) for value in values}) == 3


def test_the_default_is_equal_whether_said_or_not_but_known_as_said():
    said, unsaid = TrainConfig(clip_max_norm=5.0), TrainConfig()
    assert said == unsaid
    assert hash(said) == hash(unsaid)
    assert said.model_fields_set == {"clip_max_norm"}
    assert unsaid.model_fields_set == set()


def test_a_changed_copy_is_checked_and_remembers_what_was_said():
    config = TrainConfig(batch_size=50)
    changed = config.model_copy(update={"max_num_epochs": 3})
    assert changed == TrainConfig(batch_size=50, max_epochs=3)
    assert changed.model_fields_set == {"batch_size", "max_epochs"}
    with pytest.raises(SettingsError, match="learning_rate"):
        config.model_copy(update={"learning_rate": -1})


def test_the_repr_shows_what_was_said_or_differs_from_the_default():
    assert repr(TrainConfig()) == str(TrainConfig()) == "TrainConfig()"
    config = TrainConfig(sbi_compat=False, training_batch_size=3, optimizer=torch.optim.SGD)
    assert (
        str(config) == "TrainConfig(batch_size=3, optimizer=torch.optim.sgd.SGD, sbi_compat=False)"
    )


def test_the_signature_is_readable():
    assert str(inspect.signature(CheckpointConfig)) == (
        "(directory, *, every_epochs=1, every_seconds=None, keep_last=2, resume='auto')"
    )


@pytest.mark.parametrize("value", EXAMPLES, ids=repr)
def test_pydantics_own_doors_are_quiet_and_speak_our_errors(value):
    assert set(value.model_dump()) == set(type(value).model_fields)
    with pytest.raises(SettingsError):
        type(value).model_validate({"nonsense": 1})


def test_errors_of_validation_from_a_mapping_are_not_wrapped():
    with pytest.raises(SettingsError, match=r"^TrainConfig.batch_size: expected"):
        TrainConfig.model_validate({"batch_size": "1"})


def test_a_user_can_write_settings_in_the_same_way():
    class Mine(Settings):
        size: int = 3

    assert hash(Mine(size=4)) == hash(Mine(size=4))
    with pytest.raises(SettingsError, match="did you mean 'size'"):
        Mine(sise=4)


def test_fast_is_a_name_for_the_recipe_and_takes_any_field():
    assert TrainConfig.fast(batch_size=100) == TrainConfig(recipe="fast", batch_size=100)
    with pytest.raises(SettingsError, match=r"recipe does not train as sbi.*recipe='fast'"):
        TrainConfig.fast(sbi_compat=True)


def test_two_averages_at_once_are_refused():
    with pytest.raises(SettingsError, match=r"averaging.*ema_decay.*expected one of them"):
        TrainConfig(ema_decay=0.9, averaging="power")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LRSchedule("cosine", factor=0.3), r"LRSchedule.factor: kind 'cosine' does not"),
        (lambda: LRSchedule("constant", min_lr=0.1), r"min_lr: .* It takes: warmup_steps"),
        (lambda: LRSchedule("one_cycle", warmup_start=0.3), r"LRSchedule.warmup_start: kind 'one_"),
        (lambda: LRSchedule("constant", warmup_start=0.3), r"expected warmup_steps of at least 1"),
        (lambda: WeightAveraging("ema", factor=3.0), r"WeightAveraging.factor: kind 'ema'"),
        (lambda: WeightAveraging("power", decay=0.9), r"WeightAveraging.decay: kind 'power'"),
        (lambda: WeightAveraging("mean"), r"expected one of 'ema', 'power', got 'mean'"),
        (lambda: Stage(weight_decay="good"), r"a number of at least 0, or 'best', got 'good'"),
        (lambda: Stage(weight_decay=-1), r"a number of at least 0, or 'best', got -1"),
        (lambda: Stage(patience=0), r"Stage.patience: expected a number greater"),
        (lambda: TrainConfig(stages=Stage()), r"a sequence of Stage values, got Stage"),
        (lambda: TrainConfig(stages=[{"lr": 3}]), r"Stage has no field 'lr'"),
        (lambda: TrainConfig(recipe="faster"), r"recipe: expected one of 'fast', got 'faster'"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(make, message):
    with pytest.raises(SettingsError, match=message):
        make()


@pytest.mark.parametrize(
    ("backend", "own"),
    [
        ("stdout", ()),
        ("tensorboard", ("log_dir",)),
        ("wandb", ("project", "entity", "mode")),
        ("mlflow", ("experiment_name", "tracking_uri")),
        ("jsonl", ("log_dir",)),
        ("memory", ()),
        ("none", ()),
    ],
)
def test_a_backend_takes_its_fields_and_refuses_the_others(backend, own):
    values = {
        "log_dir": "logs",
        "project": "p",
        "entity": "e",
        "mode": "offline",
        "experiment_name": "x",
        "tracking_uri": "file:mlruns",
        "run_name": "r",
        "tags": ["t"],
        "every_n_iterations": 10,
    }
    taken = (*own, "run_name", "tags", "every_n_iterations")
    for name, value in values.items():
        if name in taken:
            assert getattr(LoggingConfig(backend, **{name: value}), name)
            continue
        with pytest.raises(SettingsError) as caught:
            LoggingConfig(backend, **{name: value})
        assert f"LoggingConfig.{name}: backend '{backend}' does not take" in str(caught.value)
        assert f"It takes: {', '.join(taken)}." in str(caught.value)


def test_no_secret_is_a_field_of_a_logging_config_or_shown_in_its_error():
    with pytest.raises(SettingsError, match="api_key") as caught:
        LoggingConfig("wandb", api_key="swordfish")
    assert "swordfish" not in str(caught.value)


def test_a_password_in_an_address_is_kept_but_never_shown():
    config = LoggingConfig("mlflow", tracking_uri="https://me:swordfish@host/?api_token=abc&x=1")
    assert "swordfish" in str(config.tracking_uri)
    assert "https://***@host/?api_token=***&x=1" in repr(config)
    with pytest.raises(SettingsError) as caught:
        LoggingConfig("wandb", tracking_uri="https://me:swordfish@host")
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        (EarlyStopping.validation_loss(7, 0.1), {"patience": 7, "min_delta": 0.1}),
        (EarlyStopping.validation_loss(), {"patience": 20, "min_delta": 0.0}),
        (EarlyStopping.two_standard_deviations(), {"patience": 20}),
        (EarlyStopping.lr_threshold(), {"min_lr": 1e-6}),
        (EarlyStopping.when(bool), {"rule": bool}),
        (EarlyStopping.never(), {}),
    ],
)
def test_a_rule_has_the_promised_fields(rule, fields):
    assert {name: getattr(rule, name) for name in rule.fields if name != "kind"} == fields


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "never", "patience": 3},
        {"kind": "lr_threshold", "min_delta": 0.1},
        {"kind": "two_standard_deviations", "min_delta": 0.1},
        {"rule": bool},
        {"kind": "when"},
        {"kind": "when", "rule": "losses"},
        {"patience": 0},
        {"min_delta": -0.1},
        {"kind": "validation"},
    ],
)
def test_a_rule_refuses_what_it_does_not_have_or_lacks(fields):
    with pytest.raises(SettingsError, match=r"^EarlyStopping\.(patience|min_delta|rule|kind): "):
        EarlyStopping(**fields)


@pytest.mark.parametrize("kind", EarlyStopping.takes)
def test_every_kind_of_rule_has_a_page_and_a_constructor_of_its_own_fields(kind):
    constructor = getattr(EarlyStopping, kind)
    assert tuple(inspect.signature(constructor).parameters) == EarlyStopping.takes[kind]
    asked = constructor(*[lambda state: True] if kind == "when" else [])
    assert asked.kind == kind
    rule = make_rule(asked, 0.5)
    assert getattr(rule, "patience", 20) == asked.patience
    assert (rule.patience_left is not None) == ("patience" in EarlyStopping.takes[kind])


@pytest.mark.parametrize(
    ("settings", "field"), [(EarlyStopping, "kind"), (LoggingConfig, "backend")]
)
def test_type_checkers_know_every_name_in_a_table(settings, field):
    words = get_args(settings.model_fields[field].annotation)
    assert set(words) == set(settings.takes)


@pytest.mark.parametrize("backend", ["tensorboard", "jsonl"])
@pytest.mark.parametrize("name", ["../elsewhere", "a/../../b", "/tmp/b"])
def test_a_run_name_that_leaves_its_folder_is_refused(backend, name):
    with pytest.raises(SettingsError, match=r"LoggingConfig\.run_name: .* names a folder below"):
        LoggingConfig(backend=backend, run_name=name)
    assert LoggingConfig(backend=backend, run_name="a/b..").run_name == "a/b.."
    assert LoggingConfig(backend="wandb", run_name=name).run_name == name
