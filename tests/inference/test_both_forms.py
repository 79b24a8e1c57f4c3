"""sbi's form, the typed form, and calls that mix them."""

from __future__ import annotations

import logging

import pytest
import torch

from sbi_ignite import (
    EarlyStopping,
    LossArgs,
    LossArgsBNRE,
    LossArgsMarginal,
    LossArgsNLE,
    LossArgsNPE,
    LossArgsNRE,
    LossArgsNRE_A,
    LossArgsNRE_C,
    LossArgsVF,
    TrainConfig,
)
from tests.small import METHODS, SBI_WARNS, Watch, append, draw, empty, ready, same, train

pytestmark = SBI_WARNS

LOSS_ARGS = {
    "NPE_A": LossArgsNPE,
    "NPE_B": LossArgsNPE,
    "NPE_C": LossArgsNPE,
    "MNPE": LossArgsNPE,
    "NLE_A": LossArgsNLE,
    "MNLE": LossArgsNLE,
    "NRE_A": LossArgsNRE_A,
    "NRE_B": LossArgsNRE,
    "NRE_C": LossArgsNRE_C,
    "BNRE": LossArgsBNRE,
    "FMPE": LossArgsVF,
    "NPSE": LossArgsVF,
    "MarginalTrainer": LossArgsMarginal,
}


@pytest.mark.parametrize("name", METHODS)
def test_sbi_compat_gives_the_typed_form_the_numbers_of_sbis_form(name):
    """TrainConfig(sbi_compat=True) is sbi's keywords said otherwise: equal weights, bit for bit."""
    by_keywords, typed = ready(name), ready(name)
    train(by_keywords, training_batch_size=50, max_num_epochs=2, learning_rate=0.003)

    config = TrainConfig(batch_size=50, max_epochs=2, learning_rate=0.003, sbi_compat=True)
    train(typed, config, LOSS_ARGS[name]())

    assert same(by_keywords, typed)
    assert by_keywords._summary["validation_loss"] == typed._summary["validation_loss"]
    assert len(typed._summary["validation_loss"]) == typed.epoch == 3


def test_the_two_forms_differ():
    """The comparison above could not fail if both forms did the same anyway."""
    by_keywords, typed = ready(), ready()
    train(by_keywords, training_batch_size=50, max_num_epochs=2)
    train(typed, TrainConfig(batch_size=50, max_epochs=2))
    assert not same(by_keywords, typed)
    assert (by_keywords.epoch, typed.epoch) == (3, 2)


def test_an_environment_variable_gives_an_unchanged_script_the_corrected_form(monkeypatch):
    """SBI_IGNITE_TRAIN__SBI_COMPAT=false makes sbi's keywords mean what they say."""
    monkeypatch.setenv("SBI_IGNITE_TRAIN__SBI_COMPAT", "false")
    by_keywords = ready()
    train(by_keywords, training_batch_size=50, max_num_epochs=2)
    monkeypatch.delenv("SBI_IGNITE_TRAIN__SBI_COMPAT")
    typed = ready()
    train(typed, TrainConfig(batch_size=50, max_epochs=2))

    assert by_keywords.epoch == 2
    assert same(by_keywords, typed)


def test_legacy_positional_arguments_are_sbis():
    """train(100) is the batch size for NLE, as in sbi, and the number of atoms for NRE_B."""
    watch = Watch()
    likelihood = ready("NLE_A")
    train(likelihood, 36, 0.004, max_num_epochs=1, callbacks=[watch])
    assert [len(batch) for batch in watch.batches[0]] == [36, 36, 36]
    assert likelihood.training_summary.learning_rate[0] == 0.004

    few, many, named = ready("NRE_B"), ready("NRE_B"), ready("NRE_B")
    train(few, 3, max_num_epochs=1)
    train(many, 20, max_num_epochs=1)
    train(named, num_atoms=20, max_num_epochs=1)
    assert same(many, named)
    assert not same(few, many)


def test_config_and_loss_args_may_come_by_name():
    by_name, by_position = ready("NRE_B"), ready("NRE_B")
    config, loss_args = TrainConfig(max_epochs=2, batch_size=50), LossArgsNRE(num_atoms=4)
    train(by_name, loss_args=loss_args, train_config=config)
    train(by_position, config, loss_args)
    assert same(by_name, by_position)


