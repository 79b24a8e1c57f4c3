"""Records of trainings become times to quality, verdicts and a page; a cell runs as it stands."""

from __future__ import annotations

import argparse
import json
import math
import time

import numpy as np
import pytest
from torch import nn

from benchmarks import time_to_quality
from benchmarks.tasks import JUDGED
from benchmarks.time_to_quality import (
    NEVER,
    cached,
    check_seeds,
    figure,
    geometric_mean,
    key_of,
    result_of,
    summary,
    verdict,
    verdicts,
)
from benchmarks.training_curves import Cell, Curve, Snapshot, Stopwatch


def record(seed=0, *, sbi=(10.0, 1.0), fast=(5.0, 0.5), reached=2.0, task="slcp", budget=1_000):
    """Seconds and final loss of both sides, and when the second reached the first's."""

    def side(seconds, loss, when):
        when = None if when is None else {"cpu": when, "wall": 2 * when}
        curve = [[0.2, 0.1, 1, 9.0], [2 * seconds, seconds, 30, loss]]
        return {
            **{"cpu": seconds, "wall": 2 * seconds, "epochs": 30, "loss": loss, "reached": when},
            **{"curve": curve, "c2st": None},
        }

    cell = {"task": task, "method": "npe_maf", "budget": budget, "seed": seed}
    return {**cell, "sbi": side(*sbi, sbi[0]), "fast": side(*fast, reached)}


def test_a_geometric_mean_is_the_root_of_the_product():
    assert geometric_mean([2, 4, 1]) == pytest.approx(2)
    assert math.isnan(geometric_mean([]))


def test_a_cell_is_judged_over_its_seeds():
    cell = verdict([record(0, reached=2.0), record(1, reached=0.5, fast=(20.0, 0.7))])
    assert cell.speed == pytest.approx(10)
    assert cell.total == pytest.approx(1)
    assert (cell.difference, cell.error) == (pytest.approx(-0.4), pytest.approx(0.1))
    assert (cell.soon, cell.short, cell.good) == (True, True, True)


def test_a_loss_that_was_never_reached_falls_short_whatever_the_mean():
    cell = verdict([record(0, reached=0.01), record(1, reached=None)])
    assert cell.speed == pytest.approx(math.sqrt(1000 * NEVER))
    assert cell.reached == 1
    assert not cell.soon


@pytest.mark.parametrize(("losses", "good"), [((1.3, 0.9), True), ((1.3, 1.2), False)])
def test_a_higher_loss_is_forgiven_within_two_standard_errors(losses, good):
    assert verdict([record(i, fast=(5.0, loss)) for i, loss in enumerate(losses)]).good is good


def test_with_one_seed_no_higher_loss_is_forgiven():
    assert not verdict([record(fast=(5.0, 1.001))]).good
    assert verdict([record(fast=(5.0, 1.0))]).good


def test_sentences_give_means_and_name_what_falls_short():
    cells = verdicts(
        [
            record(task="two_moons", reached=1.0, fast=(1.25, 0.5)),
            record(task="slcp", reached=10.0, fast=(20.0, 1.5)),
        ]
    )
    speed, total, loss = summary(cells)
    assert "mean 3.2 " in speed
    assert "least 1.00 in slcp npe_maf 1,000" in speed
    assert "below the bar or missed with a seed: slcp npe_maf 1,000." in speed
    assert "mean 0.50 " in total
    assert "above the bar: slcp npe_maf 1,000." in total
    assert "1 of 2 cells; higher: slcp npe_maf 1,000." in loss


def test_the_page_has_cells_in_order_and_says_what_was_not_run():
    records = [record(budget=10_000), record(task="slcp"), record(task="two_moons")]
    result = result_of(records, [Cell("sir", "fmpe", 1_000, 2)])
    assert [row[0] for row in result.tables[0].rows] == [
        "two_moons npe_maf 1,000",
        "slcp npe_maf 1,000",
        "slcp npe_maf 10,000",
    ]
    assert "fmpe with 1,000 simulations, seed 2: sir" in result.notes[-1]
    json.dumps(result.numbers)
    assert len(figure(result).axes) == 2


def test_judged_tasks_refuse_seeds_for_tuning_and_the_other_way_round():
    check_seeds([Cell("slcp", "fmpe", 1_000, 0), Cell("ring", "fmpe", 1_000, 100)])
    for task, seed in (("slcp", 100), ("ring", 0)):
        with pytest.raises(SystemExit, match=task):
            check_seeds([Cell(task, "fmpe", 1_000, seed)])


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    ran = []

    def run(cell):
        ran.append(cell.task)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return record(task=cell.task)

    monkeypatch.setattr(time_to_quality, "run_apart", run)
    command = ["--methods", "npe_maf", "--budgets", "1000", "--seeds", "0"]
    command += ["--tasks", "two_moons", "slcp", "--cache", str(tmp_path / "cache.jsonl")]
    with pytest.raises(KeyboardInterrupt):
        time_to_quality.main(command)
    time_to_quality.main(command)
    assert ran == ["two_moons", "slcp", "slcp"]
    assert len(cached(tmp_path / "cache.jsonl")) == 2
    assert "2 cells." in capsys.readouterr().out


