"""Bad input gets a clear error; nothing is trained and nothing lost."""

from __future__ import annotations

import math

import pytest
import torch

from sbi_ignite import (
    ArgumentError,
    DataError,
    LoggingConfig,
    LossArgsNPE,
    NonFiniteLossError,
    NoSimulationsError,
    SbiIgniteError,
    SettingsError,
    TrainConfig,
    load_run,
)
from sbi_ignite.runs.directory import RunDirectory
from tests.small import METHODS, SBI_WARNS, Watch, append, draw, empty, flow, ready, same, weights

pytestmark = SBI_WARNS

RESUME = TrainConfig(resume_training=True, max_epochs=4)


@pytest.fixture
def trained():
    """Return a trained trainer, its weights, and its attributes as they were."""
    trainer = ready()
    trainer.train(TrainConfig(max_epochs=2))
    return trainer, weights(trainer), dict(vars(trainer))


def untouched(trained) -> bool:
    trainer, before, attributes = trained
    return same(trainer, before) and dict(vars(trainer)) == attributes


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda t: t.train(TrainConfig(batchsize=5)), SettingsError, r"batchsize.*batch_size"),
        (lambda t: t.train(TrainConfig(batch_size="5")), SettingsError, r"batch_size.*'5'"),
        (lambda t: t.train(TrainConfig(batch_size=0)), SettingsError, r"batch_size.*0"),
        (lambda t: t.train(TrainConfig(learning_rate=math.nan)), SettingsError, "learning_rate"),
        (
            lambda t: t.train(TrainConfig(batch_size=5, training_batch_size=5)),
            SettingsError,
            r"batch_size.*training_batch_size|training_batch_size.*batch_size",
        ),
        (lambda t: t.train(training_batch_size="5"), TypeError, r"'5'.*training_batch_size"),
        (lambda t: t.train(TrainConfig(), early_stopping="patience"), TypeError, "early_stopping"),
        (lambda t: t.train(RESUME, callbacks=[object()]), TypeError, "callbacks"),
        (lambda t: t.train(TrainConfig(), num_classes=3), TypeError, "num_classes"),
        (lambda t: t.train(TrainConfig(validation_fraction=1.5)), ValueError, "fraction"),
    ],
)
def test_a_wrong_argument_leaves_a_trained_trainer_as_it_was(trained, call, kind, message):
    with pytest.raises(kind, match=message) as caught:
        call(trained[0])
    assert isinstance(caught.value, SbiIgniteError)
    assert untouched(trained)


def test_a_misspelt_variable_leaves_a_trained_trainer_as_it_was(trained, monkeypatch):
    monkeypatch.setenv("SBI_IGNITE_TRAIN__BATCHSIZE", "5")
    for call in (lambda t: t.train(TrainConfig()), lambda t: t.train(max_num_epochs=1)):
        with pytest.raises(SettingsError, match="SBI_IGNITE_TRAIN__BATCH_SIZE"):
            call(trained[0])
    assert untouched(trained)


@pytest.mark.parametrize("name", METHODS)
def test_a_call_that_is_refused_before_its_first_step_can_be_corrected(name, tmp_path):
    """Otherwise sbi takes the corrected call for a second training of the same network."""
    trainer = ready(name)
    with pytest.raises(ArgumentError, match="every place once"):
        trainer.train(
            TrainConfig(max_epochs=1), logging=[LoggingConfig("jsonl", log_dir=tmp_path)] * 2
        )
    trainer.train(TrainConfig(max_epochs=1))
    assert trainer.training_summary.epochs_trained == 1


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "sbi"])
@pytest.mark.parametrize("name", METHODS)
def test_training_before_simulations_is_refused(name, typed):
    """Every trainer says which method to call first."""
    trainer = empty(name)
    with pytest.raises(NoSimulationsError, match=r"append_(simulations|samples)"):
        trainer.train(*[TrainConfig()] * typed)
    assert trainer._neural_net is None


def test_a_batch_size_that_the_data_cannot_fill_is_refused_in_the_typed_form():
    trainer = ready()
    with pytest.raises(DataError, match=r"batch_size=109.*108"):
        trainer.train(TrainConfig(batch_size=109, max_epochs=1))
    assert trainer._neural_net is None
    trainer.train(TrainConfig(batch_size=108, max_epochs=1))


