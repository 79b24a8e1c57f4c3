"""Every table has its rows, also without a card; ways keep to their turns, threads and places."""

from __future__ import annotations

import argparse
import json
import threading
from types import SimpleNamespace

import pytest
import torch
from sbi.neural_nets import posterior_flow_nn, posterior_nn

from benchmarks import gpu
from benchmarks.cells import Cell
from sbi_ignite.capture import compiler
from sbi_ignite.capture.verification import Tracing
from sbi_ignite.data import transfer
from sbi_ignite.data.split import split_rows
from tests.small import SBI_WARNS

pytestmark = SBI_WARNS

TRIAL = ["--device", "cpu", "--rows", "60", "--batch-sizes", "50", "--cpu-threads", "1", "2"]
ROWS = {
    1: ["50"],
    2: ["60 rows, batches of 54"],
    3: ["NPE maf", "NPE zuko_nsf", "FMPE"],
    4: [
        "NPE maf, batches of 54",
        "NPE maf, 512 hidden features, batches of 54",
        "FMPE, 1,024 hidden features, batches of 54",
        "NPE, CNN on 64 x 64, batches of 54",
    ],
}
COLUMNS = {
    1: ["cpu: ms per step", "CPU, 1 thread: ms", "CPU, 2 threads: ms"],
    2: ["on the card: ms", "on the host: ms", "sbi: ms"],
    3: ["off: ms per epoch", "trace: ms", "auto: ms"],
    4: ["32: ms", "bf16-mixed: ms", "32: training loss", "bf16-mixed: training loss"],
}


@pytest.fixture
def small(monkeypatch):
    """Train networks so small that the whole script takes seconds."""

    def small_posterior_nn(*args, **kwargs):
        return posterior_nn("maf", hidden_features=4, num_transforms=1)

    def small_posterior_flow_nn(*args, **kwargs):
        return posterior_flow_nn("mlp", hidden_features=4, num_layers=1)

    cell = Cell("NPE", lambda: {"density_estimator": small_posterior_nn()})
    monkeypatch.setattr(gpu, "CELLS", dict.fromkeys(gpu.CELLS, cell))
    monkeypatch.setattr(gpu, "posterior_nn", small_posterior_nn)
    monkeypatch.setattr(gpu, "posterior_flow_nn", small_posterior_flow_nn)


