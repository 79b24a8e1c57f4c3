"""One aligned line per epoch, or a bar where somebody watches; exactly one of them."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sbi_ignite import EarlyStopping, TrainConfig, run_training
from sbi_ignite.loggers import make_loggers
from sbi_ignite.training.schedules import derived_length
from tests.loggers.small import Play

_LAST_WORDS = (
    "stopped by max_epochs after epoch 3; best validation loss 7.0000 at epoch 3; "
    "last training loss 7.5000, validation loss 7.0000"
)


class Terminal(io.StringIO):
    """Output that somebody watches."""

    def isatty(self) -> bool:
        return True


def _printed(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **info: Any) -> str:
    monkeypatch.setattr(sys, "stdout", stream)
    Play(make_loggers(["stdout"]), **info).epochs(3).end()
    return stream.getvalue()


def test_a_log_file_gets_aligned_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every column ends where its name ends, and nothing moves the cursor."""
    text = _printed(monkeypatch, io.StringIO())
    title, header, *lines, end = text.splitlines()
    names = (
        *("epoch", "training loss", "validation loss", "best loss"),
        *("learning rate", "patience left", "seconds"),
    )
    assert header == "  ".join(names)
    assert title == "NPE_C"
    assert {len(line) for line in lines} == {len(header)}
    ends = [header.index(name) + len(name) for name in names]
    assert all(line[e - 1] != " " for line in lines for e in ends)
    assert lines[2].split() == ["3", "7.5000", "7.0000", "7.0000", "0.5", "7", "0.25"]
    assert end == _LAST_WORDS
    assert "\r" not in text


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tqdm's bar counts epochs and shows losses and rate; the last line says how it ended."""
    text = _printed(monkeypatch, Terminal(), max_epochs=3)
    assert "3/3" in text
    assert "best 7.000, rate 0.5, patience left 7" in text
    assert text.splitlines()[-1] == _LAST_WORDS
    assert "learning rate" not in text


def test_a_bar_knows_the_length_that_a_schedule_derives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody bounded the training, but the cosine ends it."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    run_training(
        TrainConfig(lr_schedule="cosine"),
        torch.nn.Linear(2, 1),
        lambda model, batch: model(batch).square().mean(dim=1),
        [torch.randn(4, 2)] * 2,
        logging="stdout",
        early_stopping=EarlyStopping.when(lambda state: state.epoch == 2),
    )
    assert f"2/{derived_length(8)}" in stream.getvalue()


def test_a_terminal_without_progress_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """show_progress_bars=False is honoured."""
    text = _printed(monkeypatch, Terminal(), show_progress=False)
    assert "epoch  training loss" in text
    assert "%|" not in text


def test_a_notebook_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel counts as somebody who watches."""
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    opened = []

    class Bar:
        def __init__(self, **kwargs: Any) -> None:
            opened.append(kwargs)

        def update(self) -> None:
            """Count nothing."""

        set_postfix_str = close = lambda self, *args: None

    monkeypatch.setitem(sys.modules, "tqdm.notebook", SimpleNamespace(tqdm=Bar))  # type: ignore[arg-type]
    text = _printed(monkeypatch, io.StringIO())
    assert text == _LAST_WORDS + "\n"  # what a saved notebook keeps of a bar is empty
    assert len(opened) == 1


def test_a_notebook_without_ipywidgets_gets_the_bar_of_terminals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tqdm's bar for notebooks raises ImportError there; logging goes on."""
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]

    def refuse(**kwargs: Any) -> None:
        raise ImportError("IProgress not found. Please update jupyter and ipywidgets.")

    monkeypatch.setitem(sys.modules, "tqdm.notebook", SimpleNamespace(tqdm=refuse))  # type: ignore[arg-type]
    text = _printed(monkeypatch, io.StringIO(), max_epochs=3)
    assert "3/3" in text
    assert text.splitlines()[-1] == _LAST_WORDS


def test_a_bar_of_a_resumed_run_begins_where_it_stood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs are done, three follow."""
    text = _printed(monkeypatch, Terminal(), max_epochs=5, epochs_done=2)
    assert "2/5" in text
    assert "5/5" in text


def test_failures_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line names the error and what was reached; there is no bar to look at any more."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    Play(make_loggers(["stdout"])).epochs(1).loggers.fail(ValueError("no such thing"))
    assert stream.getvalue().splitlines()[-1] == (
        "failed: ValueError: no such thing; after epoch 1: training 9.500, validation 9.000, "
        "best 9.000, rate 0.5, patience left 7"
    )


def test_only_a_backend_on_the_screen_shows_progress() -> None:
    """`report_end` silences sbi's own line when ours is there."""
    assert make_loggers(["memory", "stdout"]).shows_progress
    assert not make_loggers(["memory"]).shows_progress
