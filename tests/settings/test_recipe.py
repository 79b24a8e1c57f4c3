"""The recipe fills in what nobody set, by the number of training rows, and shows what it filled."""

from __future__ import annotations

import json

import pytest
import sbi.inference
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sbi_ignite import (
    NPE,
    EarlyStopping,
    SettingsError,
    Stage,
    TrainConfig,
    load_run,
    patch_sbi,
    run_training,
)
from sbi_ignite.settings import resolve
from sbi_ignite.settings.recipe import fast
from tests.small import METHODS, SBI_WARNS, Watch, ready, same, train

pytestmark = SBI_WARNS


CONTRASTIVE = ("NRE_A", "NRE_B", "NRE_C")
"""The methods with numbers of their own."""


def config_of(summary):
    """Return values and origins of the training's settings."""
    return {n: (e["value"], e["origin"]) for n, e in summary.config["train"].items()}


def filled(summary):
    return {name for name, (_, origin) in config_of(summary).items() if origin == "recipe"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_with_the_values_for_its_training_rows(name):
    """The values in force are those in the summary: the batches and rates that are seen."""
    watch = Watch()
    trainer = train(ready(name, num_rows=500), TrainConfig.fast(max_epochs=2), callbacks=[watch])
    contrastive = name in CONTRASTIVE
    summary, recipe = trainer.training_summary, fast(450, contrastive)
    expected = resolve(train=TrainConfig(**recipe)).to_dict()["train"]
    assert filled(summary) == set(recipe)
    for field in recipe:
        assert config_of(summary)[field] == (expected[field]["value"], "recipe")
    where = summary.config["train"]["batch_size"]["where"]
    kind = " of ratio estimation" if contrastive else ""
    assert where == f"TrainConfig.fast() at 450 training rows{kind}"
    sizes = [len(batch) for batch in watch.batches[0]]
    assert sum(sizes) == 450
    assert max(sizes) <= recipe["batch_size"] < max(sizes) * 2
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    assert type(trainer.optimizer) is kinds[recipe["optimizer"]]
    assert not config_of(summary)["sbi_compat"][0]


@pytest.mark.parametrize("name", [m for m in METHODS if m != "NRE_C"])
def test_twenty_simulations_are_enough(name):
    """NRE_C needs more rows for its classes, in sbi, too."""
    trainer = train(ready(name, num_rows=20), TrainConfig.fast(max_epochs=12))
    assert trainer.training_summary.config["train"]["batch_size"]["value"] == 18


def test_the_first_stage_waits_longer_where_epochs_are_short():
    patience = [fast(rows)["stages"][0].patience for rows in (18, 900, 2_000, 9_000, 10**6)]
    assert patience == [15, 15, 13, 10, 10]


def test_the_rate_grows_with_the_batch_up_to_a_bound():
    rates = [fast(rows)["learning_rate"] for rows in (18, 125, 1_000, 9_000, 10**6)]
    assert rates == [0.0015, 0.0015, 0.003, 0.005, 0.005]


def test_ratio_estimation_has_its_own_rate_warm_up_and_decay_and_averages_its_best_epochs():
    recipes = [
        (rows, fast(rows), fast(rows, contrastive=True)) for rows in (450, 900, 9_000, 10**6)
    ]
    rates = [recipe["learning_rate"] for _, _, recipe in recipes]
    assert rates == [0.0077, 0.0097, 0.015, 0.015]
    for rows, others, recipe in recipes:
        same = others.keys() - {"learning_rate", "lr_schedule", "weight_decay", "stages"}
        assert {name: recipe[name] for name in same} == {name: others[name] for name in same}
        first, second = (stage.weight_decay for stage in recipe["stages"][:2])
        assert second == pytest.approx(3 * others["stages"][1].weight_decay, rel=0.1)
        assert recipe["weight_decay"] == first == pytest.approx(0.1 * second, rel=0.1)
        steps = others["lr_schedule"].warmup_steps
        assert recipe["lr_schedule"].warmup_steps == pytest.approx(0.3 * steps, abs=1)
        assert all(stage.average_best == 10 for stage in recipe["stages"])
        assert recipe["stages"][-1].patience == (8 if rows < 90_000 else 16)


def test_the_best_epochs_are_averaged_where_validation_is_noisy():
    for rows, averaged, patience in [(450, 10, 8), (8_999, 10, 8), (9_000, 1, 10), (90_000, 1, 20)]:
        first, *later = fast(rows)["stages"]
        assert {stage.average_best for stage in (first, *later)} == {averaged}
        assert {stage.patience for stage in later} == {patience}


def test_the_last_stages_may_be_longer_where_there_are_many_rows():
    lengths = [fast(rows)["stages"][-1].max_relative_length for rows in (900, 9_000, 90_000, 10**6)]
    assert lengths == [0.2, 0.2, 1.0, 1.0]


def test_its_stages_end_the_training():
    stages = [Stage(patience=1, max_epochs=2), Stage(patience=1, max_epochs=2)]
    trainer = train(ready(), TrainConfig.fast(stages=stages))
    assert trainer.training_summary.stop_reason in ("patience", "max_epochs")
    assert trainer.training_summary.epochs_trained <= 4
    assert trainer.training_summary.config["early_stopping"][0]["kind"]["value"] == "never"


def test_early_stopping_that_is_asked_for_holds():
    trainer = ready()
    stop = EarlyStopping.when(lambda state: state.epoch == 3)
    train(trainer, TrainConfig.fast(), early_stopping=stop)
    assert (trainer.training_summary.epochs_trained, trainer.training_summary.stop_reason) == (
        3,
        "rule",
    )


def test_without_stages_the_usual_patience_ends_it():
    resolved = resolve(train=TrainConfig.fast(stages=()))
    assert resolved.early_stopping == (EarlyStopping.validation_loss(),)
    assert resolved.with_recipe(1000).train.stages == ()


OVERRIDES = {
    "batch_size": 30,
    "learning_rate": 0.001,
    "optimizer": "sgd",
    "clip_max_norm": None,
    "lr_schedule": "plateau",
    "averaging": None,
    "stages": (),
}


@pytest.mark.parametrize("field", OVERRIDES)
def test_what_is_overridden_stays_and_the_rest_is_filled_in(field):
    value = OVERRIDES[field]
    resolved = resolve(train=TrainConfig.fast(**{field: value})).with_recipe(1000)
    assert getattr(resolved.train, field) == value
    assert resolved.origin(f"train.{field}").source == "call"
    for other in fast(1000).keys() - {field}:
        assert getattr(resolved.train, other) == fast(1000)[other]
        assert resolved.origin(f"train.{other}").source == "recipe"


def test_a_weight_decay_that_was_set_holds_in_all_stages():
    train_config = resolve(train=TrainConfig.fast(weight_decay=0.2)).with_recipe(1000).train
    assert train_config.weight_decay == 0.2
    assert {stage.weight_decay for stage in train_config.stages} == {None}


def test_an_ema_decay_that_was_set_takes_the_place_of_the_recipes_average():
    train_config = resolve(train=TrainConfig.fast(ema_decay=0.9)).with_recipe(1000).train
    assert train_config.averaging is None
    assert train_config.ema_decay == 0.9


def test_filling_in_twice_changes_nothing():
    once = resolve(train=TrainConfig.fast()).with_recipe(1000)
    assert once.with_recipe(50_000) is once
    plain = resolve(train=TrainConfig())
    assert plain.with_recipe(1000) is plain


def test_the_environment_makes_an_unchanged_script_fast(monkeypatch):
    """With sbi's own class and keywords; a keyword of the script wins over the recipe."""
    monkeypatch.setenv("SBI_IGNITE_TRAIN__RECIPE", "fast")
    monkeypatch.setenv("SBI_IGNITE_TRAIN__LEARNING_RATE", "0.003")
    trainer = ready(inference=sbi.inference)
    with patch_sbi():
        train(trainer, training_batch_size=50, max_num_epochs=3)
    found = config_of(trainer.training_summary)
    assert trainer.training_summary.epochs_trained == 3
    assert found["sbi_compat"] == (False, "default")
    assert found["batch_size"] == (50, "call")
    assert found["learning_rate"] == (0.003, "environment")
    assert found["optimizer"] == (fast(108)["optimizer"], "recipe")


def test_a_file_can_name_the_recipe(monkeypatch, tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('[train]\nrecipe = "fast"\nbatch_size = 40\n')
    monkeypatch.setenv("SBI_IGNITE_CONFIG", str(path))
    trainer = train(ready(), max_num_epochs=1)
    assert config_of(trainer.training_summary)["batch_size"] == (40, "file")
    assert config_of(trainer.training_summary)["averaging"][1] == "recipe"


def test_who_asks_for_sbis_semantics_too_is_told(monkeypatch):
    monkeypatch.setenv("SBI_IGNITE_TRAIN__RECIPE", "fast")
    with pytest.raises(SettingsError, match=r"SBI_IGNITE_TRAIN__RECIPE.*sbi_compat=True from the"):
        ready().train(TrainConfig(sbi_compat=True))


def test_values_are_printed_as_a_table_with_the_stages_one_by_one():
    table = resolve(train=TrainConfig.fast()).with_recipe(9000).describe()
    lines = {line.split()[0]: line for line in table.splitlines()}
    recipe = fast(9000)
    assert str(recipe["learning_rate"]) in lines["train.learning_rate"]
    assert "recipe" in lines["train.learning_rate"]
    assert repr(recipe["averaging"]) in lines["train.averaging"]
    for number, stage in enumerate(recipe["stages"]):
        assert repr(stage) in lines[f"train.stages.{number}"]


def test_the_manifest_shows_the_values_and_a_broken_run_continues(tmp_path):
    class Break:
        def on_epoch_end(self, state):
            if state.epoch == 3:
                raise KeyboardInterrupt

    whole = train(ready(), TrainConfig.fast(max_epochs=6))
    with pytest.raises(KeyboardInterrupt):
        train(ready(), TrainConfig.fast(max_epochs=6), checkpoint=tmp_path, callbacks=[Break()])
    again = train(ready(), TrainConfig.fast(max_epochs=6), checkpoint=tmp_path)
    assert same(whole, again)
    manifest = json.loads((tmp_path / "run.json").read_text())
    assert manifest["settings"]["train"]["stages"]["origin"] == "recipe"
    assert len(manifest["settings"]["train"]["stages"]["value"]) == len(fast(108)["stages"])
    assert load_run(tmp_path).summary is not None


def test_a_second_leg_is_filled_in_alike():
    whole = train(ready(), TrainConfig.fast(max_epochs=6))
    legs = train(ready(), TrainConfig.fast(max_epochs=3))
    legs.train(TrainConfig.fast(max_epochs=6, resume_training=True))
    assert same(whole, legs)


def test_user_data_loaders_and_a_users_own_get_dataloaders_are_counted():
    trainer = train(ready(), TrainConfig.fast(max_epochs=1, dataloader_kwargs={}))
    where = trainer.training_summary.config["train"]["learning_rate"]["where"]
    assert where.endswith("at 108 training rows")

    class Own(NPE):
        def get_dataloaders(self, *args, **kwargs):
            data = TensorDataset(*self.get_simulations(0))
            self.train_indices = self.val_indices = torch.arange(60)
            loader = DataLoader(torch.utils.data.Subset(data, range(60)), batch_size=20)
            return loader, loader

    own = ready()
    own.__class__ = Own
    train(own, TrainConfig.fast(max_epochs=1))
    found = own.training_summary.config["train"]
    assert found["learning_rate"]["where"].endswith("at 60 training rows")


# --- without sbi


def loss(model, batch):
    return model(batch[0]).square().mean(dim=1)


def test_a_standalone_training_is_filled_in_by_its_loader_whose_batches_stay():
    loader = DataLoader(TensorDataset(torch.randn(40, 2)), batch_size=10)
    _, summary = run_training(TrainConfig.fast(max_epochs=2), nn.Linear(2, 1), loss, loader, loader)
    assert filled(summary) == fast(40).keys() - {"batch_size"}
    assert config_of(summary)["learning_rate"][0] == fast(40)["learning_rate"]


def test_a_loader_that_does_not_show_its_rows_is_refused_with_advice():
    class Endless:
        def __len__(self):
            return 2

        def __iter__(self):
            return iter([(torch.zeros(1, 2),)] * 2)

    with pytest.raises(SettingsError, match=r"recipe='fast'.*number of training rows.*Endless"):
        run_training(TrainConfig.fast(), nn.Linear(2, 1), loss, Endless())


@pytest.mark.parametrize("num_rows", [1, 18, 450, 9_000, 90_000, 10**7])
def test_the_recipe_is_valid_for_any_number_of_rows(num_rows):
    config = TrainConfig(**fast(num_rows))
    assert config.batch_size <= num_rows
