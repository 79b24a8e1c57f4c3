"""The sbi form of `.train()` gives what sbi gives, bit for bit, through both doors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from .conftest import Records
from .observe import differences
from .scenarios import CONTROLS, SCENARIOS

# The first test waits for the processes that all of them share.
pytestmark = pytest.mark.timeout(900)

RENAMED = [s.name for s in SCENARIOS.values() if s.renamed]
PATCHED = [s.name for s in SCENARIOS.values() if s.patched]

TestFunction = Callable[..., None]


def of_side(side: str) -> Callable[[TestFunction], TestFunction]:
    """Say which side runs the scenarios that a test names; the fixture `records` reads it."""

    def mark(test: TestFunction) -> TestFunction:
        test.side = side
        return test

    return mark


def check_same(sbi: dict[str, Any], other: dict[str, Any]) -> None:
    """Fail with one line for each difference between two records."""
    for side in (sbi, other):
        if side["record"]["error"] is not None:
            pytest.fail(f"{side['door']} fails:\n{side['record']['error']}", pytrace=False)
    found = differences(sbi["record"], other["record"])
    if found:
        pytest.fail("\n".join(["not what sbi gives:", *found]), pytrace=False)


@of_side("renamed")
@pytest.mark.parametrize("name", RENAMED)
def test_renamed_trainers_give_what_sbi_gives(records: dict[str, Records], name: str):
    """Weights, losses, epochs, split, random state and printed text are sbi's own."""
    check_same(records["sbi"][name], records["renamed"][name])
    assert records["renamed"][name]["engine runs"] > 0, "ignite's engine did not run"


@of_side("patched")
@pytest.mark.parametrize("name", PATCHED)
def test_patched_sbi_gives_what_sbi_gives(records: dict[str, Records], name: str):
    """With `patch_sbi()` sbi's own classes give the same numbers as without."""
    check_same(records["sbi"][name], records["patched"][name])
    assert records["patched"][name]["engine runs"] > 0, "ignite's engine did not run"


TRACED = (
    "npe_c_maf",
    "npe_c_mdn",
    "npe_c_zuko_nsf",
    "npe_c_two_rounds_atomic",
    "nle_a",
    "nre_NRE_B",
    "fmpe",
    "npse_ve",
    "marginal",
    "resume",
)
"""Scenarios of which steps can be traced, one of each kind."""


@of_side("traced")
@pytest.mark.parametrize("name", TRACED)
def test_traced_steps_give_what_sbi_gives(records: dict[str, Records], name: str):
    """From the third step on a recording computes losses and gradients; nothing shows."""
    check_same(records["sbi"][name], records["traced"][name])
    assert records["traced"][name]["replays"] > 0, "nothing was traced"


@of_side("generated")
@pytest.mark.parametrize("name", TRACED)
def test_steps_run_as_generated_python_give_what_sbi_gives(records: dict[str, Records], name: str):
    """A torch without TorchScript's interpreter changes no bit either."""
    check_same(records["sbi"][name], records["generated"][name])
    assert records["generated"][name]["replays"] > 0, "nothing was traced"


@of_side("traced")
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RENAMED if name not in TRACED])
def test_tracing_early_gives_what_sbi_gives(records: dict[str, Records], name: str):
    """Whatever is traced, and whatever is left alone, comes out as from sbi."""
    check_same(records["sbi"][name], records["traced"][name])


@of_side("disturbed")
@pytest.mark.parametrize("name", ["npe_c_maf"])
def test_the_comparison_notices_a_wrong_recording(records: dict[str, Records], name: str):
    """The last bit of one parameter's gradients shows in the optimizer's state."""
    disturbed = records["disturbed"][name]
    assert disturbed["replays"] > 0
    found = differences(records["sbi"][name]["record"], disturbed["record"])
    assert any("/optimizer_state/" in line for line in found), found


@of_side("sbi again")
@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_sbi_gives_what_sbi_gives(records: dict[str, Records], name: str):
    """The comparison is of things that a second run of sbi reproduces."""
    check_same(records["sbi"][name], records["sbi again"][name])


@of_side("renamed")
@pytest.mark.parametrize("name", list(CONTROLS))
def test_the_comparison_notices_a_small_change(records: dict[str, Records], name: str):
    """One draw more, or a rate changed by a ten-thousandth, shows in the weights and losses."""
    original = records["sbi"][CONTROLS[name].seeded_as]["record"]
    disturbed = records["renamed"][name]["record"]
    assert disturbed["error"] is None, disturbed["error"]
    found = differences(original, disturbed)
    assert any("/weights/" in line for line in found), found
    assert any("/summary/training_loss" in line for line in found), found


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value in nested dictionaries and lists."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))
    else:
        yield path


def changed(value: Any, path: tuple[Any, ...]) -> Any:
    """Return a copy of nested data with the least change at one place."""
    if path:
        copy = dict(value) if isinstance(value, dict) else list(value)
        copy[path[0]] = changed(value[path[0]], path[1:])
        return copy
    if isinstance(value, torch.Tensor):
        return _next(value)
    if isinstance(value, bool) or value is None:
        return not value
    return value + "!" if isinstance(value, str) else value * 2 + 1


def _next(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose last entry is the next number of its type."""
    copy = tensor.clone().flatten()
    if copy.dtype.is_floating_point:
        copy[-1] = torch.nextafter(copy[-1], torch.tensor(float("inf"), dtype=copy.dtype))
    else:
        copy[-1] = copy[-1] + 1
    return copy.reshape(tensor.shape)


@of_side("renamed")
@pytest.mark.parametrize("name", ["resume"])
def test_the_comparison_notices_a_change_of_any_field(records: dict[str, Records], name: str):
    """Whichever one value of a record changes, by however little, the comparison says where."""
    record = records["sbi"][name]["record"]
    paths = list(leaves(record))
    assert len(paths) > 100
    for path in paths:
        assert differences(record, changed(record, path)), f"no difference seen at {path}"
