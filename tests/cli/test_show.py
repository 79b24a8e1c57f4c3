"""`sbi-ignite show` has a row for every run, whatever state it is in."""

from __future__ import annotations

import json
import math
import os
import re
import time
from pathlib import Path

import pytest
from matplotlib.image import imread

from sbi_ignite import load_run
from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.lock import is_held
from tests import forking
from tests.cli.conftest import training
from tests.cli.terminal import INSTALLED, in_terminal, piped


def rows_of(answer) -> dict[str, dict]:
    return {Path(row["directory"]).name: row for row in json.loads(answer.out)["runs"]}


def test_each_run_is_a_row_with_what_its_summary_says(ask, runs):
    answer = ask("show", *sorted(runs.iterdir()), "--json")
    assert answer.code == 0
    found = rows_of(answer)
    assert list(found) == ["fmpe", "one", "rounds", "round-1"]
    for name, path in {"one": runs / "one", "round-1": runs / "rounds" / "round-1"}.items():
        summary, row = load_run(path).summary, found[name]
        assert summary is not None
        assert row == {
            "directory": str(path),
            "method": "NPE_C",
            "status": "complete",
            "stop_reason": "max_epochs",
            "epochs": summary.epochs_trained,
            "best_loss": summary.best_validation_loss,
            "best_loss_kind": "validation",
            "best_epoch": summary.best_epoch,
            "seconds_in_epochs": pytest.approx(sum(summary.epoch_durations_sec)),
            "note": None,
        }
    assert found["fmpe"]["method"] == "FMPE"


def test_folders_are_searched_for_runs_and_their_parts(ask, runs):
    """Also an ensemble's members, further trainers of a script; not what was set aside."""
    for part in ("member-2", "member-10", "trainer-1", "training-0123abcd", "replaced-1", "logs"):
        (runs / "one" / part).mkdir()
        for name in ("run.json", "metrics.jsonl"):
            (runs / "one" / part / name).write_bytes((runs / "one" / name).read_bytes())
    (runs / "notes.txt").write_text("not a run")
    (runs / "empty").mkdir()
    names = [Path(row[0]).name for row in ask("show", runs.parent).rows]
    assert names == [
        *("fmpe", "one", "member-2", "member-10", "trainer-1", "training-0123abcd"),
        *("rounds", "round-1"),
    ]
    os.chdir(runs)
    assert [row[0] for row in ask("show").rows][:2] == ["fmpe", "one"]


def test_files_among_the_paths_are_passed_over_and_missing_paths_are_named(ask, runs):
    (runs / "loss.png").write_bytes(b"")
    assert ask("show", *runs.iterdir()).code == 0
    answer = ask("show", runs / "one", runs / "gone")
    assert answer.code == 1
    assert len(answer.rows) == 1
    assert f"no such path: {runs / 'gone'}" in answer.err


def test_no_runs_is_code_1(ask, tmp_path):
    for option in ((), ("--json",), ("--watch",), ("--plot", "out.png")):
        answer = ask("show", tmp_path, *option)
        assert answer.code == 1
        assert answer.out == ""
        assert f"no runs in {tmp_path}" in answer.err


