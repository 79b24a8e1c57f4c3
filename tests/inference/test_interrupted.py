"""After Ctrl-C, the trainer has a summary of what was trained, and it is shown."""

from __future__ import annotations

import os
import signal

import pytest

from sbi_ignite import Callback, TrainConfig
from tests.small import SBI_WARNS, ready

pytestmark = SBI_WARNS


class CtrlC(Callback):
    """Sends SIGINT at the end of an epoch, or in the midst of the next one."""

    def __init__(self, epoch, inside=False):
        self.epoch, self.inside = epoch, inside

    def on_epoch_end(self, state):
        if state.epoch == self.epoch and not self.inside:
            os.kill(os.getpid(), signal.SIGINT)

    def attach(self, engine):
        from ignite.engine import Events

        def send():
            if self.inside and engine.state.epoch == self.epoch + 1:
                os.kill(os.getpid(), signal.SIGINT)

        engine.add_event_handler(Events.ITERATION_STARTED, send)


def interrupted(name, typed, inside=False, epoch=3, shown=None, **kwargs):
    trainer = ready(name)
    kwargs["callbacks"] = [CtrlC(epoch, inside)]
    if shown is not None:
        trainer._show_progress_bars = True
        if name != "MarginalTrainer":  # sbi's has no such keyword
            shown = {"show_train_summary": True}
    fields = {"max_epochs": 6, "batch_size": 20}
    if typed:
        args: tuple = (TrainConfig(**fields, **(shown or {})),)
    else:
        args = ()
        kwargs |= {"max_num_epochs": 6, "training_batch_size": 20, **(shown or {})}
    with pytest.raises(KeyboardInterrupt):
        trainer.train(*args, **kwargs)
    return trainer


@pytest.mark.parametrize("name", ["NPE_C", "NLE_A", "NRE_B", "FMPE", "MarginalTrainer"])
@pytest.mark.parametrize("typed", [True, False], ids=["typed", "sbi"])
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "end"])
def test_ctrl_c_leaves_a_summary_of_what_was_trained(name, typed, inside):
    trainer = interrupted(name, typed, inside)
    summary = trainer.training_summary
    assert (summary.epochs_trained, summary.stop_reason, summary.complete) == (3, "signal", False)
    assert len(summary.training_loss) == len(summary.validation_loss) == 3
    assert summary.best_validation_loss == min(summary.validation_loss)
    assert "signal" in str(summary)


@pytest.mark.parametrize("name", ["NPE_C", "MarginalTrainer"])
def test_sbis_form_prints_what_sbi_prints(name, capsys):
    """The summary is there to be looked at."""
    trainer = interrupted(name, False, epoch=2, shown={})
    assert "ended" not in capsys.readouterr().out
    assert trainer.training_summary.epochs_trained == 2


@pytest.mark.parametrize("name", ["NPE_C", "MarginalTrainer"])
def test_the_last_losses_are_shown_where_progress_is(name, capsys):
    """With the words of other ends, also as a table where it was asked for."""
    trainer = interrupted(name, True, epoch=2, shown={})
    shown = capsys.readouterr().out
    loss = trainer.training_summary.validation_loss[-1]
    assert "Training ended after 2 epochs (signal). Last training loss" in shown
    assert f"validation loss {loss:.4f}; best validation loss" in shown
    assert (str(trainer.training_summary) in shown) == (name != "MarginalTrainer")


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "sbi"])
def test_standard_output_says_how_far_training_came(typed, capsys):
    trainer = interrupted("NPE_C", typed, inside=True, epoch=2, logging="stdout")
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert f"{trainer.training_summary.validation_loss[-1]:.3f}" in last
    assert "epoch 2" in last


def test_an_interrupted_run_says_the_same_in_its_directory(tmp_path):
    trainer = interrupted("NPE_C", True, inside=True, checkpoint=tmp_path)
    assert trainer.training_summary.epochs_trained == 3
    assert trainer.training_summary.run_directory == str(tmp_path)


def test_ctrl_c_in_the_first_epoch_leaves_a_summary_without_losses():
    summary = interrupted("NPE_C", False, inside=True, epoch=0).training_summary
    assert (summary.epochs_trained, summary.training_loss, summary.best_epoch) == (0, (), 0)


def test_after_ctrl_c_training_continues_where_it_was():
    trainer = interrupted("NPE_C", True)
    trainer.train(TrainConfig(max_epochs=6, batch_size=20, resume_training=True))
    summary = trainer.training_summary
    assert (summary.epochs_trained, summary.resumed_from_epoch) == (6, 3)
    assert summary.stop_reason == "max_epochs"
