"""Every backend holds what was trained, value by value and step by step."""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sbi_ignite.loggers
from sbi_ignite import LoggingConfig, TrainConfig, TrainingSummary, run_training
from sbi_ignite.loggers import EPOCH_METRICS, Backend, Memory
from tests.loggers import read
from tests.loggers.small import trained


class Recorder:
    """sbi's tracker protocol, kept in lists."""

    log_dir = None

    def __init__(self) -> None:
        self.metrics: list[Any] = []
        self.params: dict[str, Any] = {}
        self.figures: list[str] = []

    def log_metric(self, name: str, value: float, step: int | None = None) -> None:
        self.metrics.append((step, {name: value}))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append((step, dict(metrics)))

    def log_params(self, params: dict[str, Any]) -> None:
        self.params |= params

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        self.figures.append(name)

    def flush(self) -> None:
        """Have nothing to write."""


def _log_to_tracker(folder: Path) -> tuple[Any, Callable[[], read.Rows]]:
    tracker = Recorder()
    return tracker, lambda: tracker.metrics


def _log_to_ignite(folder: Path) -> tuple[Any, Callable[[], read.Rows]]:
    from ignite.handlers import TensorboardLogger

    logger = TensorboardLogger(log_dir=str(folder / "ignite"))

    def rows() -> read.Rows:
        logger.close()
        return read.tensorboard(folder / "ignite", "sbi/")

    return logger, rows


def _memory_rows() -> read.Rows:
    memory = Memory.latest
    assert memory is not None
    return [(r["step"], {n: v for n, v in r.items() if n != "step"}) for r in memory.rows]


def _log_to_mlflow(folder: Path) -> tuple[Any, Callable[[], read.Rows]]:
    uri = f"sqlite:///{folder}/mlflow.db"
    config = LoggingConfig("mlflow", tracking_uri=uri)
    return config, lambda: read.mlflow(uri, read.only_mlflow_run_id(uri))


LOG_TO: dict[str, Callable[[Path], tuple[Any, Callable[[], read.Rows]]]] = {
    "memory": lambda folder: ("memory", _memory_rows),
    "jsonl": lambda folder: (
        LoggingConfig("jsonl", log_dir=folder / "j"),
        lambda: read.jsonl(folder / "j" / "metrics.jsonl"),
    ),
    "tensorboard": lambda folder: (
        LoggingConfig("tensorboard", log_dir=folder / "tb"),
        lambda: read.tensorboard(folder / "tb"),
    ),
    "wandb": lambda folder: (LoggingConfig("wandb", mode="offline"), lambda: read.wandb(folder)),
    "mlflow": _log_to_mlflow,
    "tracker": _log_to_tracker,
    "ignite": _log_to_ignite,
}
"""How to log to each backend that keeps numbers, and how to read them back."""

SINGLE_PRECISION = {"tensorboard", "ignite"}


def _slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


def expected(summary: TrainingSummary) -> read.Rows:
    """Return what has to be logged."""
    best = list(accumulate(summary.validation_loss, min))
    assert best[-1] == summary.best_validation_loss
    epochs = range(summary.epochs_trained)
    own = {
        "best_validation_loss": best,
        "patience_left": [20 - (i - int(np.argmin(best[: i + 1]))) for i in epochs],
    }
    columns = {n: own[n] if n in own else getattr(summary, n) for n in EPOCH_METRICS}
    return [(i + 1, {n: columns[n][i] for n in EPOCH_METRICS}) for i in epochs]


def test_the_law_knows_every_backend() -> None:
    """Whoever writes a class of backends has to say here how to read it back."""
    around_others = {"SubprocessBackend", "OnHelperThread"}
    names = {
        cls.name
        for module in pkgutil.iter_modules(sbi_ignite.loggers.__path__, "sbi_ignite.loggers.")
        for cls in vars(importlib.import_module(module.name)).values()
        if isinstance(cls, type) and issubclass(cls, Backend) and cls is not Backend
        if cls.__name__ not in around_others
    }
    # Lines on stdout are read below, and there is nothing to read of "none".
    assert names == set(LOG_TO) | {"stdout", "none"}
    assert set(LoggingConfig.takes) == names - {"tracker", "ignite"}


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("name", LOG_TO)
def test_a_backend_holds_what_was_trained(name: str, tmp_path: Path) -> None:
    """Every value of every epoch, once, and training ends as without logging."""
    logging, rows = LOG_TO[name](tmp_path)
    outcome = trained(logging)
    assert outcome.warnings == []
    should = expected(outcome.summary)
    if name in SINGLE_PRECISION:
        should = [(s, {n: float(np.float32(v)) for n, v in row.items()}) for s, row in should]
    assert rows() == should
    assert outcome.is_unharmed()


def test_lines_on_stdout_hold_what_was_trained(capsys: pytest.CaptureFixture[str]) -> None:
    """As many digits as are shown."""
    summary = trained("stdout").summary
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    lines = [words for words in printed if re.fullmatch(r"\d+", words[0])]
    for words, (step, row) in zip(lines, expected(summary), strict=True):
        assert int(words[0]) == step
        losses = [row["training_loss"], row["validation_loss"], row["best_validation_loss"]]
        assert words[1:4] == [f"{loss:.4f}" for loss in losses]
        assert math.isclose(float(words[4]), row["learning_rate"])
        assert int(words[5]) == row["patience_left"]
        assert words[6] == f"{row['epoch_durations_sec']:.2f}"


