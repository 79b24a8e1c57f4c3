"""What the benchmarks share: alternation, ratios of one round, records that become a page."""

from __future__ import annotations

import pytest

from benchmarks.measuring import (
    Result,
    Spread,
    Table,
    Timing,
    alternate,
    options_of,
    parse,
    ratios,
    save_figure,
    slope,
    timed,
)
from benchmarks.report import joined, page


def test_ways_take_turns_and_who_goes_first_changes():
    called = []

    def way(name):
        def work():
            called.append(name)
            return Timing(1.0, 1.0)

        return work

    times = alternate({"a": way("a"), "b": way("b")}, rounds=3, warm_up=1)
    assert called == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert {name: len(timings) for name, timings in times.items()} == {"a": 3, "b": 3}


def test_ratios_compare_within_a_round():
    old = [Timing(4.0, 2.0), Timing(9.0, 2.0), Timing(2.0, 2.0)]
    new = [Timing(2.0, 1.0), Timing(3.0, 1.0), Timing(2.0, 4.0)]
    assert ratios(old, new) == Spread(2.0, 1.0, 3.0)
    assert ratios(old, new, "cpu") == Spread(2.0, 0.5, 2.0)
    assert f"{ratios(old, new):.1f}" == "2.0 (1.0–3.0)"  # noqa: RUF001 # a range of numbers


def test_work_is_timed_on_both_clocks():
    timing = timed(lambda: sum(range(200_000)))
    assert timing.wall > 0
    assert timing.cpu > 0
    assert timing.per(2) == Timing(timing.wall / 2, timing.cpu / 2)


def test_the_slope_of_a_power_law_is_its_exponent():
    assert slope([1, 10, 100], [3, 3 * 10**1.5, 3 * 10**3]) == pytest.approx(1.5)


def test_a_result_survives_its_file_and_stands_on_the_page(tmp_path):
    table = Table(["way", "ms"], [["old", "3"], ["new", "1"]], "Steps", "Lower is better.")
    result = Result("some_script", "How fast is it?", [table], ["One note."], {"new": [1.0]})
    result.save(tmp_path / "r.json")
    assert Result.load(tmp_path / "r.json") == result
    text = page([result])
    for part in ("## How fast is it?", "| new | 1  |", "Lower is better.", "One note.", "torch"):
        assert part in text


def test_parts_of_a_script_are_joined():
    def part(name, **changes):
        table = Table(["task", "loss"], [[name, "1"]], "Quality", "Lower is better.")
        numbers = {"quality": {name: [1.0]}, name: 1}
        return Result("s", "How good?", [table], ["A note."], numbers, command=name, **changes)

    both = joined([part("a"), part("b")])
    assert [table.rows for table in both.tables] == [[["a", "1"], ["b", "1"]]]
    assert both.numbers == {"quality": {"a": [1.0], "b": [1.0]}, "a": 1, "b": 1}
    assert both.notes == ["A note."]
    assert both.command == "a`, `b"
    with pytest.raises(ValueError, match="measured a once more"):
        joined([part("a"), part("a")])
    deeper = joined([_times({"maf": {"4": [1]}}), _times({"maf": {"8": [2]}, "nsf": {"4": [3]}})])
    assert deeper.numbers == {"time": {"maf": {"4": [1], "8": [2]}, "nsf": {"4": [3]}}}
    elsewhere = {**both.machine, "processor": "another"}
    with pytest.raises(ValueError, match="another processor than a"):
        joined([part("a"), part("b", machine=elsewhere)])


def _times(numbers):
    return Result("s", "How fast?", [], [], {"time": numbers}, command="time")


def test_a_device_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        parse(options_of("Is it fast?"), ["--device", "cuda"])


def test_the_same_figure_makes_the_same_file(tmp_path):
    from matplotlib.figure import Figure

    contents = []
    for _ in range(2):
        drawing = Figure()
        drawing.subplots().plot([0, 1], [1, 0])
        save_figure(drawing, tmp_path / "line.svg")
        contents.append((tmp_path / "line.svg").read_bytes())
    assert contents[0] == contents[1]