DAMAGE = {
    "half a run.json": ("run.json", lambda content: content[: len(content) // 2]),
    "run.json of another kind": ("run.json", lambda content: b"[1, 2]"),
    "no run.json": ("run.json", None),
    "changed metrics": ("metrics.jsonl", lambda content: content.replace(b"1", b"2")),
    "metrics of another kind": ("metrics.jsonl", lambda content: b"7\n"),
    "half a summary": ("summary.json", lambda content: content[:-20]),
    "summary of another run": ("summary.json", lambda content: content.replace(b'"run"', b'"x"')),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_run_is_a_row_with_the_reason(ask, runs, kind):
    name, change = DAMAGE[kind]
    file = runs / "one" / name
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    answer = ask("show", runs, "--json")
    assert answer.code == 0
    row = rows_of(answer)["one"]
    assert row["status"] == "damaged"
    assert name in row["note"] or "one" in row["note"]
    assert rows_of(answer)["fmpe"]["status"] == "complete"
    assert "damaged" in ask("show", runs).out


def test_a_run_that_nobody_may_read_is_a_row(ask, runs):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (runs / "one" / "run.json").chmod(0)
    assert rows_of(ask("show", runs, "--json"))["one"]["status"] == "damaged"


def test_running_and_killed_runs_are_told_apart_by_who_holds_the_directory(ask, tmp_path):
    directory = tmp_path / "runs" / "long"
    with training(directory) as process:
        row = rows_of(ask("show", directory, "--json"))["long"]
        assert row["status"] == "running"
        assert row["epochs"] >= 1
        assert row["stop_reason"] is None
        process.kill()
        process.wait()
        row = rows_of(ask("show", directory, "--json"))["long"]
        assert row["status"] == "killed"
        assert math.isfinite(row["best_loss"])


def test_a_run_that_is_continued_is_running_and_readable(ask, tmp_path):
    """Its directory still holds the summary of its earlier end."""
    directory = tmp_path / "run"
    with training(directory, epochs=2) as process:
        assert process.wait(120) == 0
    assert load_run(directory).status == "complete"
    (directory / "metrics.jsonl").rename(directory / "metrics.jsonl.old")
    with training(directory):
        assert rows_of(ask("show", directory, "--json"))["run"]["status"] == "running"
        assert load_run(directory).summary is None


def test_a_failed_run_says_why(ask, runs):
    with RunDirectory.open(runs / "one") as directory:
        directory.update_manifest(status="failed", error="ValueError: no\nluck")
    row = rows_of(ask("show", runs, "--json"))["one"]
    assert (row["status"], row["note"]) == ("failed", "ValueError: no luck")


def test_looking_at_a_lock_never_keeps_a_training_out(tmp_path):
    """Another process looks at it all the time while this one takes and releases it."""
    lock = tmp_path / ".lock"
    lock.touch()
    looking = forking.start(
        "-c",
        "import sys, pathlib; from sbi_ignite.runs.lock import is_held\n"
        "print('here', flush=True)\nwhile True: is_held(pathlib.Path(sys.argv[1]))",
        str(lock),
    )
    try:
        assert looking.stdout is not None
        looking.stdout.readline()
        until = time.monotonic() + 2
        while time.monotonic() < until:
            with RunDirectory.open(tmp_path):
                assert is_held(lock)
            assert not is_held(lock)
    finally:
        looking.kill()
        looking.communicate()


# --- pictures


def test_the_plot_overlays_all_runs(ask, runs, tmp_path):
    picture = tmp_path / "out.png"
    answer = ask("show", runs, "--plot", picture)
    assert answer.code == 0
    assert "4 loss curves in" in answer.err
    assert len(answer.rows) == 4  # the table is printed all the same
    assert imread(picture).shape[2] == 4


@pytest.mark.parametrize("begin", [piped, in_terminal])
def test_the_command_saves_the_picture_in_a_pipe_and_in_a_terminal(runs, tmp_path, begin):
    """In a process of its own, which may have no display."""
    picture = tmp_path / "out.png"
    done = begin("show", str(runs), "--plot", str(picture), DISPLAY="")
    assert (done.returncode if begin is piped else done.code) == 0
    assert "4 loss curves in" in (done.stderr if begin is piped else done.text)
    assert imread(picture)[..., :3].std() > 0.01


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("out.docx", 2, "not supported"), ("gone/out.png", 1, "cannot be written: No such file")],
)
def test_a_picture_that_cannot_be_made_is_an_error(ask, runs, tmp_path, name, code, said):
    answer = ask("show", runs, "--plot", tmp_path / name)
    assert answer.code == code
    assert said in answer.err


def test_there_is_no_picture_without_a_finished_epoch(ask, runs, tmp_path):
    (runs / "one" / "metrics.jsonl").write_text("")
    with RunDirectory.open(runs / "one") as directory:
        directory.update_manifest(status="running")
    answer = ask("show", runs / "one", "--plot", tmp_path / "out.png")
    assert answer.code == 1
    assert "no run has finished an epoch" in answer.err


# --- in a pipe and in a terminal


def test_in_a_pipe_rows_are_whole_lines_without_colours(runs):
    """However long a directory's name is; 40 columns are claimed."""
    long = runs / ("long-" * 20)
    (runs / "one").rename(long)
    done = piped("show", str(runs), FORCE_COLOR="")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    head, *lines = done.stdout.splitlines()
    assert re.split(" {2,}", head)[:3] == ["directory", "method", "status"]
    assert len(lines) == 4
    (line,) = [line for line in lines if line.startswith(str(long))]
    assert re.split(" {2,}", line)[1:5] == ["NPE_C", "complete", "max_epochs", "4"]


@pytest.mark.parametrize("columns", [60, 140])
def test_in_a_terminal_the_table_fits(runs, columns):
    shown = in_terminal("show", str(runs), columns=columns)
    assert shown.code == 0
    assert "\x1b[" in shown.raw
    assert max(map(len, shown.text.splitlines())) <= columns
    assert "complete" in shown.text


def test_watching_in_a_pipe_prints_a_line_for_every_change_until_all_have_ended(tmp_path):
    directory = tmp_path / "run"
    with training(directory, epochs=6):
        watching = forking.start(
            *("-c", INSTALLED, "show", str(directory), "--watch", "--every", "0.1", "--json")
        )
        assert watching.stdout is not None
        first = watching.stdout.readline()  # at once, not when a buffer is full
        (tmp_path / "run.go").touch()
        rest, _ = watching.communicate(timeout=120)
    assert watching.returncode == 0
    rows = [json.loads(line) for line in [first, *rest.splitlines()]]
    assert rows[0]["status"] == "running"
    assert rows[0]["epochs"] <= 3
    assert (rows[-1]["status"], rows[-1]["epochs"]) == ("complete", 6)


def test_watching_in_a_terminal_redraws_the_table_until_ctrl_c(tmp_path):
    directory = tmp_path / "run"
    with training(directory):
        shown = in_terminal(
            *("show", str(directory), "--watch", "--every", "0.2"), interrupt_when="1 of 1 running"
        )
    assert shown.code == 130
    assert "1 of 1 running" in shown.text
    assert "\x1b[?25l" in shown.raw  # the cursor is hidden while the table is redrawn
    assert "\x1b[?25h" in shown.raw  # and shown again
    assert "Traceback" not in shown.text


def test_watching_runs_that_have_ended_ends_at_once(ask, runs):
    answer = ask("show", runs, "--watch")
    assert answer.code == 0
    assert len(answer.out.splitlines()) == 5
