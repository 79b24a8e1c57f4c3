"""A resumed run and later rounds continue the same run: no step twice, none missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sbi_ignite import LoggingConfig
from sbi_ignite.loggers import Memory, make_loggers
from tests.loggers import read
from tests.loggers.small import Play

RESUMABLE: dict[str, tuple[Callable[[Path], LoggingConfig], Callable[[Path], read.Rows]]] = {
    "jsonl": (
        lambda folder: LoggingConfig("jsonl", log_dir=folder),
        lambda folder: read.jsonl(folder / "metrics.jsonl"),
    ),
    "tensorboard": (
        lambda folder: LoggingConfig("tensorboard", log_dir=folder / "tb"),
        lambda folder: read.tensorboard(folder / "tb"),
    ),
    "wandb": (lambda folder: LoggingConfig("wandb", mode="offline"), read.wandb),
    "mlflow": (
        lambda folder: LoggingConfig("mlflow", tracking_uri=f"sqlite:///{folder}/m.db"),
        lambda folder: read.mlflow(
            f"sqlite:///{folder}/m.db",
            read.only_mlflow_run_id(f"sqlite:///{folder}/m.db"),
        ),
    ),
}


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "name",
    [
        "jsonl",
        "tensorboard",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("wandb", "mlflow")),
    ],
)
def test_a_resumed_run_has_every_step_once(name: str, tmp_path: Path) -> None:
    """Killed after five epochs, saved after three, resumed from there, then a second round."""
    config, rows = RESUMABLE[name][0](tmp_path), RESUMABLE[name][1]
    first = Play(make_loggers([config])).epochs(3)
    identity = first.loggers.state_dict()
    first.epochs(2).loggers.fail(KeyboardInterrupt())

    second = Play(make_loggers([config]), epochs_done=3, identity=identity).epochs(3)
    assert second.loggers.state_dict() == identity
    second.end()
    assert [step for step, _ in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]

    round_1 = Play(make_loggers([config]), first_step=6, round_index=1, identity=identity)
    round_1.epochs(2).end()
    steps = dict(rows(tmp_path))
    assert [step for step, _ in rows(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["validation_loss"] for row in steps.values()] == [9, 8, 7, 6, 5, 4, 9, 8]


@pytest.mark.usefixtures("patient")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_a_crash_lost_is_logged_again(name: str, tmp_path: Path) -> None:
    """The history in the checkpoint fills the gap that a crash left in the tracked run."""
    config, rows = RESUMABLE[name][0](tmp_path), RESUMABLE[name][1]
    first = Play(make_loggers([config])).epochs(2)
    identity = first.loggers.state_dict()
    first.loggers.fail(KeyboardInterrupt())  # epochs 3 and 4 are trained, but never arrive
    Play(make_loggers([config]), epochs_done=4, identity=identity).epochs(1).end()
    assert [step for step, _ in rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_memory_and_stdout_do_not_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of finished epochs are not printed again."""
    memory = Memory()
    Play(make_loggers([memory, "stdout"])).epochs(5).loggers.fail(KeyboardInterrupt())
    capsys.readouterr()
    Play(make_loggers([memory, "stdout"]), epochs_done=3).epochs(2).end()
    assert [row["step"] for row in memory.rows] == [1, 2, 3, 4, 5]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == ["4", "5"]
    assert "continues after epoch 3" in lines[0]
