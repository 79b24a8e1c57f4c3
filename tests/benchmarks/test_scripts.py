"""Every script runs with a tiny budget, prints its table and writes its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import (
    against,
    distributed,
    ensembles,
    epoch_time,
    measuring,
    out_of_core,
    peers,
    scaling,
)
from tests.small import SBI_WARNS

pytestmark = SBI_WARNS


def numbers(file):
    return json.loads(file.read_text())["numbers"]


def test_epoch_time_compares_all_ways(tmp_path, capsys):
    file = tmp_path / "epochs.json"
    arguments = ["--cells", "NPE mdn", "--rows", "300", "--rounds", "2", "--json", str(file)]
    result = epoch_time.main(arguments)
    seconds = numbers(file)["seconds (wall, cpu) per epoch"]["NPE mdn"]
    assert seconds.keys() == epoch_time.WAYS.keys()
    assert all(len(epochs) == 2 and min(map(min, epochs)) > 0 for epochs in seconds.values())
    assert set(numbers(file)["faster"]["NPE mdn"]) == {"sbi form", "typed form"}
    assert str(result.tables[0]) in capsys.readouterr().out
    assert epoch_time.figure(result).axes


@pytest.mark.slow
def test_epoch_time_compares_two_builds(tmp_path, monkeypatch):
    """Here the same one twice; each training is a process of its own."""
    monkeypatch.setattr(against, "WARM_UP", 1)
    file = tmp_path / "epochs.json"
    build = Path(against.__file__).parents[1]
    arguments = ["--cells", "NPE mdn", "--rows", "300", "--rounds", "2", "--json", str(file)]
    result = epoch_time.main([*arguments, "--against", str(build)])
    seconds = numbers(file)["seconds (wall, cpu) per epoch"]["NPE mdn"]
    assert seconds.keys() == {f"{form}, {of}" for form in against.FORMS for of in ("older", "this")}
    assert [row[1] for row in result.tables[0].rows] == list(against.FORMS)


@pytest.mark.slow
@pytest.mark.parametrize("cell", epoch_time.CELLS)
def test_epoch_time_knows_how_to_train_every_cell(cell):
    ways = ["sbi", "sbi form", "typed form", "bare, typed form"]
    epoch_time.main(["--cells", cell, "--rows", "300", "--rounds", "1", "--ways", *ways])


def test_epoch_time_says_when_a_training_fails():
    def fails(ends):
        raise ArithmeticError

    with pytest.raises(RuntimeError, match="a training failed"):
        epoch_time.Training(fails, "cpu").epoch()


@pytest.mark.slow
def test_scaling_measures_every_point_in_its_own_process(tmp_path):
    file = tmp_path / "scaling.json"
    arguments = ["--max-rows", "1000", "--widths", "8", "--width-rows", "300"]
    result = scaling.main([*arguments, "--ways", "typed form", "--json", str(file)])
    (point,) = numbers(file)["rows"]["typed form"]
    assert point["wall"] > 0
    assert point["data"] == pytest.approx(1_000 * 15 * 4 / 1e6)
    assert len(result.tables) == 2
    assert scaling.figure(result).axes


def test_scaling_does_not_record_one_table_in_place_of_three(capsys):
    with pytest.raises(SystemExit):
        scaling.main(["--only-large", "--write"])
    assert "in place of three" in capsys.readouterr().err


@pytest.mark.slow
def test_peers_that_are_not_installed_are_said(tmp_path):
    result = peers.main(
        ["--tasks", "two_moons", "--simulations", "400", "--peers", "lampe", "--max-seconds", "2"]
    )
    (said,) = result.notes
    assert "lampe did not run here" in said


def test_commands_and_notes_on_the_page_name_no_files(tmp_path, monkeypatch):
    """What says where files lie is left out; lines of a notes file stand below the tables."""
    notes = tmp_path / "notes.txt"
    notes.write_text("A neighbour was busy.\n")
    files = ["--json", "/a/b.json", "--write", "--python", "/c/python"]
    monkeypatch.setattr("sys.argv", ["x", "--rounds", "3", *files, "mlflow"])
    result = measuring.Result("scaling", "How?")
    assert result.command == "python -m benchmarks.scaling --rounds 3 mlflow"
    parser = measuring.options_of("How?")
    measuring.conclude(result, measuring.parse(parser, ["--notes", str(notes)]))
    assert result.notes == ["A neighbour was busy."]


@pytest.mark.slow
def test_ensembles_are_timed_and_judged(tmp_path):
    file = tmp_path / "ensembles.json"
    arguments = ["--rounds", "1", "--rows", "300", "--epochs", "1", "--members", "2"]
    arguments += ["--networks", "maf", "--tasks", "two_moons", "--simulations", "300"]
    arguments += ["--seeds", "1", "--fresh", "50", "--max-epochs", "2", "--jobs", "1"]
    arguments += ["--stacked-networks", "mdn", "--stacked-rows", "200", "--batch-sizes", "50"]
    arguments += ["--networks-per-ensemble", "2", "--json", str(file)]
    result = ensembles.main(arguments)
    assert len(result.tables) == 3
    assert set(numbers(file)["stacked"]["seconds"]["mdn, 50, 2"]) >= {"stacked"}
    seconds = numbers(file)["time"]["seconds"]["maf, 2"]
    assert all(values[0] > 0 for values in seconds.values())
    judged = numbers(file)["quality"]["two_moons, 300"]
    (one,), (two,) = judged["one, recipe"], judged["2, recipe"]
    assert two["loss"] < one["loss"]  # by Jensen's inequality, whatever the networks
    with pytest.raises(SystemExit):
        ensembles.main(["--part", "time", "--write"])


@pytest.mark.slow
def test_many_processes_are_compared_with_one(tmp_path):
    file = tmp_path / "distributed.json"
    sizes = ["--rounds", "1", "--epochs", "1", "--rows", "10000", "--tasks", "maf"]
    distributed.main([*sizes, "--json", str(file)])
    ways = [distributed.ALONE, distributed.LAUNCHED, distributed.TOGETHER, distributed.APART]
    assert list(numbers(file)["maf"]) == ways
    assert min(numbers(file)["exchange_microseconds"].values()) > 0


@pytest.mark.slow
def test_files_are_compared_with_memory_in_every_part(tmp_path):
    file = tmp_path / "files.json"
    sizes = ["--gigabytes", "0.05", "--rounds", "1", "--rows-in-memory", "2048"]
    out_of_core.main([*sizes, "--simulations", "500", "--epochs", "1", "--json", str(file)])
    found = numbers(file)
    assert {"peak of NPE", "to memory", "to sequential", "loss from a file"} <= set(found)
    assert found["rows/s of .npy pair"].keys() == {"memory", "random", "blocks"}


def test_coverage_is_right_for_a_posterior_that_is_right():
    import torch

    torch.manual_seed(0)
    truth, draws = torch.randn(4_000), torch.randn(200, 4_000)

    def narrow(width):
        density = torch.distributions.Normal(0.0, width)
        return ensembles.coverage(density.log_prob(truth), density.log_prob(width * draws))

    off, lean = narrow(1.0)
    assert off < 0.02
    assert abs(lean) < 0.02
    off, lean = narrow(0.5)
    assert off > 0.1
    assert lean == pytest.approx(-off)
