"""User callbacks and ignite handlers see the training and may end it."""

from __future__ import annotations

import json

import pytest
import torch
from ignite.engine import Events
from ignite.handlers import Checkpoint, EpochOutputStore, Timer
from ignite.handlers.tqdm_logger import ProgressBar
from matplotlib.figure import Figure
from torch import nn

from sbi_ignite import ArgumentError, Callback, EarlyStopping, TrainConfig, run_training
from sbi_ignite.runs.directory import RunDirectory
from tests.small import ready, standing_still

BATCHES = [torch.randn(8, 2, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def loss(model, x):
    return (model(x) - 1).square().mean(dim=1)


def train(*callbacks, config=None, **kwargs):
    torch.manual_seed(0)
    config = config or TrainConfig(max_epochs=3)
    return run_training(
        config, nn.Linear(2, 1), loss, BATCHES, BATCHES[:1], callbacks=callbacks, **kwargs
    )


class Everything(Callback):
    """Write down every call."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def on_train_start(self, state):
        self.calls.append((self.name, "start", state.epoch))

    def on_epoch_end(self, state):
        self.calls.append((self.name, "epoch", state.epoch))

    def on_train_end(self, summary):
        self.calls.append((self.name, "end", summary.epochs_trained))

    def on_exception(self, error, state):
        self.calls.append((self.name, "error", state.epoch))


def test_callbacks_are_called_at_their_moments_and_in_their_order():
    calls = []
    train(Everything("a", calls), Everything("b", calls))
    moments = [("start", 0), ("epoch", 1), ("epoch", 2), ("epoch", 3), ("end", 3)]
    assert calls == [(name, *moment) for moment in moments for name in "ab"]


def test_on_saved_finds_a_complete_run_and_what_it_raises_leaves_it_complete(tmp_path):
    class Last(Callback):
        def on_saved(self, summary):
            status = json.loads((tmp_path / "run.json").read_text())["status"]
            raise LookupError(f"{status} after {summary.epochs_trained}, directory free")

    for _ in range(2):  # the run is complete, and the callback is called again
        with pytest.raises(LookupError, match="complete after 3, directory free"):
            train(Last(), checkpoint=str(tmp_path))
        RunDirectory.open(tmp_path).close()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "complete"


def test_callbacks_hear_of_an_exception_and_it_is_raised():
    calls = []

    class Fails:
        def on_epoch_end(self, state):
            raise LookupError("not found")

    with pytest.raises(LookupError, match="not found"):
        train(Everything("a", calls), Fails())
    assert calls == [("a", "start", 0), ("a", "epoch", 1), ("a", "error", 1)]


def test_the_state_tells_all_that_the_contract_names():
    seen = []

    class Look:
        def on_epoch_end(self, state):
            seen.append(
                (
                    state.epoch,
                    state.iteration,
                    state.train_loss,
                    state.validation_loss,
                    state.best_validation_loss,
                    state.learning_rate,
                    type(state.model),
                )
            )

    _, summary = train(Look(), config=TrainConfig(max_epochs=2, learning_rate=0.05))
    assert [row[:2] for row in seen] == [(1, 3), (2, 6)]
    assert tuple(row[2] for row in seen) == summary.training_loss
    assert tuple(row[3] for row in seen) == summary.validation_loss
    assert [row[4] for row in seen] == [
        min(summary.validation_loss[:1]),
        min(summary.validation_loss[:2]),
    ]
    assert {row[5:] for row in seen} == {(0.05, nn.Linear)}


def test_a_callback_may_stop_and_say_why():
    class Enough:
        def on_epoch_end(self, state):
            if state.epoch == 2:
                state.stop("the reviewer said it is enough")

    _, summary = train(Enough(), config=TrainConfig())
    assert summary.epochs_trained == 2
    assert summary.stop_reason == "callback"
    assert summary.stop_message == "the reviewer said it is enough"
    assert "the reviewer said it is enough" in str(summary)


def test_a_callback_may_stop_before_the_first_epoch():
    class Enough:
        def on_train_start(self, state):
            state.stop()

    _, summary = train(Enough())
    assert summary.epochs_trained == 0
    assert summary.stop_reason == "callback"
    str(summary)


# --- ignite's handlers


def test_ignite_handlers_attach_to_the_training_engine(capsys):
    """A timer counts the iterations, a bar draws itself, a store keeps each output."""
    timer, outputs = Timer(average=True), EpochOutputStore(lambda output: output.rows)

    class StartTimer:
        def attach(self, engine):
            timer.attach(engine, start=Events.STARTED, step=Events.ITERATION_COMPLETED)

    train(StartTimer(), outputs, ProgressBar(persist=True, ncols=60))
    assert timer.step_count == 9
    assert outputs.data == [8, 8, 8]
    assert "Epoch [3/3]" in capsys.readouterr().err


def test_an_ignite_checkpoint_finds_the_metrics(tmp_path):
    """engine.state.metrics has the losses when EPOCH_COMPLETED handlers of users run."""
    seen = []

    class Save:
        def attach(self, engine):
            self.model = nn.Linear(1, 1)
            saver = Checkpoint(
                {"model": self.model},
                str(tmp_path),
                score_function=Checkpoint.get_default_score_fn("validation_loss", -1.0),
                score_name="loss",
                n_saved=None,
            )
            engine.add_event_handler(Events.EPOCH_COMPLETED, saver)
            engine.add_event_handler(
                Events.EPOCH_COMPLETED, lambda: seen.append(dict(engine.state.metrics))
            )

    _, summary = train(Save(), config=TrainConfig(max_epochs=2))
    assert len(list(tmp_path.glob("model_loss=*.pt"))) == 2
    assert [m["validation_loss"] for m in seen] == list(summary.validation_loss)
    assert [m["training_loss"] for m in seen] == list(summary.training_loss)
    assert {"learning_rate", "gradient_norm"} <= set(seen[0])


def test_ignite_handlers_attach_through_an_sbi_trainer():
    timer = Timer()
    trainer = ready()
    trainer.train(TrainConfig(max_epochs=1), callbacks=timer)
    assert timer.value() > 0


# --- stopping


def test_any_one_of_several_rules_stops():
    rules = [
        EarlyStopping.validation_loss(patience=50),
        EarlyStopping.when(lambda state: state.epoch == 2),
        EarlyStopping.when(lambda state: False),
    ]
    _, summary = train(config=TrainConfig(), early_stopping=rules)
    assert (summary.epochs_trained, summary.stop_reason) == (2, "rule")


def test_never_trains_all_epochs():
    """Thirty epochs without improvement would exhaust the default patience of twenty."""
    still = TrainConfig(max_epochs=30, optimizer=standing_still)
    _, patient = train(config=still, early_stopping=EarlyStopping.never())
    _, default = train(config=still)
    assert (patient.epochs_trained, patient.stop_reason) == (30, "max_epochs")
    assert (default.epochs_trained, default.stop_reason) == (21, "patience")


def test_min_delta_counts_from_the_last_improvement():
    """A slow steady descent is progress; the same descent below min_delta in all is none."""
    decreasing = iter(1 - 0.04 * i for i in range(100))

    class Slow:
        def __call__(self, model, x):
            return loss(model, x)

        def validate(self, model, x):
            return torch.tensor(next(decreasing))

    _, summary = run_training(
        TrainConfig(max_epochs=12),
        nn.Linear(2, 1),
        Slow(),
        BATCHES,
        BATCHES[:1],
        early_stopping=EarlyStopping.validation_loss(patience=4, min_delta=0.1),
    )
    assert summary.stop_reason == "max_epochs"

    _, stopped = train(
        config=TrainConfig(max_epochs=12, learning_rate=1e-7),
        early_stopping=EarlyStopping.validation_loss(patience=4, min_delta=0.1),
    )
    assert (stopped.stop_reason, stopped.epochs_trained) == ("patience", 5)


# --- the summary


def test_the_summary_prints_plots_and_becomes_plain_data():
    _, summary = train()
    text = str(summary)
    assert "max_epochs" in text
    assert f"{summary.best_validation_loss:.4f}" in text
    assert max(map(len, text.splitlines())) < 100

    plain = json.loads(json.dumps(summary.to_dict()))
    assert plain["validation_loss"] == list(summary.validation_loss)
    assert plain["config"]["train"]["max_epochs"] == {
        "value": 3,
        "origin": "call",
        "where": "TrainConfig(max_epochs=...)",
    }

    figure = summary.plot()
    assert isinstance(figure, Figure)
    axes, *_ = figure.axes
    curves = {line.get_label(): line for line in axes.lines}
    assert list(curves["training"].get_ydata()) == list(summary.training_loss)
    assert list(curves["validation"].get_ydata()) == list(summary.validation_loss)
    best = next(line for label, line in curves.items() if label.startswith("best"))
    assert best.get_xydata().tolist() == [[summary.best_epoch, summary.best_validation_loss]]


def test_the_summary_cannot_be_changed():
    _, summary = train()
    with pytest.raises(AttributeError):
        summary.epochs_trained = 7
    assert summary.complete
    assert (summary.device, summary.world_size, summary.run_directory) == ("cpu", 1, None)


def test_a_plot_of_a_training_without_validation_data_marks_the_best_epoch():
    _, summary = run_training(TrainConfig(max_epochs=2), nn.Linear(2, 1), loss, BATCHES)
    summary.plot().canvas.draw()
    assert summary.best_epoch == 2


def test_a_hook_that_would_never_be_called_is_refused_by_name():
    class Misspelt(Callback):
        def on_epochs_end(self, state):
            """Never called."""

    with pytest.raises(ArgumentError, match=r"on_epochs_end .*Did you mean on_epoch_end\?"):
        train(Misspelt())


def test_a_class_instead_of_a_callback_is_refused():
    class Counting:
        def on_epoch_end(self, state):
            """Count."""

    with pytest.raises(ArgumentError, match=r"expected an instance, got the class Counting"):
        train(Counting)


def test_one_object_listed_twice_is_refused():
    class Counting(Callback):
        def on_epoch_end(self, state):
            """Count."""

    once = Counting()
    with pytest.raises(ArgumentError, match=r"expected every object once, got .*Counting.* twice"):
        train(once, once)
    train(once, Counting())


def test_a_hook_with_other_arguments_is_refused_before_training():
    class Without:
        def on_epoch_end(self):
            """Take no state."""

    class Alone:
        def on_exception(self, error):
            """Take no state."""

    with pytest.raises(ArgumentError, match=r"Without: expected on_epoch_end\(state\), got"):
        train(Without())
    with pytest.raises(ArgumentError, match=r"Alone: expected on_exception\(error, state\), got"):
        train(Alone())