def test_none_and_nothing_change_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """No line, no file, no other weights."""
    assert trained("none").is_unharmed()
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_all_backends_of_this_process_at_once(tmp_path: Path) -> None:
    """A list logs to each of its members."""
    own = Memory()
    outcome = trained([own, "stdout", LoggingConfig("jsonl", log_dir=tmp_path), Recorder()])
    assert len(own.rows) == len(read.jsonl(tmp_path / "metrics.jsonl")) == 4
    assert own.summary == outcome.summary
    assert outcome.is_unharmed()


def test_settings_versions_and_origins_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run can be compared with others by what it was given and where that came from."""
    monkeypatch.setenv("SBI_IGNITE_TRAIN__SEED", "5")
    memory, tracker = Memory(), Recorder()
    trained([memory, tracker])
    assert memory.parameters["train.seed"] == tracker.params["train.seed"] == 5
    assert memory.origins["train.seed"] == "environment SBI_IGNITE_TRAIN__SEED"
    assert memory.origins["train.learning_rate"].startswith("call")
    assert "versions.torch" in memory.parameters
    assert tracker.params["stop_reason"] == "max_epochs"
    assert tracker.figures == ["loss_curve"]


def test_the_environment_alone_chooses_a_backend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An unchanged call logs where the variables say."""
    monkeypatch.setenv("SBI_IGNITE_LOGGING__BACKEND", "jsonl")
    monkeypatch.setenv("SBI_IGNITE_LOGGING__LOG_DIR", str(tmp_path / "there"))
    trained(None)
    assert len(read.jsonl(tmp_path / "there" / "metrics.jsonl")) == 4


ITERATIONS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], list[Any]]]] = {
    "memory": (lambda folder: Memory(every_n_iterations=2), lambda folder: _memory_iterations()),
    "jsonl": (
        lambda folder: LoggingConfig("jsonl", log_dir=folder, every_n_iterations=2),
        lambda folder: read.jsonl_iterations(folder / "metrics.jsonl"),
    ),
    "tensorboard": (
        lambda folder: LoggingConfig("tensorboard", log_dir=folder / "tb", every_n_iterations=2),
        lambda folder: read.tensorboard_iterations(folder / "tb"),
    ),
    "wandb": (
        lambda folder: LoggingConfig("wandb", mode="offline", every_n_iterations=2),
        read.wandb_iterations,
    ),
    "mlflow": (
        lambda folder: LoggingConfig(
            "mlflow", tracking_uri=f"sqlite:///{folder}/m.db", every_n_iterations=2
        ),
        lambda folder: read.mlflow_iterations(f"sqlite:///{folder}/m.db"),
    ),
}
"""How to log iterations, and how to read (iteration, learning rate, loss) back."""


def _memory_iterations() -> list[Any]:
    memory = Memory.latest
    assert memory is not None
    names = ("iteration", "iteration_learning_rate", "iteration_loss")
    return [tuple(row[name] for name in names) for row in memory.iterations]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "name", ["memory", "jsonl", "tensorboard", *map(_slow, ("wandb", "mlflow"))]
)
def test_every_n_iterations_has_an_axis_of_its_own(name: str, tmp_path: Path) -> None:
    """Running loss and rate at every second of twelve steps, beside the epochs."""
    make, iterations = ITERATIONS[name]
    outcome = trained(make(tmp_path))
    assert outcome.warnings == []
    assert outcome.is_unharmed()
    found = iterations(tmp_path)
    assert [iteration for iteration, _, _ in found] == [2, 4, 6, 8, 10, 12]
    assert [rate for _, rate, _ in found] == pytest.approx([0.01] * 6)
    reference = Memory(every_n_iterations=1)
    trained(reference)
    losses = [row["iteration_loss"] for row in reference.iterations]
    assert [loss for _, _, loss in found] == pytest.approx(losses[1::2], rel=1e-6)
    assert np.mean(losses[:3]) == pytest.approx(outcome.summary.training_loss[0], rel=1e-5)


def test_all_of_our_backends_speak_the_same_words() -> None:
    """Every class takes run_name, tags and every_n_iterations."""
    from sbi_ignite.loggers.make import backend_class

    for name in LoggingConfig.takes:
        backend = backend_class(name)(run_name="r", tags=["t"], every_n_iterations=3)
        assert isinstance(backend, Backend)
        assert (backend.run_name, backend.tags, backend.every_n_iterations) == ("r", {"t": ""}, 3)


def test_the_rate_of_an_iteration_is_the_one_of_its_step() -> None:
    """A schedule that moves after every step has not moved yet."""

    def scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.OneCycleLR:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=7)

    alone = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    expected, schedule = [], scheduler(alone)
    for _ in range(6):
        expected.append(alone.param_groups[0]["lr"])
        alone.step()
        schedule.step()
    model, memory = torch.nn.Linear(2, 1), Memory(every_n_iterations=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run_training(
        TrainConfig(max_epochs=2),
        model,
        lambda model, batch: model(batch).square().mean(dim=1),
        [torch.randn(4, 2)] * 3,
        optimizer=optimizer,
        scheduler=scheduler(optimizer),
        logging=memory,
    )
    assert [row["iteration_learning_rate"] for row in memory.iterations] == expected
