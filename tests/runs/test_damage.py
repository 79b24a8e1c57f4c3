"""Whatever happens to one file of a run, never anything else is read than what was written."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sbi_ignite.exceptions import CheckpointError, SbiIgniteWarning
from sbi_ignite.runs.directory import RunDirectory
from sbi_ignite.runs.load import load_run
from tests.runs.conftest import same, states_at, write_run

OLDER_AND_NEWER = (1, 3, 4)
"""Iterations of checkpoints; the last two are kept and need different best weights."""

Damage = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two runs with the same names of files, and a folder for copies."""
    folder = tmp_path_factory.mktemp("runs")
    one, other = (write_run(folder / name, OLDER_AND_NEWER) for name in ("one", "other"))
    return one, other, folder / "copy"


def truncate(share: float) -> Damage:
    def damage(file: Path, other: Path) -> None:
        data = file.read_bytes()
        file.write_bytes(data[: int(share * len(data))])

    return damage


def flip(place: float, bit: int) -> Damage:
    def damage(file: Path, other: Path) -> None:
        data = bytearray(file.read_bytes())
        data[int(place * (len(data) - 1))] ^= 1 << bit
        file.write_bytes(data)

    return damage


def append(data: bytes) -> Damage:
    return lambda file, other: file.write_bytes(file.read_bytes() + data)


def remove(file: Path, other: Path) -> None:
    file.unlink()


def replace_by_other_run(file: Path, other: Path) -> None:
    theirs = other / file.name
    shutil.copyfile(theirs if theirs.exists() else other / "best.pt", file)


def replace_by_neighbour(file: Path, other: Path) -> None:
    neighbours = [f for f in sorted(file.parent.glob("*.pt")) if f != file]
    shutil.copyfile(neighbours[0], file)


share = st.floats(0, 1, exclude_max=True)
damages = st.one_of(
    share.map(truncate),
    st.builds(flip, share, st.integers(0, 7)),
    # The first line is a small part of a file, and the most delicate.
    st.builds(flip, st.floats(0, 0.05), st.integers(0, 7)),
    st.binary(min_size=1, max_size=9).map(append),
    st.sampled_from([remove, replace_by_other_run, replace_by_neighbour]),
)
FILES = (
    "run.json",
    "metrics.jsonl",
    "summary.json",
    "best.pt",
    "best-*.pt",
    "checkpoint-000000003.pt",
    "checkpoint-000000004.pt",
    ".lock",
)


def attempt(read: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return what is read, or the error, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = read()
        except CheckpointError as error:
            result = error
    assert all(w.category is SbiIgniteWarning for w in caught), caught
    return result, [str(w.message) for w in caught]


def check(originals: tuple[Path, Path, Path], pattern: str, damage: Damage) -> None:
    """Damage one file of a fresh copy and read everything."""
    one, other, copy = originals
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(one, copy)
    wanted = load_run(one)
    file = next(iter(sorted(copy.glob(pattern))))
    damage(file, other)
    with RunDirectory.open(copy) as directory:
        checkpoint, messages = attempt(directory.latest)
        if isinstance(checkpoint, CheckpointError):
            assert str(copy) in str(checkpoint)
        else:
            assert checkpoint.iteration in (3, 4)
            assert same(checkpoint.states, states_at(checkpoint.iteration))
            assert len(messages) <= 1
            removed = not (copy / "checkpoint-000000004.pt").exists()
            assert checkpoint.iteration == 4 or messages or removed
        best, _ = attempt(directory.read_best)
        if isinstance(best, dict):
            assert same(best["weights"], states_at(4)["best_weights"]["weights"])
        else:
            assert best is None or str(copy) in str(best)
    run, _ = attempt(lambda: load_run(copy))
    if isinstance(run, CheckpointError):
        assert str(copy) in str(run)
        return
    assert dict(run.manifest) == dict(wanted.manifest)
    assert run.summary in (None, wanted.summary)
    if run.summary is not None:
        assert run.metrics == wanted.metrics


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pattern=st.sampled_from(FILES), damage=damages)
def test_damage_is_noticed(originals, pattern, damage, monkeypatch):
    """The result is an intact checkpoint, with a warning if it is an older one, or an error."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # nothing here outlives the test
    check(originals, pattern, damage)


@pytest.mark.slow
@settings(
    max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pattern=st.sampled_from(FILES), damage=damages)
def test_damage_is_noticed_in_thousands_of_cases(originals, pattern, damage, monkeypatch):
    """The same, over more places and kinds of damage."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    check(originals, pattern, damage)


@pytest.mark.parametrize("pattern", FILES)
def test_an_emptied_file_is_noticed(originals, pattern):
    """A file of no bytes is like a damaged one."""
    check(originals, pattern, truncate(0))


def test_no_single_bit_of_a_checkpoint_matters_unnoticed(originals):
    """Bits all over the newest checkpoint, flipped one at a time, all lead to the one before."""
    one, _, copy = originals
    file = copy / "checkpoint-000000004.pt"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(one, copy)
    data = file.read_bytes()
    with RunDirectory.open(copy) as directory:
        for place in range(0, len(data), 37):
            damaged = bytearray(data)
            damaged[place] ^= 1 << (place % 8)
            file.write_bytes(damaged)
            checkpoint, messages = attempt(directory.latest)
            assert checkpoint.iteration == 3, place
            assert "checkpoint-000000004.pt is damaged" in messages[0]