def test_records_of_another_recipe_do_not_count():
    now = time_to_quality.recipe_id(1_000, record()["method"])
    assert key_of(record()) == key_of({**record(), "recipe": now})
    assert key_of(record()) != key_of({**record(), "recipe": "another"})
    assert now == time_to_quality.recipe_id(1_000, "fmpe")
    assert now != time_to_quality.recipe_id(1_000, "nre_resnet")


def test_a_stopwatch_does_not_count_its_pauses():
    watch = Stopwatch()
    before = watch.pause()
    end = time.perf_counter() + 0.05
    while time.perf_counter() < end:
        pass
    watch.go_on()
    wall, cpu = watch.pause()
    assert 0 <= wall - before[0] < 0.05
    assert 0 <= cpu - before[1] < 0.05


def curve_with(losses):
    """A curve whose snapshots hold their own loss as weights, at 1, 2, 3, ... seconds."""
    curve = Curve()
    curve.snapshots = [
        Snapshot(float(i), float(i), i, {"loss": loss}) for i, loss in enumerate(losses, start=1)
    ]
    return curve


@pytest.mark.parametrize("target", [9.5, 7.0, 3.2, 1.0])
def test_the_time_to_a_loss_is_that_of_the_first_snapshot_that_has_it(target):
    curve = curve_with([9, 8, 7, 6, 5, 4, 3, 2, 1])
    points = curve.evaluate(lambda weights: weights["loss"])
    assert [p.epoch for p in points] == [1, 2, 3, 4, 5, 7, 9]
    reached = curve.first_at_most(target, lambda weights: weights["loss"])
    assert reached.weights["loss"] == min(9, math.floor(target))


def test_a_loss_that_no_snapshot_has_is_never_reached():
    curve = curve_with([3, 2])
    curve.evaluate(lambda weights: weights["loss"])
    assert curve.first_at_most(1.0, lambda weights: weights["loss"]) is None


def test_snapshots_are_the_best_weights_and_what_is_returned():
    net, curve = nn.Linear(1, 1), Curve()
    for epoch, is_best in enumerate((True, False, True, False), start=1):
        nn.init.constant_(net.weight, epoch)
        time.sleep(0)
        curve.note(epoch, net, is_best)
    nn.init.constant_(net.weight, 3)
    end = curve.end(4, net)
    assert {s.weights["weight"].item() for s in curve.snapshots} <= {1.0, 3.0}
    assert (end.epoch, end.weights["weight"].item()) == (4, 3.0)


@pytest.mark.slow
@pytest.mark.parametrize("method", time_to_quality.METHODS)
def test_a_cell_runs_on_both_sides(method, tmp_path, capsys):
    cache = tmp_path / "cache.jsonl"
    command = ["--tasks", "gaussian_linear", "--methods", method, "--budgets", "200"]
    command += ["--seeds", "0", "--observations", "1", "--cache", str(cache)]
    time_to_quality.main(command)
    (found,) = cached(cache).values()
    for side in ("sbi", "fast"):
        seconds = [point[1] for point in found[side]["curve"]]
        assert seconds == sorted(seconds)
        assert found[side]["cpu"] > 0
        assert found[side]["epochs"] > 1
        assert math.isfinite(found[side]["loss"])
        assert (found[side]["c2st"] is None) == (method in ("nle_maf", "nre_resnet"))
    assert "gaussian_linear" in capsys.readouterr().out


def test_peers_stand_beside_the_cells_and_the_missing_ones_are_said(monkeypatch):
    """They are asked for NPE's cells alone, with the pairs of the cell."""
    asked = []

    def peer(options, name, what, data):
        pairs = np.load(data)
        asked.append((name, what, pairs["theta"].shape, pairs["new_x"].shape))
        return {"missing": "no jax"} if name == "flowjax" else {"seconds": 3.0, "nats": 1.25}

    monkeypatch.setattr(time_to_quality, "peer", peer)
    result = result_of([record(), {**record(task="sir"), "method": "fmpe"}], [])
    options = argparse.Namespace(peers=["lampe", "flowjax"])
    time_to_quality.compare_with_peers(result, options)
    shapes = (1_000, 5), (10_000, 8)
    assert asked == [("lampe", "train", *shapes), ("flowjax", "train", *shapes)]
    assert [row[1:] for row in result.tables[-1].rows] == [
        ["sbi, NPE maf", "20.0", "1.000"],
        ["fast, NPE maf", "10.0", "0.500"],
        ["lampe", "3.0", "1.250"],
    ]
    assert result.notes[-1] == "flowjax did not run here: no jax"


def test_what_was_not_run_is_named_in_few_words():
    missing = [
        Cell(task, method, 10_000, seed)
        for method in ("npe_nsf", "fmpe")
        for seed in (1, 2)
        for task in JUDGED
    ]
    missing.append(Cell("slcp", "npe_maf", 1_000, 0))
    assert result_of([record()], missing).notes[-1] == (
        "Asked for and not run: npe_nsf, fmpe with 10,000 simulations, seeds 1, 2: all tasks; "
        "npe_maf with 1,000 simulations, seed 0: slcp."
    )
