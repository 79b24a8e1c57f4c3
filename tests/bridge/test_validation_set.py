"""Validation on rows that the user gives: `train(validation=(theta, x))`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sbi.inference
import torch
from torch import Tensor

import sbi_ignite
from sbi_ignite import (
    ArgumentError,
    CheckpointMismatchError,
    DataError,
    LossArgsNPE,
    TrainConfig,
    load_run,
)
from sbi_ignite.inference import NPE
from tests.small import METHODS, SBI_WARNS, Watch, append, draw, empty, ready, same, train

pytestmark = SBI_WARNS
FEW: dict[str, Any] = {"max_epochs": 2}


def held_out(name: str = "NPE_C", num_rows: int = 50) -> Any:
    """Return a validation set for a method, the same in every call."""
    torch.manual_seed(9)
    trainer = append(empty(name), *draw(num_rows))
    return trainer.get_samples() if name == "MarginalTrainer" else trainer.get_simulations()[:2]


def forms(typed: bool) -> tuple[list[TrainConfig], dict[str, Any]]:
    return ([TrainConfig(**FEW)], {}) if typed else ([], {"max_num_epochs": 1})


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_all_simulations_are_trained_on_and_the_given_rows_decide(name: str, typed: bool):
    """In both forms: another validation set changes the validation loss and nothing else."""
    config, kwargs = forms(typed)
    watch = Watch()
    trainer = train(ready(name), *config, **kwargs, validation=held_out(name), callbacks=watch)
    other = train(ready(name), *config, **kwargs, validation=held_out(name, 40))
    assert sorted(trainer.train_indices.tolist()) == list(range(120))
    assert len(trainer.val_indices) == 0
    seen = sum(len(batch) for batch in watch.batches[0])
    assert seen == 120
    mine, others = (t.training_summary for t in (trainer, other))
    assert mine.validation_loss != others.validation_loss
    if typed:  # sbi draws the order of validation from the generator that trains
        assert mine.training_loss == others.training_loss


def test_the_validation_loss_is_that_of_the_given_rows():
    theta, x = held_out()
    trainer = train(ready(), TrainConfig(**FEW), validation=(theta, x))
    with torch.no_grad():
        loss = trainer._neural_net.loss(theta, x).mean().item()
    assert trainer.training_summary.best_validation_loss == pytest.approx(loss, rel=1e-5)


def test_the_network_is_built_from_all_simulations():
    """Its z-scores are those of all rows, not of nine tenths of them."""
    seen: list[Tensor] = []

    def build(theta: Tensor, x: Tensor) -> Any:
        seen.append(x)
        return sbi_ignite_flow(theta, x)

    trainer = ready(density_estimator=build)
    train(trainer, TrainConfig(**FEW), validation=held_out())
    assert len(seen[0]) == 120


def sbi_ignite_flow(theta: Tensor, x: Tensor) -> Any:
    from tests.small import flow

    return flow()(theta, x)


def test_in_sbis_form_its_loaders_would_give_the_same_weights():
    """A trainer of sbi's whose own get_dataloaders does the same, with torch's loaders."""
    theta, x = held_out()
    kwargs = {"max_num_epochs": 3, "training_batch_size": 25}

    class Sbis(sbi.inference.NPE_C):
        def get_dataloaders(self, starting_round: int = 0, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            del args
            from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

            data = self.get_simulations(starting_round)
            self.train_indices, self.val_indices = torch.randperm(len(data[0])), torch.tensor([])
            masks = torch.ones(len(theta), 1, dtype=torch.bool)
            pairs = ((data, self.train_indices), ((theta, x, masks), torch.arange(len(theta))))
            return tuple(
                DataLoader(
                    TensorDataset(*tensors),
                    batch_size=min(25, len(rows)),
                    drop_last=True,
                    sampler=SubsetRandomSampler(rows.tolist()),
                )
                for tensors, rows in pairs
            )

    from tests.small import Silent, box, flow

    torch.manual_seed(1)
    theirs = Sbis(box(), flow(), show_progress_bars=False, tracker=Silent())
    theirs.append_simulations(*draw())
    torch.manual_seed(2)
    theirs.train(**kwargs)
    ours = train(ready(), **kwargs, validation=(theta, x))
    with_loader = train(
        ready(), **kwargs, validation=(theta, x), dataloader_kwargs={"num_workers": 0}
    )
    assert same(ours, theirs)
    assert same(with_loader, theirs)
    assert list(ours.summary["validation_loss"]) == list(theirs.summary["validation_loss"])


def test_it_works_behind_the_patch_too():
    theta, x = held_out()
    sbi_ignite.patch_sbi()
    try:
        trainer = train(ready(inference=sbi.inference), max_num_epochs=1, validation=(theta, x))
    finally:
        sbi_ignite.unpatch_sbi()
    assert trainer.training_summary.validation_set is not None
    assert same(trainer, train(ready(), max_num_epochs=1, validation=(theta, x)))


@pytest.mark.parametrize("typed", [True, False])
def test_with_loaders_of_torch_every_given_row_is_validated_on(typed: bool):
    theta, x = held_out()
    config, kwargs = forms(typed)
    trainer = train(
        ready(),
        *config,
        **kwargs,
        validation=(theta, x),
        **({"dataloader_kwargs": {"num_workers": 0}}),
    )
    with torch.no_grad():
        loss = trainer._neural_net.loss(theta, x).mean().item()
    assert trainer.training_summary.best_validation_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("given", [None, "all", "half"])
def test_in_later_rounds_rows_are_from_the_proposal_unless_masks_say_otherwise(given: Any):
    """The combined loss adds the prior's term for rows from the prior only."""
    trainer = train(ready(), TrainConfig(**FEW))
    posterior = trainer.build_posterior().set_default_x(torch.zeros(1, 2))
    theta = posterior.sample((60,), show_progress_bars=False)
    trainer.append_simulations(theta, theta + 0.1, proposal=posterior)
    masks = {"all": torch.ones(50), "half": np.arange(50) < 25}.get(given)
    rows = held_out()
    seen: list[Tensor] = []
    own = trainer._log_prob_proposal_posterior

    def keep(theta: Tensor, x: Tensor, masks: Tensor, proposal: Any) -> Tensor:
        if not trainer._neural_net.training:
            seen.append(masks)
        return own(theta, x, masks, proposal)

    trainer._log_prob_proposal_posterior = keep
    trainer.train(
        TrainConfig(max_epochs=1, compile="off"),
        validation=rows if masks is None else (*rows, masks),
    )
    share = torch.cat(seen).float().mean().item()
    assert share == {None: 0.0, "all": 1.0, "half": 0.5}[given]