def test_loss_args_alone_leave_the_form_to_be_sbis():
    """Without a TrainConfig the call stays in sbi's form."""
    ours, sbis = ready("NRE_B"), ready("NRE_B")
    train(ours, None, LossArgsNRE(num_atoms=4), max_num_epochs=1)
    train(sbis, num_atoms=4, max_num_epochs=1)
    assert same(ours, sbis)


@pytest.mark.parametrize("name", METHODS)
def test_keywords_fill_what_the_config_left_unset(name):
    """Keywords beside a TrainConfig are the fields by another name."""
    mixed, typed = ready(name), ready(name)
    train(mixed, TrainConfig(max_epochs=2), training_batch_size=40, learning_rate=0.004)
    train(typed, TrainConfig(max_epochs=2, batch_size=40, learning_rate=0.004))
    assert same(mixed, typed)
    assert mixed.training_summary.learning_rate == (0.004, 0.004)


def test_stop_after_epochs_beside_a_config_is_the_patience():
    trainer = ready()
    still = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}
    train(trainer, TrainConfig(**still), stop_after_epochs=3)
    assert trainer.training_summary.stop_reason == "patience"
    assert trainer.training_summary.epochs_trained == 4


@pytest.mark.parametrize(
    ("config", "keyword"),
    [
        (TrainConfig(batch_size=50), {"training_batch_size": 50}),
        (TrainConfig(max_epochs=3), {"max_num_epochs": 2}),
        (TrainConfig(learning_rate=0.1), {"learning_rate": 0.2}),
        (TrainConfig(clip_max_norm=None), {"clip_max_norm": None}),
    ],
)
def test_a_field_and_its_keyword_together_are_refused_with_both_names(config, keyword):
    trainer = ready()
    (field,), (name,) = config.model_fields_set, keyword
    with pytest.raises(TypeError) as caught:
        train(trainer, config, **keyword)
    assert field in str(caught.value)
    assert name in str(caught.value)
    assert trainer._neural_net is None


def test_a_loss_argument_and_its_keyword_together_are_refused():
    trainer = ready("NRE_B")
    with pytest.raises(TypeError, match=r"num_atoms.*LossArgsNRE"):
        train(trainer, TrainConfig(), LossArgsNRE(num_atoms=3), num_atoms=4)
    with pytest.raises(TypeError, match=r"train_config.*twice"):
        train(trainer, TrainConfig(), train_config=TrainConfig())
    assert trainer._neural_net is None


@pytest.mark.parametrize("name", METHODS)
def test_loss_arguments_of_another_method_are_refused_with_the_right_name(name):
    """As a TypeError; nothing is trained."""
    trainer = ready(name)
    right = LOSS_ARGS[name]
    for wrong in set(LOSS_ARGS.values()) - {right}:
        with pytest.raises(TypeError, match=rf"expected {right.__name__} .*got {wrong.__name__}\."):
            train(trainer, TrainConfig(), wrong())
    assert trainer._neural_net is None


def test_the_base_of_the_loss_arguments_fits_every_method():
    ready("NRE_B").train(TrainConfig(max_epochs=1), LossArgs(exclude_invalid_x=True))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (({"batch_size": 10},), "TrainConfig"),
        ((LossArgsNPE(),), "TrainConfig"),
        ((TrainConfig(), TrainConfig()), "LossArgsNPE"),
        ((TrainConfig(), 100), "LossArgsNPE"),
        (("100",), "int"),
    ],
)
def test_positional_arguments_of_the_wrong_type_are_refused(arguments, expected):
    """A TypeError says what is accepted where."""
    trainer = ready("NPE_B")
    with pytest.raises(TypeError, match=expected):
        train(trainer, *arguments)
    assert trainer._neural_net is None


def test_a_misspelt_keyword_is_refused_with_the_closest_name():
    trainer = ready()
    with pytest.raises(TypeError, match="training_batch_size"):
        train(trainer, trainin_batch_size=10)
    with pytest.raises(TypeError, match="early_stopping"):
        train(trainer, TrainConfig(), early_stoping=EarlyStopping.never())
    assert trainer._neural_net is None


