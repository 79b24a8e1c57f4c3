"""torchrun itself: scripts of plain sbi, and SIGTERM to the launcher."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from sbi_ignite import load_run
from tests.distributed.ranks import epochs_of, wait_for
from tests.small import ROOT

SCRIPT = """
import os, torch
from sbi.inference import NPE
from sbi.utils import BoxUniform

torch.manual_seed(0)
prior = BoxUniform(-torch.ones(2), torch.ones(2))
trainer = NPE(prior, density_estimator="mdn", show_progress_bars=False)
for proposal in [None, "posterior"][: int(os.environ["ROUNDS"])]:
    drawn_from = prior if proposal is None else posterior
    theta = drawn_from.sample((120,))
    x = theta + 0.1 * torch.randn_like(theta)
    trainer.append_simulations(theta, x, proposal=None if proposal is None else posterior)
    trainer.train(max_num_epochs=int(os.environ["EPOCHS"]), stop_after_epochs=10**6)
    posterior = trainer.build_posterior().set_default_x(torch.zeros(2))
sample = posterior.sample((1,), show_progress_bars=False)
words = (trainer.training_summary.world_size, trainer.epoch, sample.sum().item())
print("RESULT {} {} {}\\n".format(*words), end="")  # in one piece: two processes write here
"""


def launch(folder: Path, **variables: str) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(SCRIPT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *command, "-m", "sbi_ignite", "script.py"],
        cwd=folder,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "SBI_IGNITE_CHECKPOINT__DIRECTORY": "run",
            "ROUNDS": "1",
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_to_torchrun_saves_and_the_same_command_continues_through_two_rounds(tmp_path):
    """An unchanged script of plain sbi; torchrun ends with 1, and run.json says what happened."""
    job = launch(tmp_path, EPOCHS="1000000")
    try:
        wait_for(lambda: job.poll() is not None or epochs_of(tmp_path / "run") >= 2, 120)
        job.send_signal(signal.SIGTERM)
        output, errors = job.communicate(timeout=60)
    finally:
        job.kill()
        job.wait()
    assert job.returncode == 1, errors
    assert load_run(tmp_path / "run").status == "interrupted"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["world_size"] == 2
    epochs = len(load_run(tmp_path / "run").metrics)

    job = launch(tmp_path, EPOCHS=str(epochs + 1), ROUNDS="2")
    output, errors = job.communicate(timeout=240)
    assert job.returncode == 0, errors
    samples = re.findall(r"RESULT 2 .*", output)
    assert len(samples) == 2, output
    assert samples[0] == samples[1]  # the same in both processes
    assert load_run(tmp_path / "run").summary.resumed_from_epoch == epochs
    assert load_run(tmp_path / "run" / "round-1").summary.world_size == 2