def test_manifest_and_summary_have_its_fingerprint(tmp_path: Path):
    trainer = train(ready(), TrainConfig(**FEW), validation=held_out(), checkpoint=str(tmp_path))
    run = load_run(tmp_path)
    data = run.manifest["validation_data"]
    assert [entry["shape"] for entry in data] == [[50, 2], [50, 2], [50, 1]]
    summary = trainer.training_summary
    assert summary.validation_set == {"data": data}
    assert run.summary is not None
    assert run.summary.validation_set == {"data": data}
    assert "50 rows of its own" in str(summary)
    fraction = summary.config["train"]["validation_fraction"]
    assert fraction["value"] == round(50 / 170, 6)


def test_without_it_the_summary_has_none():
    assert train(ready(), TrainConfig(**FEW)).training_summary.validation_set is None


def test_a_run_goes_on_with_it_and_is_refused_with_another(tmp_path: Path):
    once = train(ready(), TrainConfig(max_epochs=4), validation=held_out())
    kept = {"checkpoint": str(tmp_path)}
    train(ready(), TrainConfig(**FEW), validation=held_out(), **kept)
    with pytest.raises(CheckpointMismatchError, match="validation data differ"):
        train(ready(), TrainConfig(max_epochs=4), validation=held_out(num_rows=40), **kept)
    with pytest.raises(CheckpointMismatchError, match="validation_fraction differs"):
        train(ready(), TrainConfig(max_epochs=4), **kept)
    trainer = train(ready(), TrainConfig(max_epochs=4), validation=held_out(), **kept)
    assert same(trainer, once)
    assert trainer.training_summary.resumed_from_epoch == 2


