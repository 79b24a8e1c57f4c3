"""The losses of the methods are sbi's, row by row, under the same random state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sbi_ignite.bridge.losses import TrainersOwnLoss, loss_of
from sbi_ignite.methods.base import LossArgs
from sbi_ignite.training.steps import summed_as_sbi
from tests.small import METHODS, SBI_WARNS, ready, second_round

pytestmark = SBI_WARNS


class ArgumentsFoundError(Exception):
    """Ends a training as soon as its loss arguments are known."""


def loss_arguments(trainer, monkeypatch, **keywords):
    """Train once, and return what sbi's train() hands to the loop in a second call."""
    trainer.train(max_num_epochs=1, **keywords)

    def capture(self, train_loader, val_loader, train_config, loss_args=None, **kwargs):
        raise ArgumentsFoundError(loss_args)

    with monkeypatch.context() as patch:
        patch.setattr(type(trainer), "_run_training_loop", capture)
        with pytest.raises(ArgumentsFoundError) as caught:
            trainer.train(max_num_epochs=1, **keywords, resume_training=True)
    return caught.value.args[0]


def both(trainer, args, batch, validate=False):
    """Return our losses and sbi's, from the same random state."""
    ours = loss_of(trainer, args, as_sbi=True)
    assert not isinstance(ours, TrainersOwnLoss)
    ours = getattr(ours, "validate", ours) if validate else ours
    torch.manual_seed(5)
    one = ours(trainer._neural_net, batch)
    torch.manual_seed(5)
    if args is None:
        return one, trainer._get_losses(batch=batch)
    if hasattr(args, "times") and not validate:
        args = replace(args, times=None)
    return one, trainer._get_losses(batch=batch, loss_args=args)


@pytest.mark.parametrize("validate", [False, True], ids=["train", "validate"])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "MarginalTrainer"])
def test_a_loss_is_bitwise_that_of_sbi(name, validate, monkeypatch):
    trainer = ready(name, num_rows=100)
    args = loss_arguments(trainer, monkeypatch)
    batch = tuple(tensor[:20] for tensor in trainer.get_simulations())
    ours, sbis = both(trainer, args, batch, validate)
    assert torch.equal(ours, sbis)
    assert ours.requires_grad


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("NRE_B", {"num_atoms": 3}),
        ("NRE_C", {"num_classes": 2, "gamma": 3.0}),
        ("BNRE", {"regularization_strength": 7.0}),
        ("NPE_C", {"calibration_kernel": lambda x: x[:, 0].abs()}),
        ("FMPE", {"calibration_kernel": lambda x: x[:, 0].abs()}),
    ],
)
def test_a_loss_with_arguments_is_bitwise_that_of_sbi(name, keywords, monkeypatch):
    trainer = ready(name, num_rows=100)
    args = loss_arguments(trainer, monkeypatch, **keywords)
    batch = tuple(tensor[:20] for tensor in trainer.get_simulations())
    ours, sbis = both(trainer, args, batch)
    assert torch.equal(ours, sbis)


def test_the_atomic_loss_is_bitwise_that_of_sbi(monkeypatch):
    trainer = ready("NPE_C", num_rows=100)
    trainer.train(max_num_epochs=1)
    second_round(trainer)
    args = loss_arguments(trainer, monkeypatch)
    batch = tuple(tensor[:20] for tensor in trainer.get_simulations())
    ours, sbis = both(trainer, args, batch)
    assert torch.equal(ours, sbis)


@pytest.mark.parametrize("name", ["NRE_A", "NRE_B", "NRE_C", "BNRE"])
def test_losses_by_row_have_the_mean_that_sbi_returns(name, monkeypatch):
    trainer = ready(name, num_rows=100)
    args = loss_arguments(trainer, monkeypatch)
    batch = tuple(tensor[:20] for tensor in trainer.get_simulations())
    mean, rows = loss_of(trainer, args, as_sbi=True), loss_of(trainer, args, as_sbi=False)
    rows = replace(rows, classifier_logits=mean.classifier_logits)
    torch.manual_seed(5)
    expected = mean(trainer._neural_net, batch)
    torch.manual_seed(5)
    losses = rows(trainer._neural_net, batch)
    assert losses.shape == (20,)
    torch.testing.assert_close(losses.mean(), expected)
    # What two processes count of a batch that they share adds up to what sbi counts.
    shares = (losses[:13], losses[13:])
    counted = [summed_as_sbi(share, batch, mean_over=rows.mean_over) for share in shares]
    assert sum(output.loss_sum for output in counted) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("rows", "number"), [(20, 3), (100, 3), (101, 2), (150, 2), (151, 1)])
@pytest.mark.parametrize("name", ["NRE_A", "NRE_B", "NRE_C", "BNRE"])
def test_few_validation_rows_meet_several_draws_of_others_in_the_typed_form(
    name, rows, number, monkeypatch
):
    """In sbi's form they meet one, as in sbi."""
    trainer = ready(name, num_rows=200)
    args = loss_arguments(trainer, monkeypatch)
    batch = tuple(tensor[:rows] for tensor in trainer.get_simulations())
    as_sbi, typed = (loss_of(trainer, args, as_sbi=form) for form in (True, False))
    net = trainer._neural_net
    torch.manual_seed(5)
    draws = [typed(net, batch) for _ in range(number)]
    following = torch.rand(())
    torch.manual_seed(5)
    torch.testing.assert_close(typed.validate(net, batch), sum(draws) / number)
    assert torch.rand(()) == following
    assert all(not torch.equal(draws[0], other) for other in draws[1:])
    torch.manual_seed(5)
    once = as_sbi(net, batch)
    torch.manual_seed(5)
    assert torch.equal(as_sbi.validate(net, batch), once)


def test_a_trainer_that_overrides_the_loss_keeps_its_own():
    """On the class or on the instance."""
    import sbi_ignite.inference

    class Doubled(sbi_ignite.inference.NPE):
        def _loss(self, *args, **kwargs):
            return 2 * super()._loss(*args, **kwargs)

    trainer = ready()
    trainer.__class__ = Doubled
    trainer.train(max_num_epochs=1)
    assert isinstance(loss_of(trainer, None, as_sbi=True), TrainersOwnLoss)

    plain = ready()
    plain._get_losses = lambda **kwargs: None
    assert isinstance(loss_of(plain, None, as_sbi=True), TrainersOwnLoss)


def test_every_family_of_loss_arguments_builds_on_the_base():
    import sbi_ignite

    families = [
        getattr(sbi_ignite, name) for name in sbi_ignite.__all__ if name.startswith("LossArgs")
    ]
    assert len(families) == 9
    for kind in families:
        assert issubclass(kind, LossArgs)
        assert kind(exclude_invalid_x=True) == kind(exclude_invalid_x=True)
        assert hash(kind()) == hash(kind())