@pytest.fixture(autouse=True)
def threads():
    """Leave torch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def check(result, tables, rounds):
    """Fail unless every table has its rows and columns, all filled, and numbers behind them."""
    for number, table in zip(tables, result.tables, strict=True):
        assert [row[0] for row in table.rows] == ROWS[number]
        assert set(COLUMNS[number]) <= set(table.header)
        assert all(len(row) == len(table.header) and all(row) for row in table.rows)
        for found in result.numbers[gpu.PARTS[number].title].values():
            for way, epochs in found["seconds (wall, cpu) per epoch"].items():
                assert len(epochs) == (1 if way == "sbi" else rounds)
                assert min(wall for wall, _ in epochs) > 0
    assert not [note for note in result.notes if "failed" in note]


def test_every_table_has_its_rows(small, tmp_path, capsys):
    file = tmp_path / "gpu.json"
    result = gpu.main([*TRIAL, "--rounds", "2", "--json", str(file)])
    check(result, [1, 2, 3, 4], rounds=2)
    losses = result.numbers[gpu.PARTS[4].title][ROWS[4][0]]["training loss"]
    assert [len(epochs) for epochs in losses.values()] == [gpu.UNTRACED + 2] * 2
    assert json.loads(file.read_text())["numbers"].keys() == result.numbers.keys()
    assert capsys.readouterr().out.count(str(result.tables[0])) == 2  # at once and at the end
    assert [line.get_label() for line in gpu.figure(result).axes[0].lines] == [
        "cpu",
        "CPU, 1 thread",
        "CPU, 2 threads",
    ]


def test_everything_is_traced_before_it_is_timed(small, monkeypatch):
    """Shapes that come once in an epoch too, of training and of validation."""
    epochs, prove = [], Tracing.prove

    def noted(tracing, *args):
        epochs.append(tracing._epoch())
        prove(tracing, *args)

    monkeypatch.setattr(Tracing, "prove", noted)
    for compile_ in ("auto", "trace"):
        make = gpu.on_typed(gpu.CELLS["NPE maf"], 60, "cpu")
        form = gpu.typed(compile=compile_)
        gpu.compare({"": gpu.Way(make, 54, "cpu", form)}, argparse.Namespace(rounds=1, threads=1))
        assert 0 < max(epochs) <= gpu.UNTRACED
        epochs.clear()


@pytest.mark.slow
def test_it_trains_what_it_says():
    check(gpu.main([*TRIAL, "--rounds", "1"]), [1, 2, 3, 4], rounds=1)


def test_tables_can_be_chosen(monkeypatch):
    monkeypatch.setattr(gpu, "compare", lambda ways, options: gpu.Compared(steps=len(ways)))
    monkeypatch.setattr(gpu.Compared, "milliseconds", lambda *args: "1")
    result = gpu.main([*TRIAL, "--tables", "3", "1", "--inductor"])
    assert [table.title for table in result.tables] == [gpu.PARTS[n].title for n in (3, 1)]
    assert "inductor: ms" in result.tables[0].header


def test_without_a_card_nothing_runs(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.main([])


def test_a_row_that_fails_is_said_and_the_others_go_on(monkeypatch, capsys):
    def compare(ways, options):
        if "trace" in ways:
            raise RuntimeError("a training failed") from ValueError("no such kernel\nat all")
        return gpu.Compared({name: [gpu.Timing(1.0, 1.0)] for name in ways}, steps=2)

    monkeypatch.setattr(gpu, "compare", compare)
    result = gpu.main([*TRIAL, "--tables", "3", "1"])
    assert [len(table.rows) for table in result.tables] == [0, 1]
    assert (
        "How steps are computed: NPE maf failed. RuntimeError: a training failed; "
        "ValueError: no such kernel"
    ) in result.notes
    assert "no such kernel\nat all" in capsys.readouterr().err


class Recorded:
    """A form that trains nothing and notes, epoch by epoch, what it finds."""

    def __init__(self):
        self.seen = []
        self.ended = threading.Event()

    def __call__(self, trainer, batch_size, epoch_ends):
        try:
            while True:
                self.seen.append(
                    (
                        torch.get_num_threads(),
                        transfer.SHARE_OF_MEMORY,
                        compiler.STEPS_BEFORE_TRACING,
                    )
                )
                trainer.summary["training_loss"].append(float(len(self.seen)))
                epoch_ends()
        finally:
            self.ended.set()


def way(form, **kwargs):
    def make():
        return SimpleNamespace(summary={"training_loss": []}, train_indices=range(90))

    return gpu.Way(make, 20, "cpu", form, **kwargs)


def test_every_way_has_its_threads_and_its_place():
    share, steps = transfer.SHARE_OF_MEMORY, compiler.STEPS_BEFORE_TRACING
    forms = {name: Recorded() for name in ("one", "two", "staged", "once")}
    ways = {
        "one": way(forms["one"], threads=1, warm_up=2),
        "two": way(forms["two"], threads=2, warm_up=2),
        "staged": way(forms["staged"], staged=True, warm_up=2),
        "once": way(forms["once"], once=True, warm_up=1),
    }
    found = gpu.compare(ways, argparse.Namespace(rounds=3, threads=1))
    early = gpu.EAGER_STEPS
    assert forms["one"].seen == [(1, share, early)] * 5
    assert forms["two"].seen == [(2, share, early)] * 5
    assert forms["staged"].seen == [(1, 0.0, early), *[(1, share, early)] * 4]
    assert forms["once"].seen == [(1, share, early)] * 2
    assert {n: len(times) for n, times in found.times.items()} == {
        **dict.fromkeys(("one", "two", "staged"), 3),
        "once": 1,
    }
    assert found.losses["one"] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert found.steps == 5
    assert all(form.ended.is_set() for form in forms.values())
    assert share == transfer.SHARE_OF_MEMORY
    assert steps == compiler.STEPS_BEFORE_TRACING


def test_what_takes_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(gpu, "MOST_SECONDS", 0.0)
    forms = Recorded(), Recorded()
    ways = {"card": way(forms[0]), "slow": way(forms[1], patient=False)}
    found = gpu.compare(ways, argparse.Namespace(rounds=2, threads=1))
    assert (len(forms[0].seen), len(forms[1].seen)) == (gpu.UNTRACED + 2, 1)
    assert found.times.keys() == {"card"}
    assert found.milliseconds("slow").endswith("left out")
    assert found.faster("card", "slow") == ""
    assert forms[1].ended.is_set()


def test_a_training_that_fails_ends_the_others():
    def fails(trainer, batch_size, epoch_ends):
        raise ArithmeticError

    forms = Recorded(), Recorded()
    ways = {"first": way(forms[0]), "fails": way(fails), "never begun": way(forms[1])}
    with pytest.raises(RuntimeError, match="a training failed"):
        gpu.compare(ways, argparse.Namespace(rounds=2, threads=1))
    assert forms[0].ended.is_set()
    assert forms[1].seen == []


@pytest.mark.parametrize("most", [300, 10_000, 50_000, 100_000])
@pytest.mark.parametrize("batch_size", [50, 200, 1_000, 4_096, 16_384])
def test_all_batches_are_full(most, batch_size):
    number, size = gpu.full_batches(most, batch_size, steps=90)
    train, _ = split_rows(torch.arange(number), 0.1)
    assert 0 < len(train) / size <= 90
    assert len(train) % size == 0
    assert size <= batch_size
