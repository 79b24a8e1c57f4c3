"""On real disks that are full or read-only, a training is not lost and an error is clear.

The disks are mounted in a namespace of their own, so that being root changes nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.small import ROOT

SCRIPT = """
    import sys, warnings
    import torch
    from sbi.utils import BoxUniform
    from sbi_ignite import NPE, TrainConfig
    from sbi_ignite.exceptions import SbiIgniteWarning

    def train(checkpoint):
        torch.manual_seed(1)
        prior = BoxUniform(-torch.ones(2), torch.ones(2))
        theta = prior.sample((100,))
        inference = NPE(prior, show_progress_bars=False)
        inference.append_simulations(theta, theta + 0.1 * torch.randn_like(theta))
        config = TrainConfig(max_epochs=3, batch_size=30, seed=2)
        return inference.train(config, checkpoint=checkpoint).state_dict()

    calm = train(None)
    for start in (1, 2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SbiIgniteWarning)
            weights = train(sys.argv[1])
        told = [w for w in caught if w.category is SbiIgniteWarning]
        assert len(told) == 1 and "No space left" in str(told[0].message), told
        assert all(torch.equal(weights[name], calm[name]) for name in calm)
    print("equal")
"""

OPEN = """
    import sys
    from sbi_ignite.exceptions import CheckpointError
    from sbi_ignite.runs.directory import RunDirectory
    try:
        RunDirectory.open(sys.argv[1])
    except CheckpointError as error:
        print(error)
"""


def on_disk(folder: Path, options: str, code: str) -> str:
    """Run a script whose argument is a folder on a disk of its own; return what it prints."""
    folder.mkdir()
    mount = f'mount -t tmpfs -o {options} none "$1" && exec "$2" -W ignore -c "$3" "$1"'
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    trial = [*inside, "mount -t tmpfs none /tmp"]
    if not shutil.which("unshare") or subprocess.run(trial, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount disks of their own")
    command = [*inside, mount, "sh", str(folder), sys.executable, textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_read_only_disk_is_refused_with_its_name(tmp_path):
    """The error names the directory and says why, also to root."""
    told = on_disk(tmp_path / "read only", "ro", OPEN)
    assert str(tmp_path / "read only") in told
    assert "Read-only file system" in told


@pytest.mark.slow
def test_a_training_on_a_full_disk_ends_as_without_a_directory(tmp_path):
    """One warning; the weights are the same, at the second start too."""
    assert on_disk(tmp_path / "small", "size=300k", SCRIPT) == "equal\n"