def test_a_batch_size_from_the_environment_is_named_by_its_variable(monkeypatch):
    monkeypatch.setenv("SBI_IGNITE_TRAIN__BATCH_SIZE", "500")
    with pytest.raises(DataError, match=r"500 .*SBI_IGNITE_TRAIN__BATCH_SIZE"):
        ready().train(TrainConfig())


def test_sbis_form_clamps_a_batch_size_as_sbi_does():
    trainer, watch = ready(), Watch()
    trainer.train(training_batch_size=500, max_num_epochs=1, callbacks=[watch])
    assert [len(batch) for batch in watch.batches[0]] == [108]


def test_the_default_batch_size_adapts_to_few_rows():
    trainer = ready(num_rows=60)
    trainer.train(TrainConfig(max_epochs=1))
    assert trainer.training_summary.epochs_trained == 1


def test_five_simulations_train_in_sbis_form_as_in_sbi():
    import sbi.inference

    ours, sbis = ready(num_rows=5), ready(num_rows=5, inference=sbi.inference)
    for trainer in (ours, sbis):
        torch.manual_seed(4)
        trainer.train(max_num_epochs=3)
    assert same(ours, sbis)


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "sbi"])
@pytest.mark.parametrize("name", ["NPE_C", "NLE_A", "NRE_B", "FMPE", "MarginalTrainer"])
def test_a_validation_set_that_would_be_empty_is_refused(name, typed):
    trainer = ready(name, num_rows=120)
    fraction = 1e-17
    arguments = [TrainConfig(validation_fraction=fraction)] if typed else []
    keywords = {} if typed else {"validation_fraction": fraction}
    with pytest.raises(DataError, match=r"(?i)validation set"):
        trainer.train(*arguments, **keywords)
    assert trainer._neural_net is None


# --- a loss that becomes NaN


def breaks_at(call: int, row: torch.Tensor):
    """Return a builder of a flow whose loss, at one call in train mode, is NaN for one row."""

    def build(theta, x):
        net = flow()(theta, x)
        loss, calls = net.loss, [0]

        def broken(inputs, condition):
            losses = loss(inputs, condition)
            calls[0] += net.training
            if net.training and calls[0] >= call:
                bad = (inputs == row).all(dim=-1)
                losses = torch.where(bad, torch.nan, losses)
            return losses

        net.loss = broken
        return net

    return build


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "sbi"])
def test_a_loss_that_becomes_nan_in_epoch_three_keeps_the_best_weights(typed):
    """The error names epoch, iteration and row; the posterior afterwards uses the best so far."""
    torch.manual_seed(1)
    theta, x = draw()
    probe = ready()
    torch.manual_seed(7)
    probe.train(training_batch_size=27, max_num_epochs=1)
    row = int(probe.train_indices[0])

    trainer, watch = empty("NPE_C", density_estimator=breaks_at(9, theta[row])), Watch()
    append(trainer, theta, x)
    torch.manual_seed(7)
    # 108 training rows are four batches of 27, so that the ninth call begins epoch three.
    arguments = [TrainConfig(batch_size=27, max_epochs=9)] if typed else []
    keywords = {} if typed else {"training_batch_size": 27, "max_num_epochs": 8}
    with pytest.raises(NonFiniteLossError, match=r"epoch 3") as caught:
        trainer.train(*arguments, **keywords, callbacks=[watch])

    error = caught.value
    assert error.epoch == 3
    assert error.iteration in (9, 10, 11, 12)
    assert error.rows == (row,)
    assert isinstance(error, ValueError)

    losses = trainer._summary["validation_loss"]
    assert len(losses) == len(watch.weights) == 2
    best = watch.weights[losses.index(min(losses))]
    posterior = trainer.build_posterior()
    assert same(trainer, best)
    assert same(posterior.posterior_estimator, best)
    assert posterior.sample((3,), x=torch.zeros(1, 2), show_progress_bars=False).isfinite().all()


def test_the_epoch_of_a_resumed_training_in_sbis_form_is_counted_on():
    """Epochs in the error are counted as in the summary, over all legs."""
    torch.manual_seed(1)
    theta, x = draw()
    trainer = append(empty("NPE_C", density_estimator=breaks_at(13, theta[:1])), theta, x)
    trainer.train(training_batch_size=27, max_num_epochs=1)
    if 0 not in trainer.train_indices:
        trainer.train_indices[0], trainer.val_indices[trainer.val_indices == 0] = (
            0,
            int(trainer.train_indices[0]),
        )
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train(training_batch_size=27, max_num_epochs=9, resume_training=True)
    assert caught.value.epoch == 4


