"""Few simulations: a default adapts, an explicit wish that cannot be met is refused."""

from __future__ import annotations

import pytest
import torch

from sbi_ignite import DataError, LossArgsNPE, TrainConfig
from tests.small import METHODS, SBI_WARNS, append, draw, empty, ready, train

pytestmark = [
    *SBI_WARNS,
    pytest.mark.filterwarnings("ignore:Data has constant values:UserWarning"),
]

CONTRASTING = {"NRE_A": 2, "NRE_B": 2, "BNRE": 2, "NRE_C": 3}
"""Methods whose loss sets rows of a batch against each other, and the rows that it needs."""


@pytest.mark.parametrize("num_rows", [10, 20, 50])
@pytest.mark.parametrize("name", METHODS)
def test_few_simulations_train_in_the_typed_form_with_every_default(name, num_rows):
    for config in (TrainConfig(max_epochs=2), TrainConfig.fast(max_epochs=2)):
        trainer = train(ready(name, num_rows=num_rows), config)
        summary = trainer.training_summary
        assert summary.epochs_trained == 2
        assert all(map(torch.isfinite, torch.tensor(summary.validation_loss)))
        validation = len(trainer.val_indices)
        assert validation == max(num_rows // 10, CONTRASTING.get(name, 1))
        assert validation + len(trainer.train_indices) == num_rows


@pytest.mark.parametrize("name", METHODS)
def test_few_simulations_train_in_sbis_form_where_they_train_in_sbi(name):
    needed = CONTRASTING.get(name, 1)
    for num_rows in (10, 20, 50):
        trainer = ready(name, num_rows=num_rows)
        if num_rows // 10 >= needed:
            trainer.train(max_num_epochs=1)
            continue
        with pytest.raises(DataError, match=rf"{num_rows // 10} of {num_rows} .*least {needed}"):
            trainer.train(max_num_epochs=1)


def test_the_split_that_a_default_has_adapted_to_is_recorded():
    trainer = train(ready("NRE_B", num_rows=10), TrainConfig(max_epochs=1))
    recorded = trainer.training_summary.config["train"]
    assert recorded["validation_fraction"] == {"value": 0.2, "origin": "loader", "where": ""}
    assert recorded["batch_size"]["value"] == 8


@pytest.mark.parametrize("name", CONTRASTING)
def test_a_fraction_that_leaves_too_few_rows_for_validation_is_refused_with_both_numbers(name):
    trainer = ready(name, num_rows=10)
    message = rf"1 of 10 .*=0.1 \(TrainConfig\(validation.*at least {CONTRASTING[name]}.*take val"
    with pytest.raises(DataError, match=message):
        trainer.train(TrainConfig(validation_fraction=0.1))
    trainer.train(TrainConfig(validation_fraction=0.3, max_epochs=1))


def test_a_fraction_that_leaves_too_few_rows_for_training_is_refused_with_both_numbers():
    with pytest.raises(DataError, match=r"training set would have 1 of 10 .*=0.85 .*at least 2"):
        ready(num_rows=10).train(TrainConfig(validation_fraction=0.85))


@pytest.mark.filterwarnings("ignore:Only one data sample provided:UserWarning")
@pytest.mark.parametrize("num_rows", [1, 2])
def test_too_few_simulations_for_anything_are_refused(num_rows):
    with pytest.raises(DataError, match=rf"of {num_rows} simulations.*expected at least"):
        ready(num_rows=num_rows).train(TrainConfig())


@pytest.mark.parametrize("name", ["NRE_B", "NRE_C"])
def test_a_batch_size_that_leaves_batches_without_contrasts_is_refused_with_both_numbers(name):
    config = TrainConfig(batch_size=2, max_epochs=1)
    with pytest.raises(DataError, match=r"batch_size=2 .*batches of 1 and more.*at least [23]"):
        ready(name, num_rows=50).train(config)
    train(ready("NPE_C", num_rows=50), config)


def test_the_error_about_invalid_rows_names_leaving_the_choice_open():
    """As for trials that are padded with NaN on purpose."""
    theta, x = draw(50)
    x[::5, 1] = torch.nan
    trainer = append(empty("NPE_C"), theta, x, exclude_invalid_x=False)
    for arguments in ((TrainConfig(), LossArgsNPE(exclude_invalid_x=False)), ()):
        keywords = {} if arguments else {"exclude_invalid_x": False}
        with pytest.raises(DataError, match=r"10 of 50.*leave exclude_invalid_x unset.*padded"):
            trainer.train(*arguments, **keywords)
