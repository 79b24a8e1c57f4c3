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

TRAIN = """
    import os, subprocess, sys, warnings
    import torch
    from sbi.utils import BoxUniform
    from sbi_ignite import NPE, TrainConfig, load_estimator, load_run
    from sbi_ignite.exceptions import CheckpointError, SbiIgniteWarning

    disk = sys.argv[1]

    def train(epochs, checkpoint, logging=()):
        torch.manual_seed(1)
        prior = BoxUniform(-torch.ones(2), torch.ones(2))
        theta = prior.sample((100,))
        inference = NPE(prior, show_progress_bars=False)
        inference.append_simulations(theta, theta + 0.1 * torch.randn_like(theta))
        config = TrainConfig(max_epochs=epochs, batch_size=30, seed=2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SbiIgniteWarning)
            net = inference.train(config, checkpoint=checkpoint, logging=list(logging))
        told = [str(w.message) for w in caught if w.category is SbiIgniteWarning]
        return net.state_dict(), told

    def same(a, b):
        return all(torch.equal(a[name], b[name]) for name in a)
"""

READ_ONLY = (
    TRAIN
    + """
    files = ("jsonl", "tensorboard")
    first, _ = train(2, f"{disk}/run", files)
    held = sorted(os.listdir(f"{disk}/run/logs"))
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        open(f"{disk}/probe", "w")
    except OSError as error:
        print(error.strerror)
    again, told = train(2, f"{disk}/run", files)
    print(same(first, again), told, sorted(os.listdir(f"{disk}/run/logs")) == held)
    print(load_run(f"{disk}/run").status, same(first, load_estimator(f"{disk}/run").state_dict()))
    try:
        train(4, f"{disk}/run")
    except CheckpointError as error:
        print(error)
    """
)

NOT_COMPLETE = """
    import subprocess, sys
    from sbi_ignite.exceptions import CheckpointError
    from sbi_ignite.runs.directory import RunDirectory
    with RunDirectory.open(sys.argv[1]) as directory:
        directory.write_manifest({"status": "interrupted"})
    subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
    try:
        RunDirectory.open(sys.argv[1])
    except CheckpointError as error:
        print(error)
"""

FILLED = (
    TRAIN
    + """
    def fill():
        with open(f"{disk}/filler", "ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                return error.strerror

    calm, _ = train(4, None)
    if sys.argv[2:] == ["from the first start on"]:
        print(fill())
    else:
        early, told = train(2, f"{disk}/run")
        print(told, fill())
        again, told = train(2, f"{disk}/run")
        print("complete", same(again, early), told)
    for start in ("one", "two"):
        weights, told = train(4, f"{disk}/run")
        print(start, same(weights, calm), len(told), "No space left" in told[0])
    os.remove(f"{disk}/filler")
    weights, told = train(4, f"{disk}/run")
    print("room", same(weights, calm), told, load_run(f"{disk}/run").summary.epochs_trained)
    """
)

OPEN = """
    import sys
    from sbi_ignite.exceptions import CheckpointError
    from sbi_ignite.runs.directory import RunDirectory
    try:
        RunDirectory.open(sys.argv[1])
    except CheckpointError as error:
        print(error)
"""


def on_disk(folder: Path, options: str, code: str, *more: str) -> str:
    """Run a script whose argument is a folder on a disk of its own; return what it prints."""
    folder.mkdir()
    mount = (
        f'mount -t tmpfs -o {options} none "$1" && f="$1" p="$2" c="$3" && shift 3 && '
        'exec "$p" -W ignore -c "$c" "$f" "$@"'
    )
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    trial = [*inside, "mount -t tmpfs none /tmp"]
    if not shutil.which("unshare") or subprocess.run(trial, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount disks of their own")
    command = [*inside, mount, "sh", str(folder), sys.executable, textwrap.dedent(code), *more]
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


def test_a_complete_run_on_a_read_only_disk_is_returned(tmp_path):
    """Without a warning, its logs included; more epochs are refused in words."""
    told = on_disk(tmp_path / "read only", "size=20m", READ_ONLY).splitlines()
    assert told[:3] == ["Read-only file system", "True [] True", "complete True"]
    assert "Read-only file system" in told[3]
    assert "complete and can be read, but not changed or continued" in told[3]


def test_an_unfinished_run_on_a_read_only_disk_is_refused(tmp_path):
    """There is nothing to return yet."""
    told = on_disk(tmp_path / "read only", "size=1m", NOT_COMPLETE)
    assert "cannot be used as a run directory: Read-only file system" in told


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_second_start_costs_a_warning(tmp_path):
    """A complete run comes back without one; more epochs are trained, with one for each start."""
    told = on_disk(tmp_path / "small", "size=3m", FILLED).splitlines()
    assert told == [
        "[] No space left on device",
        "complete True []",
        "one True 1 True",
        "two True 1 True",
        "room True [] 4",
    ]


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start_costs_a_warning(tmp_path):
    """And the next start that finds room saves."""
    told = on_disk(tmp_path / "small", "size=3m", FILLED, "from the first start on").splitlines()
    assert told == [
        "No space left on device",
        "one True 1 True",
        "two True 1 True",
        "room True [] 4",
    ]
