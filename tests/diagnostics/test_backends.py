"""Numbers and figures of checks are in every backend, live and readable."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from sbi_ignite import SBC, Coverage, LoggingConfig, PosteriorPairplot, TrainConfig
from tests.diagnostics.small import many
from tests.loggers import conftest, read
from tests.small import SBI_WARNS, train

_no_accounts, patient = conftest._no_accounts, conftest.patient
pytestmark = [*SBI_WARNS, pytest.mark.usefixtures("patient")]

Numbers = dict[int, float]
Pictures = dict[tuple[str, int], bytes]


def _jsonl(folder: Path) -> tuple[Numbers, Pictures]:
    (path,) = folder.glob("**/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    numbers = {line["epoch"]: line["sbc/p"] for line in lines if "sbc/p" in line}
    names = ("coverage", "sbc", "posterior")
    return numbers, {(n, 4): path.with_name(f"{n}.png").read_bytes() for n in names}


def _tensorboard(folder: Path) -> tuple[Numbers, Pictures]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = folder.glob("**/*tfevents*")
    events = EventAccumulator(str(path.parent), size_guidance={"images": 0}).Reload()
    tags = set(events.Tags()["images"]) - {"loss_curve"}
    pictures = {
        (tag, image.step): image.encoded_image_string
        for tag in tags
        for image in events.Images(tag)
    }
    for tag in tags:
        for image in events.Images(tag):
            shape = imread(io.BytesIO(image.encoded_image_string)).shape
            assert (image.height, image.width) == shape[:2]
    return {p.step: p.value for p in events.Scalars("sbc/p")}, pictures


def _wandb(folder: Path) -> tuple[Numbers, Pictures]:
    rows = read.wandb_rows(folder)
    numbers = {row["epoch"]: row["sbc/p"] for row in rows if "sbc/p" in row}
    pictures = {}
    for row in rows:
        for name in {key.partition(".")[0] for key in row} & {"coverage", "sbc", "posterior"}:
            if f"{name}.path" in row:
                (path,) = folder.glob(f"wandb/*run-2*/files/{row[f'{name}.path']}")
                pictures[name, row["epoch"]] = path.read_bytes()
    return numbers, pictures


def _mlflow(folder: Path) -> tuple[Numbers, Pictures]:
    uri = f"sqlite:///{folder}/mlflow.db"
    numbers = dict(read.sqlite(uri, "select step, value from metrics where key = 'sbc/p'"))
    pictures = {}
    for path in folder.glob("**/figures/*.png"):
        name, _, epoch = path.stem.split("-")
        pictures[name, int(epoch)] = path.read_bytes()
    return numbers, pictures


BACKENDS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], tuple[Numbers, Pictures]]]] = {
    "jsonl": (lambda folder: LoggingConfig("jsonl", log_dir=str(folder)), _jsonl),
    "tensorboard": (lambda folder: LoggingConfig("tensorboard", log_dir=str(folder)), _tensorboard),
    "wandb": (lambda folder: LoggingConfig("wandb", mode="offline"), _wandb),
    "mlflow": (
        lambda folder: LoggingConfig("mlflow", tracking_uri=f"sqlite:///{folder}/mlflow.db"),
        _mlflow,
    ),
}


def checks() -> list[Any]:
    return [
        Coverage(2, num_posterior_samples=20),
        SBC(2, num_posterior_samples=20),
        PosteriorPairplot(torch.zeros(2), 2, num_posterior_samples=50),
    ]


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_has_every_number_and_every_figure(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With the real libraries; jsonl keeps the newest figure of each name."""
    monkeypatch.chdir(tmp_path)
    logging, read_back = BACKENDS[name]
    trainer = train(
        many(), TrainConfig(max_epochs=4), callbacks=checks(), logging=logging(tmp_path)
    )
    numbers, pictures = read_back(tmp_path)
    should = dict(trainer.training_summary.metrics["sbc/p"])
    assert numbers == pytest.approx(should, rel=1e-6)
    epochs = (4,) if name == "jsonl" else (2, 4)
    assert set(pictures) == {(n, e) for n in ("coverage", "sbc", "posterior") for e in epochs}
    for png in pictures.values():
        pixels = imread(io.BytesIO(png))
        assert min(pixels.shape[:2]) > 200
        assert np.std(pixels[..., :3]) > 0.01


@pytest.mark.parametrize("name", ["jsonl", "tensorboard"])
def test_a_resumed_run_has_each_number_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    logging, _ = BACKENDS[name]
    for epochs in (3, 4):
        trainer = train(
            many(),
            TrainConfig(max_epochs=epochs),
            callbacks=checks(),
            logging=logging(tmp_path / "logs"),
            checkpoint=str(tmp_path / "run"),
        )
    if name == "jsonl":
        (path,) = tmp_path.glob("logs/**/metrics.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["epoch"] for line in lines if "sbc/p" in line] == [2, 4]
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in tmp_path.glob("logs/**/*tfevents*")}
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert [p.step for p in events.Scalars("sbc/p")] == [2, 4]
    assert [image.step for image in events.Images("sbc")] == [2, 4]
    assert trainer.training_summary.resumed_from_epoch == 3


@pytest.mark.parametrize("typed", [True, False])
def test_sbis_own_tracker_gets_them_where_no_logging_is_asked_for(typed: bool):
    """It is what a trainer logs to by default: an event file of TensorBoard's."""
    seen: list[tuple[str, int | None]] = []

    class Tracker:
        log_dir = None

        def log_metric(self, name: str, value: float, step: int | None = None) -> None:
            seen.append((name, step))

        def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

        def log_params(self, params: Any) -> None: ...

        def add_figure(self, name: str, figure: Any, step: int | None = None) -> None:
            seen.append((f"figure {name}", step))

        def flush(self) -> None: ...

    args, kwargs = ([TrainConfig(max_epochs=2)], {}) if typed else ([], {"max_num_epochs": 1})
    train(many(tracker=Tracker()), *args, **kwargs, callbacks=checks())
    assert ("sbc/p", 1) in seen  # sbi counts epochs from 0
    assert ("figure sbc", 1) in seen
    assert ("figure posterior", 1) in seen
