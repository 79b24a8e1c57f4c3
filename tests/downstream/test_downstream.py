"""sbi's own tests pass under the patch as they pass without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .run import environment, main


@pytest.mark.downstream
@pytest.mark.timeout(5400)
def test_sbis_own_tests_have_no_new_failure_under_the_patch():
    """What comes of each of sbi's fast training tests is the same with the patch and without."""
    assert main([]) == 0


def session(folder: Path, text: str, *options: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Run pytest with the plugin on one file, and return its exit status and the outcomes."""
    (folder / "some_test.py").write_text(text)
    out = folder / "outcomes.json"
    command = [sys.executable, "-m", "pytest", "-p", "plugin", "-p", "no:cacheprovider", "-q"]
    result = subprocess.run(
        [*command, "--outcomes", str(out), *options, "some_test.py"],
        cwd=folder,
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    return result.returncode, json.loads(out.read_text())


TRAINS = """
import torch
from sbi.inference import NPE_A
from sbi.utils import BoxUniform

def test_train():
    trainer = NPE_A(BoxUniform(-torch.ones(2), torch.ones(2)), num_components=2)
    theta = torch.rand(40, 2)
    trainer.append_simulations(theta, theta).train(max_num_epochs=1)
"""

SEVERAL = """
import pytest

def test_pass(): pass
def test_fail(): assert False
def test_skip(): pytest.skip()
@pytest.mark.xfail
def test_xfail(): assert False
@pytest.mark.xfail
def test_xpass(): pass
@pytest.fixture
def broken(): raise ValueError
def test_error(broken): pass
"""


@pytest.mark.downstream
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_session_that_trains_through_the_engine_passes(tmp_path: Path, workers: tuple[str, ...]):
    """The plugin turns the patch on, in the workers of xdist too, and counts engine runs."""
    status, record = session(tmp_path, TRAINS, *workers)
    assert status == 0
    assert record["engine runs"]["some_test.py::test_train"] > 0


@pytest.mark.downstream
def test_a_session_in_which_the_engine_never_ran_fails(tmp_path: Path):
    """A patch that does nothing cannot pass."""
    status, _ = session(tmp_path, "def test_nothing(): pass")
    assert status == 9


@pytest.mark.downstream
def test_the_patch_is_off_where_it_is_said_to_be(tmp_path: Path):
    """The comparison is with sbi alone."""
    loaded = "import sys\ndef test_alone(): assert 'sbi_ignite' not in sys.modules"
    status, _ = session(tmp_path, TRAINS + loaded, "--sbi-ignite", "off")
    assert status == 0


def test_every_outcome_is_noted(tmp_path: Path):
    """A failure, a skip, and a test whose fixture breaks are told apart."""
    status, record = session(tmp_path, SEVERAL, "--sbi-ignite", "off")
    assert status == 1
    came = {name.split("_")[-1]: outcome for name, outcome in record["outcomes"].items()}
    assert came == {
        "pass": "passed",
        "fail": "failed",
        "skip": "skipped",
        "xfail": "xfailed",
        "xpass": "xpassed",
        "error": "error",
    }