@pytest.mark.parametrize("typed", [True, False])
def test_a_training_resumed_in_the_process_needs_the_same_one(typed: bool):
    config, kwargs = forms(typed)
    trainer = train(ready(), *config, **kwargs, validation=held_out())
    again = (
        {"train_config": TrainConfig(max_epochs=4, resume_training=True)}
        if typed
        else {"max_num_epochs": 3, "resume_training": True}
    )
    with pytest.raises(ArgumentError, match="continues, got none"):
        trainer.train(**again)
    with pytest.raises(ArgumentError, match="got another one"):
        trainer.train(**again, validation=held_out(num_rows=40))
    trainer.train(**again, validation=held_out())
    assert trainer.training_summary.epochs_trained == 4
    if typed:
        assert same(trainer, train(ready(), TrainConfig(max_epochs=4), validation=held_out()))


@pytest.mark.parametrize("typed", [True, False])
def test_a_validation_fraction_beside_it_is_refused(typed: bool):
    config, kwargs = forms(typed)
    with pytest.raises(ArgumentError, match="validation: expected it without validation_fraction"):
        train(ready(), *config, **kwargs, validation=held_out(), validation_fraction=0.2)


def test_a_fraction_from_the_environment_gives_way_to_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SBI_IGNITE_TRAIN__VALIDATION_FRACTION", "0.3")
    trainer = train(ready(), TrainConfig(**FEW), validation=held_out())
    assert len(trainer.train_indices) == 120


def test_a_trainer_that_makes_its_own_loaders_is_refused():
    class Own(NPE):
        def get_dataloaders(self, *args: Any, **kwargs: Any) -> Any:
            return super().get_dataloaders(*args, **kwargs)

    from tests.small import Silent, box, flow

    trainer = Own(box(), flow(), tracker=Silent(), show_progress_bars=False)
    trainer.append_simulations(*draw())
    with pytest.raises(ArgumentError, match="sbi's own get_dataloaders"):
        trainer.train(TrainConfig(**FEW), validation=held_out())


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (torch.zeros(5, 2), ArgumentError, r"expected \(theta, x\)"),
        ([torch.zeros(5, 2)], ArgumentError, "list of Tensor"),
        ((torch.zeros(5, 2), "x"), ArgumentError, "tuple of Tensor, str"),
        ((torch.zeros(5, 2), torch.zeros(4, 2)), DataError, "got 5 and 4"),
        ((torch.zeros(5, 3), torch.zeros(5, 2)), DataError, r"theta of shape \(num_rows, 2\)"),
        ((torch.zeros(5, 2), torch.zeros(5)), DataError, r"x of shape \(num_rows, 2\)"),
        ((torch.zeros(5, 2), torch.zeros(5, 2), torch.ones(3)), DataError, "a third entry"),
        ((torch.zeros(0, 2), torch.zeros(0, 2)), DataError, "at least 1 valid rows, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(given: Any, error: type[Exception], text: str):
    trainer = ready()
    with pytest.raises(error, match=f"validation: .*{text}"):
        trainer.train(TrainConfig(**FEW), validation=given)
    train(trainer, TrainConfig(**FEW))  # nothing is left of the refused call


def test_contrasts_need_enough_rows_in_it():
    with pytest.raises(DataError, match="expected at least"):
        train(ready("NRE_B"), TrainConfig(**FEW), validation=draw(1))


@pytest.mark.parametrize("exclude", [None, True])
def test_invalid_rows_of_it_are_left_out_as_those_of_simulations_are(exclude: Any):
    theta, x = held_out()
    x = x.clone()
    x[3] = torch.nan
    config = TrainConfig(**FEW)
    trainer = train(ready(), config, LossArgsNPE(exclude_invalid_x=exclude), validation=(theta, x))
    assert trainer.training_summary.validation_set["data"][0]["shape"] == [49, 2]
    with pytest.raises(DataError, match="exclude_invalid_x=False forbids"):
        train(ready(), config, LossArgsNPE(exclude_invalid_x=False), validation=(theta, x))


def test_other_dtypes_and_arrays_are_taken():
    theta, x = held_out()
    arrays = (theta.double().numpy(), x.double())
    trainers = [train(ready(), TrainConfig(**FEW), validation=v) for v in (arrays, (theta, x))]
    assert same(*trainers)
