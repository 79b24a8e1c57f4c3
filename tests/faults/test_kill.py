"""A training that is killed at any instant, often, ends as if nobody had touched it."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tests import forking
from tests.faults.programs import PROGRAMS

ORDINARY = ("npe", "fmpe_as_sbi", "npe_two_rounds_typed")
KILLS_EACH = 3
SLOW_KILLS_EACH = 12


def killed(name: str, kills: int, folder: Path) -> int:
    """Run a program with kills at random moments; return how many there were."""
    seed = random.SystemRandom().randrange(2**31)
    command = ("-W", "ignore", "-m", "tests.faults.killing")
    done = forking.run(*command, name, str(seed), str(kills), str(folder), timeout=5400)
    told = f"{name}, seed of the kill times {seed}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == 0, told
    assert f"EQUAL {name}" in done.stdout, told
    return sum(map(int, re.findall(r"KILLS (\d+)", done.stdout)))


@pytest.mark.parametrize("name", ORDINARY)
def test_a_killed_training_ends_as_if_nobody_had_touched_it(name: str, tmp_path: Path) -> None:
    assert killed(name, KILLS_EACH, tmp_path) > 0


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_hundred_random_kills_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    total = 0
    for name in PROGRAMS:
        folder = tmp_path / name
        folder.mkdir()
        total += killed(name, SLOW_KILLS_EACH, folder)
        round_two = tmp_path / f"{name} again"
        if total < 100 and name == list(PROGRAMS)[-1]:
            round_two.mkdir()
            total += killed(name, 100 - total, round_two)
    with capsys.disabled():
        print(f"\n{total} kills over {', '.join(PROGRAMS)}: every end was the undisturbed one")
    assert total >= 100


def test_the_comparison_notices_a_single_wrong_bit(tmp_path: Path) -> None:
    import torch

    from tests.faults.killing import differences

    weights = {"w": torch.zeros(3), "losses": [1.0, 2.0]}
    other = {"w": torch.tensor([0.0, 0.0, 1e-30]), "losses": [1.0, 2.0]}
    assert differences(weights, weights) == []
    assert differences(weights, other) == ["/w: tensors differ"]
    assert differences(weights, {**weights, "losses": [1.0, 2.0000000001]}) != []
