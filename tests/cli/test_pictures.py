"""Pictures of trainings show what was recorded, and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sbi_ignite import (
    CheckpointConfig,
    EarlyStopping,
    LoggingConfig,
    LossArgsNRE,
    LRSchedule,
    Stage,
    TrainConfig,
    TrainingSummary,
    WeightAveraging,
    load_run,
)
from sbi_ignite.callback import History
from sbi_ignite.pictures import Curves, draw_comparison
from sbi_ignite.runs.load import summary_from
from tests.small import ready

STAGES = (Stage(max_epochs=2), Stage(max_epochs=3, lr_factor=0.1), Stage(max_epochs=1))


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> TrainingSummary:
    trainer = ready("NPE_C", 100)
    run = tmp_path_factory.mktemp("staged") / "run"
    trainer.train(TrainConfig(batch_size=50, stages=STAGES), checkpoint=run)
    return trainer.training_summary


def bands(figure: Figure) -> list[tuple[float, float]]:
    """Return where the losses are shaded."""
    return [(p.get_x(), p.get_x() + p.get_width()) for p in figure.axes[0].patches]


def names(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def panels(figure: Figure) -> list[str]:
    return [axes.get_ylabel().replace("\n", " ") for axes in figure.axes]


def test_learning_rate_and_gradient_norm_are_below_the_losses(staged):
    figure = staged.plot()
    assert panels(figure) == ["loss", "learning rate", "gradient norm"]
    losses, rates, norms = figure.axes
    assert list(rates.lines[0].get_ydata()) == list(staged.learning_rate)
    assert list(norms.lines[0].get_ydata()) == list(staged.gradient_norm)
    assert losses.get_title() == "NPE_C: 6 epochs, stopped by patience"
    assert rates.get_yscale() == "log"  # it changes by a factor of ten
    best = f"best: epoch {staged.best_epoch}, {staged.best_validation_loss:.3f}"
    assert best in [text.get_text() for text in losses.get_legend().get_texts()]


def test_the_stages_are_recorded_and_shaded(staged):
    assert staged.stage == (1, 1, 2, 2, 2, 3)
    figure = staged.plot()
    assert names(figure) == ["stage 1", "stage 2", "stage 3"]
    assert bands(figure) == [(2.5, 5.5)]


def test_the_run_directory_draws_the_same_stages(staged):
    run = load_run(staged.run_directory)
    assert run.summary == staged
    assert [row["stage"] for row in run.metrics] == list(staged.stage)
    assert names(run.plot()) == ["stage 1", "stage 2", "stage 3"]


def test_what_was_not_recorded_is_not_drawn(staged):
    """A run of an earlier build has no stages; norms may be unknown; there may be no epoch."""
    earlier = staged.to_dict()
    del earlier["stage"]
    without = replace(summary_from(earlier), gradient_norm=(math.nan,) * 6)
    assert without.stage == ()
    assert panels(without.plot()) == ["loss", "learning rate"]
    assert bands(without.plot()) == names(without.plot()) == []
    empty = replace(
        without,
        epochs_trained=0,
        best_epoch=0,
        best_validation_loss=math.inf,
        training_loss=(),
        validation_loss=(),
        learning_rate=(),
        gradient_norm=(),
    )
    assert panels(empty.plot()) == ["loss"]
    empty.plot().canvas.draw()


def test_a_history_of_an_earlier_build_has_unknown_stages():
    history = History()
    history.append(training_loss=1.0)
    state = history.state_dict()
    del state["stage"]
    history.load_state_dict(state)
    assert history.stages == ()
    history.append(stage=2.0)
    assert history.stages == (0, 2)


def test_a_run_with_rounds_shades_them_on_one_axis(trained):
    run = load_run(trained / "rounds")
    figure = run.plot()
    assert names(figure) == ["round 0", "round 1"]
    assert bands(figure) == [(3.5, 5.5)]
    validation = [line for line in figure.axes[0].lines if line.get_color() == "C1"]
    assert [list(line.get_xdata()) for line in validation] == [[1, 2, 3], [4, 5]]


def test_a_run_is_a_table_in_notebooks(trained):
    html = load_run(trained / "rounds")._repr_html_()
    assert html.count("<tr>") == 3
    assert "<th>round 1</th><td>complete</td><td>2</td>" in html
    html = load_run(trained / "one")._repr_html_()
    assert "<th>NPE_C</th><td>complete</td><td>4</td>" in html


def test_a_run_that_is_still_training_can_be_drawn(trained, tmp_path):
    """Its last line may be half written."""
    import shutil

    from sbi_ignite.runs.directory import RunDirectory

    run = Path(shutil.copytree(trained / "one", tmp_path / "run"))
    (run / "summary.json").unlink()
    with RunDirectory.open(run) as directory:
        directory.update_manifest(status="running", stop_reason=None)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 5, "trai')
    figure = load_run(run).plot()
    assert figure.axes[0].get_title() == "NPE_C: running"
    assert len(figure.axes[0].lines[0].get_xdata()) == 4


def test_pictures_are_shown_in_notebooks(staged, trained):
    for figure in (staged.plot(), load_run(trained / "one").plot()):
        assert figure._repr_png_().startswith(b"\x89PNG")


def curves(name: str, values: tuple[float, ...], validated: bool = True) -> Curves:
    validation = values if validated else ()
    return Curves(name, values, validation, best_epoch=len(values), best_loss=values[-1])


def test_a_comparison_has_a_line_and_a_name_for_each_run():
    figure = draw_comparison(
        [curves("a", (2.0, 1.0)), curves("b", (3.0, 2.0), validated=False), Curves("c")]
    )
    (axes,) = figure.axes
    drawn = {line.get_label(): line for line in axes.lines if line.get_label() in "abc"}
    assert set(drawn) == {"a", "b"}
    assert drawn["b"].get_linestyle() == "--"
    assert axes.get_ylabel() == "validation loss (dashed: training loss)"


def test_a_comparison_of_many_runs_names_the_first_and_counts_the_rest():
    figure = draw_comparison([curves(f"run {i}", (2.0, 1.0 + i)) for i in range(30)])
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 12
    assert legend.get_title().get_text() == "and 18 more"
    colors = {line.get_color() for line in figure.axes[0].lines}
    assert len(colors) == 30
    figure.canvas.draw()


SETTINGS = (
    TrainConfig(batch_size=77),
    EarlyStopping.validation_loss(patience=7),
    LoggingConfig("mlflow", tracking_uri="https://me:hunter2@example.org"),
    CheckpointConfig("runs/exp1"),
    LRSchedule("cosine", warmup_steps=5),
    WeightAveraging("power"),
    Stage(lr_factor=0.1),
    LossArgsNRE(num_atoms=5),
)


@pytest.mark.parametrize("value", SETTINGS, ids=lambda value: type(value).__name__)
def test_settings_are_a_table_of_fields_values_and_meanings_in_notebooks(value):
    html = value._repr_html_()
    assert html.startswith(f"<table><caption>{type(value).__name__}</caption>")
    for name, info in type(value).model_fields.items():
        assert f"<th>{name}</th>" in html
        assert escape(info.description or "?") in html
    assert "hunter2" not in html
