"""Two wishes for one thing are refused by both names, and records say what ran."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from sbi_ignite import (
    CheckpointMismatchError,
    LRSchedule,
    SbiIgniteWarning,
    SettingsError,
    Stage,
    TrainConfig,
    WeightAveraging,
    run_training,
)
from sbi_ignite.runs.fingerprint import differences
from sbi_ignite.settings import resolve

ROWS = TensorDataset(torch.linspace(-1, 1, 40).unsqueeze(1))
LOADER = DataLoader(ROWS, batch_size=8)
VALIDATION = DataLoader(TensorDataset(torch.ones(10, 1)), batch_size=5)


def squares(model, batch):
    return model(batch[0]).square().mean(dim=1)


def run(loader=LOADER, val_loader=None, model=None, **arguments):
    """Train for two epochs, unless arguments say otherwise; return the summary."""
    fields = {"max_epochs": 2, **arguments.pop("fields", {})}
    model = nn.Linear(1, 1) if model is None else model
    return run_training(TrainConfig(**fields), model, squares, loader, val_loader, **arguments)[1]


def with_optimizer(make=torch.optim.SGD, scheduled=False, **fields):
    """Train with an optimizer, and perhaps a scheduler, as arguments."""
    model = nn.Linear(1, 1)
    optimizer = make(model.parameters(), lr=0.25)
    more = {"scheduler": StepLR(optimizer, 5)} if scheduled else {}
    return run(model=model, optimizer=optimizer, fields=fields, **more)


COLLISIONS = {
    "optimizer": (lambda: with_optimizer(optimizer="sgd"), r"optimizer='sgd'.*optimizer=SGD"),
    "its rate": (lambda: with_optimizer(learning_rate=0.1), r"learning_rate=0.1.*SGD.*lr=0.25"),
    "its decay": (lambda: with_optimizer(weight_decay=0.5), r"=0.5.*SGD.*weight_decay=0.0"),
    "scheduler": (
        lambda: with_optimizer(scheduled=True, lr_schedule="plateau"),
        r"lr_schedule='plateau'.*scheduler=torch.*StepLR",
    ),
    "batch size": (lambda: run(fields={"batch_size": 7}), r"batch_size=7.*batches of 8"),
    "batch size of a list": (
        lambda: run(loader=[(torch.ones(3, 1),)] * 2, fields={"batch_size": 2}),
        r"batch_size=2.*batches of 3",
    ),
    "no validation": (
        lambda: run(fields={"validation_fraction": 0.2}),
        r"validation_fraction=0.2.*no val_loader",
    ),
    "another split": (
        lambda: run(val_loader=VALIDATION, fields={"validation_fraction": 0.5}),
        r"validation_fraction=0.5.*40 and 10 rows",
    ),
    "workers": (
        lambda: run(fields={"dataloader_kwargs": {"num_workers": 1}}),
        r"dataloader_kwargs=.*num_workers=0",
    ),
    "no torch loader": (
        lambda: run(loader=[ROWS[:8]], fields={"dataloader_kwargs": {"num_workers": 1}}),
        r"dataloader_kwargs=.*that is a list",
    ),
    "resume": (lambda: run(fields={"resume_training": True}), r"resume_training.*checkpoint="),
    "retrain": (lambda: run(fields={"retrain_from_scratch": True}), r"retrain_from_scratch=True"),
    "discard": (lambda: run(fields={"discard_prior_samples": True}), r"discard_prior_samples=True"),
}


@pytest.mark.parametrize("name", COLLISIONS)
def test_a_field_that_an_argument_contradicts_is_refused_by_both_names(name):
    train, message = COLLISIONS[name]
    with pytest.raises(SettingsError, match=message):
        train()


def test_another_device_than_that_of_the_argument_is_refused_by_both_names(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SettingsError, match=r"device='cuda:1' from .* and device='cpu' in the"):
        run(device="cpu", fields={"device": "cuda:1"})


def test_a_field_and_an_argument_that_agree_are_fine():
    summary = with_optimizer(learning_rate=0.25, weight_decay=0.0, batch_size=8, device="cpu")
    assert summary.learning_rate == (0.25, 0.25)
    run(val_loader=VALIDATION, fields={"validation_fraction": 0.2}, device="cpu")
    run(fields={"dataloader_kwargs": {"num_workers": 0, "drop_last": False}})


def recorded(summary, name):
    entry = summary.config["train"][name]
    return entry["value"], entry["origin"], entry["where"]


def test_the_record_says_what_an_optimizer_and_a_scheduler_as_arguments_decide(tmp_path):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25, weight_decay=0.125)
    summary = run(
        model=model,
        optimizer=optimizer,
        scheduler=StepLR(optimizer, 1),
        device="cpu",
        checkpoint=str(tmp_path),
    )
    where = "run_training(optimizer=...)"
    assert recorded(summary, "optimizer") == ("torch.optim.adamw.AdamW", "call", where)
    assert recorded(summary, "learning_rate") == (0.25, "optimizer", where)
    assert recorded(summary, "weight_decay") == (0.125, "optimizer", where)
    assert recorded(summary, "lr_schedule")[0].endswith("lr_scheduler.StepLR")
    assert recorded(summary, "device") == ("cpu", "call", "run_training(device=...)")
    assert recorded(summary, "batch_size")[:2] == (8, "loader")
    assert recorded(summary, "validation_fraction")[:2] == (0.0, "loader")
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert manifest["settings"]["train"] == json.loads(json.dumps(summary.config["train"]))


def test_the_record_says_what_a_callable_optimizer_decides():
    def make(parameters):
        first, *rest = parameters
        groups = [{"params": [first], "weight_decay": 0.5}, {"params": rest, "lr": 0.125}]
        return torch.optim.SGD(groups, lr=0.25)

    summary = run(fields={"optimizer": make, "lr_schedule": "one_cycle"})
    where = "TrainConfig(optimizer=...)"
    assert recorded(summary, "learning_rate") == ([0.25, 0.125], "optimizer", where)
    assert recorded(summary, "weight_decay") == ([0.5, 0.0], "optimizer", where)


def test_stages_without_a_weight_decay_leave_each_group_its_own():
    """A bias without decay stays without."""
    model = nn.Linear(1, 1)
    groups = [
        {"params": [model.weight], "weight_decay": 0.5},
        {"params": [model.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    run(model=model, optimizer=optimizer, fields={"stages": [Stage(patience=1)]})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


def test_a_recipe_leaves_out_what_an_optimizer_decides():
    summary = with_optimizer(recipe="fast")
    assert recorded(summary, "learning_rate")[:2] == (0.25, "optimizer")
    assert recorded(summary, "optimizer")[:2] == ("torch.optim.sgd.SGD", "call")
    model = nn.Linear(1, 1)
    config = TrainConfig.fast(max_epochs=2, optimizer=lambda p: torch.optim.SGD(p, lr=0.25))
    _, summary = run_training(config, model, squares, LOADER)
    assert recorded(summary, "learning_rate")[:2] == (0.25, "optimizer")
    assert {stage["weight_decay"] for stage in recorded(summary, "stages")[0]} == {None}


def test_an_argument_wins_over_the_environment_where_both_say_the_same_thing(monkeypatch):
    for name, text in {"OPTIMIZER": "adamw", "BATCH_SIZE": "7", "LR_SCHEDULE": "plateau"}.items():
        monkeypatch.setenv(f"SBI_IGNITE_TRAIN__{name}", text)
    summary = with_optimizer(scheduled=True)
    assert recorded(summary, "optimizer")[1:] == ("call", "run_training(optimizer=...)")
    assert recorded(summary, "lr_schedule")[1:] == ("call", "run_training(scheduler=...)")
    assert recorded(summary, "batch_size")[:2] == (8, "loader")


@pytest.mark.parametrize("name", ["LEARNING_RATE", "WEIGHT_DECAY"])
def test_a_variable_that_an_optimizer_would_drop_is_refused_by_its_name(monkeypatch, name):
    monkeypatch.setenv(f"SBI_IGNITE_TRAIN__{name}", "0.5")
    with pytest.raises(SettingsError, match=rf"SBI_IGNITE_TRAIN__{name} and optimizer=SGD"):
        with_optimizer()
    with pytest.raises(SettingsError, match=rf"SBI_IGNITE_TRAIN__{name} and optimizer=.*quarter"):
        run(fields={"optimizer": quarter})


def test_a_variable_for_trainers_warns_in_run_training(monkeypatch):
    monkeypatch.setenv("SBI_IGNITE_TRAIN__DISCARD_PRIOR_SAMPLES", "true")
    with pytest.warns(SbiIgniteWarning, match="SBI_IGNITE_TRAIN__DISCARD_PRIOR_SAMPLES"):
        run()


def test_the_seed_decides_about_the_order_of_a_torch_loader():
    loader = DataLoader(ROWS, batch_size=8, shuffle=True)

    def losses(seed):
        model = nn.Linear(1, 1)
        model.load_state_dict({"weight": torch.ones(1, 1), "bias": torch.zeros(1)})
        return run(loader, model=model, fields={"seed": seed, "learning_rate": 0.1}).training_loss

    assert losses(1) == losses(1) != losses(2)


def test_the_summary_is_printed_where_it_is_asked_for(capsys):
    summary = run(fields={"show_train_summary": True})
    assert str(summary) in capsys.readouterr().out


def test_an_average_that_stages_forget_must_be_kept():
    stages = {"stages": [Stage(patience=1), Stage(patience=1, reset_average=True)]}
    with pytest.warns(SbiIgniteWarning, match=r"reset_average.*averaging"):
        run(fields=stages)
    run(fields={**stages, "averaging": WeightAveraging("power")})


# --- devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_there_is_refused_by_its_origin(monkeypatch):
    with pytest.raises(SettingsError, match=r"no CUDA.*'cuda' from the call TrainConfig\(device"):
        run(fields={"device": "cuda"})
    with pytest.raises(SettingsError, match=r"no CUDA.*'cuda:1'.*run_training\(device=\.\.\.\)"):
        run(device="cuda:1")
    monkeypatch.setenv("SBI_IGNITE_TRAIN__DEVICE", "cuda")
    with pytest.raises(SettingsError, match=r"SBI_IGNITE_TRAIN__DEVICE.*'cpu'"):
        run()


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is such a device")
def test_a_device_of_an_apple_that_is_not_there_is_refused():
    with pytest.raises(SettingsError, match=r"no MPS device.*TrainConfig\(device=\.\.\.\)"):
        run(fields={"device": "mps"})


def test_an_index_beyond_the_devices_that_are_there_is_refused_with_their_names(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SettingsError, match=r"has cuda:0, cuda:1, got 'cuda:7'"):
        run(fields={"device": "cuda:7"})


def test_a_device_that_has_no_such_name_is_refused():
    with pytest.raises(SettingsError, match=r"'gpu' from the call run_training"):
        run(device="gpu")


def test_cuda_graphs_on_a_cpu_are_refused_by_the_origin_of_the_wish(monkeypatch):
    monkeypatch.setenv("SBI_IGNITE_TRAIN__COMPILE", "cuda_graph")
    with pytest.raises(SettingsError, match=r"CUDA device.*SBI_IGNITE_TRAIN__COMPILE"):
        run()


# --- directories of earlier versions


def quarter(parameters):
    return torch.optim.SGD(parameters, lr=0.25)


def test_a_run_whose_record_says_what_was_asked_for_is_still_the_same_run(tmp_path):
    """Earlier versions noted the default rate beside a callable optimizer, and no `on_extend`."""
    schedule = LRSchedule("cosine", total_epochs=2)
    run(fields={"optimizer": quarter, "lr_schedule": schedule}, checkpoint=str(tmp_path))
    now = json.loads((tmp_path / "run.json").read_text())
    earlier = json.loads((tmp_path / "run.json").read_text())
    train = earlier["settings"]["train"]
    for name in ("learning_rate", "weight_decay", "batch_size", "validation_fraction"):
        assert train[name]["origin"] in ("optimizer", "loader")
        value = TrainConfig.model_fields[name].default
        train[name] = {"value": value, "origin": "default", "where": ""}
    del train["lr_schedule"]["value"]["on_extend"]
    assert differences(earlier, now) == []


def test_another_rate_of_a_callable_optimizer_is_another_run(tmp_path):
    run(fields={"optimizer": quarter}, checkpoint=str(tmp_path))

    def half(parameters):
        return torch.optim.SGD(parameters, lr=0.5)

    half.__module__, half.__qualname__ = quarter.__module__, quarter.__qualname__
    with pytest.raises(CheckpointMismatchError, match=r"learning_rate differs.*0.25.*0.5"):
        run(fields={"optimizer": half}, checkpoint=str(tmp_path))


def test_a_run_may_ask_for_its_schedule_to_be_stretched_and_for_nothing_else_about_it():
    def manifest(schedule):
        settings = resolve(train=TrainConfig(lr_schedule=schedule)).to_dict()
        return {"settings": settings}

    four = LRSchedule("cosine", total_epochs=4)
    longer = four.model_copy(update={"total_epochs": 8, "on_extend": "stretch"})
    other = longer.model_copy(update={"warmup_steps": 3})
    stretched = LRSchedule("cosine", on_extend="stretch")
    assert differences(manifest(four), manifest(longer)) == []
    assert differences(manifest("cosine"), manifest(stretched)) == []
    assert differences(manifest(four), manifest(LRSchedule("cosine", total_epochs=8))) != []
    assert differences(manifest(four), manifest(other)) != []
    assert differences(manifest("cosine"), manifest("one_cycle")) != []


@pytest.mark.parametrize(
    ("sampler", "size"), [([[1, 2, 3], [0, 4]], 3), (iter([[1, 2], [3]]), None)]
)
def test_a_batch_size_that_no_setting_decides_is_recorded_as_what_the_sampler_makes(sampler, size):
    """Or as none, where a sampler makes batches of any size; never as one that was not used."""

    class Sampler:
        def __len__(self):
            return 2

        def __iter__(self):
            return sampler

    batch_sampler = sampler if isinstance(sampler, list) else Sampler()
    x = torch.ones(8, 1)
    loader = DataLoader(TensorDataset(x, x), batch_sampler=batch_sampler)
    _, summary = run_training(TrainConfig(max_epochs=1), nn.Linear(1, 1), squares, loader)
    assert recorded(summary, "batch_size")[:2] == (size, "loader")