def test_the_environment_fills_sbis_keywords_and_the_call_wins(monkeypatch):
    """Precedence holds in sbi's form too: call, environment, default."""
    monkeypatch.setenv("SBI_IGNITE_TRAIN__MAX_EPOCHS", "2")
    monkeypatch.setenv("SBI_IGNITE_TRAIN__LEARNING_RATE", "0.004")
    by_environment, by_call = ready("NLE_A"), ready("NLE_A")
    train(by_environment)
    train(by_call, max_num_epochs=1)

    assert by_environment.epoch == 3
    assert by_environment.training_summary.learning_rate == (0.004,) * 3
    assert by_call.epoch == 2
    shown = by_call.training_summary.config["train"]
    assert shown["max_epochs"]["origin"] == "call"
    assert shown["learning_rate"]["origin"] == "environment"
    assert shown["learning_rate"]["where"] == "SBI_IGNITE_TRAIN__LEARNING_RATE"

    monkeypatch.delenv("SBI_IGNITE_TRAIN__MAX_EPOCHS")
    monkeypatch.delenv("SBI_IGNITE_TRAIN__LEARNING_RATE")
    said = ready("NLE_A")
    train(said, max_num_epochs=2, learning_rate=0.004)
    assert same(by_environment, said)


def test_the_environments_patience_stops_an_unchanged_call(monkeypatch):
    monkeypatch.setenv("SBI_IGNITE_EARLY_STOPPING__PATIENCE", "2")
    trainer = ready("NLE_A")
    train(trainer, learning_rate=1e-12, clip_max_norm=1e-12, max_num_epochs=200)
    assert trainer._epochs_since_last_improvement == 2
    assert trainer.training_summary.stop_reason == "patience"


def test_new_keywords_may_be_added_to_sbis_form():
    """early_stopping and callbacks change nothing else: the weights stay sbi's."""
    with_rule, without = ready(), ready()
    train(
        with_rule,
        training_batch_size=50,
        early_stopping=EarlyStopping.when(lambda state: state.epoch == 3),
        callbacks=[Watch()],
    )
    train(without, training_batch_size=50, max_num_epochs=2)

    assert with_rule.training_summary.stop_reason == "rule"
    assert with_rule.epoch == without.epoch == 3
    assert same(with_rule, without)


# --- exclude_invalid_x


def with_invalid_rows(name: str = "NPE_C"):
    """Return a trainer to which 120 rows were appended, three of them invalid in x."""
    torch.manual_seed(1)
    theta, x = draw()
    x[3, 0], x[50, 1], x[77, 0] = float("nan"), float("inf"), -float("inf")
    trainer = empty(name)
    append(trainer, theta, x) if name == "MarginalTrainer" else trainer.append_simulations(
        theta, x, exclude_invalid_x=False
    )
    return trainer, theta, x


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("name", ["NPE_B", "NPE_C", "FMPE", "MarginalTrainer"])
def test_invalid_rows_are_dropped_before_the_split_and_counted(name, typed, caplog):
    """exclude_invalid_x=True: exactly the three rows are in neither part, and it says three."""
    trainer, _, _ = with_invalid_rows(name)
    with caplog.at_level(logging.WARNING):
        if typed:
            train(trainer, TrainConfig(max_epochs=1), LOSS_ARGS[name](exclude_invalid_x=True))
        else:
            train(trainer, max_num_epochs=1, exclude_invalid_x=True)

    used = torch.cat([trainer.train_indices, trainer.val_indices]).tolist()
    assert sorted(used) == sorted(set(range(120)) - {3, 50, 77})
    assert any("3 of 120" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("typed", [True, False])
def test_invalid_rows_that_may_not_be_dropped_raise_before_training(typed):
    trainer, _, _ = with_invalid_rows()
    forbidding = (TrainConfig(), LossArgsNPE(exclude_invalid_x=False)) if typed else ()
    keywords = {} if typed else {"exclude_invalid_x": False}
    with pytest.raises(ValueError, match=r"3 of 120.*3, 50, 77"):
        trainer.train(*forbidding, **keywords)
    assert trainer._neural_net is None


def test_without_a_word_the_rows_are_those_that_append_simulations_left():
    """None leaves what append_simulations did: there NPE drops invalid rows itself."""
    torch.manual_seed(1)
    theta, x = draw()
    x[5] = float("nan")
    trainer = empty("NPE_C")
    trainer.append_simulations(theta, x, exclude_invalid_x=True)
    train(trainer, TrainConfig(max_epochs=1))
    assert len(trainer.train_indices) + len(trainer.val_indices) == 119