def test_a_loss_that_is_nan_at_once_says_so_and_a_new_training_works():
    trainer = ready(density_estimator=breaks_at(1, torch.tensor([torch.inf])))
    broken = ready(density_estimator=lambda theta, x: _always_nan(flow()(theta, x)))
    with pytest.raises(NonFiniteLossError, match="epoch 1, iteration 1"):
        broken.train(TrainConfig(max_epochs=2), LossArgsNPE())
    trainer.train(TrainConfig(max_epochs=1))


def breaks_in_validation(epoch, batches=1):
    """Return a builder of flows whose validation loss of one row is infinite from an epoch on."""

    def build(theta, x):
        net, calls = flow()(theta, x), [0]
        loss = net.loss

        def broken(inputs, condition):
            losses = loss(inputs, condition)
            calls[0] += not net.training
            if not net.training and calls[0] > (epoch - 1) * batches:
                losses = torch.where(torch.arange(len(losses)) == 2, torch.inf, losses)
            return losses

        net.loss = broken
        return net

    return build


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "sbi"])
def test_an_infinite_validation_loss_is_an_error_and_the_best_weights_are_kept(typed, tmp_path):
    """As in sbi, whose losses raise a ValueError in training and validation alike."""
    # sbi's form validates in batches of 12, of which 12 rows make one, as does the typed form.
    trainer, watch = ready(density_estimator=breaks_in_validation(3)), Watch()
    arguments = [TrainConfig(batch_size=12, max_epochs=9)] if typed else []
    keywords = {} if typed else {"training_batch_size": 12, "max_num_epochs": 8}
    with pytest.raises(NonFiniteLossError, match=r"validation loss.*epoch 3") as caught:
        trainer.train(*arguments, **keywords, callbacks=[watch], checkpoint=str(tmp_path / "run"))

    error = caught.value
    assert (error.validation, error.epoch, error.iteration) == (True, 3, 27)
    assert isinstance(error, ValueError)
    (row,) = error.rows
    assert row in trainer.val_indices.tolist()

    losses = trainer._summary["validation_loss"]
    assert len(losses) == len(watch.weights) == 2
    best = watch.weights[losses.index(min(losses))]
    assert same(trainer, best)
    posterior = trainer.build_posterior()
    assert posterior.sample((3,), x=torch.zeros(1, 2), show_progress_bars=False).isfinite().all()

    run = load_run(tmp_path / "run")
    assert run.manifest["status"] == "failed"
    assert len(run.metrics) == 2
    (file,) = (tmp_path / "run").rglob("best.pt")
    with RunDirectory.open(file.parent) as directory:
        assert same(directory.read_best()["weights"], best)


def test_sbi_refuses_an_infinite_validation_loss_too():
    """What the test above calls sbi's own behaviour."""
    import sbi.inference

    trainer = ready(inference=sbi.inference, density_estimator=breaks_in_validation(3))
    with pytest.raises(ValueError, match="NaN/Inf present in NPE loss"):
        trainer.train(training_batch_size=12, max_num_epochs=8)


@pytest.mark.parametrize("method", ["_train_epoch", "_validate_epoch"])
@pytest.mark.parametrize("typed", [True, False], ids=["typed", "sbi"])
def test_what_an_overridden_epoch_method_returns_is_held_to_the_rule_of_its_form(method, typed):
    """In sbi, and hence in its form, only the losses themselves are checked."""
    import sbi_ignite.inference

    class Own(sbi_ignite.inference.NPE_C):
        pass

    def epoch(self, *args):
        return math.nan if self.epoch == 1 else 1.0

    setattr(Own, method, epoch)
    torch.manual_seed(1)
    trainer = empty("NPE_C")
    trainer.__class__ = Own
    append(trainer, *draw())
    if typed:
        with pytest.raises(NonFiniteLossError, match=rf"{method}\(\) returned.*epoch 2") as caught:
            trainer.train(TrainConfig(max_epochs=3))
        assert caught.value.validation == (method == "_validate_epoch")
        return
    with pytest.warns(UserWarning, match="Maximum number of epochs"):
        trainer.train(max_num_epochs=2)
    name = "training_loss" if method == "_train_epoch" else "validation_loss"
    assert trainer._summary[name] == pytest.approx([1.0, math.nan, 1.0], nan_ok=True)


def _always_nan(net):
    loss = net.loss
    net.loss = lambda inputs, condition: loss(inputs, condition) * torch.nan
    return net
