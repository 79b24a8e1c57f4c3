"""Slurm itself starts two tasks, which train one network, are cut short and go on."""

from __future__ import annotations

import sys

import pytest

from sbi_ignite import load_run
from tests.runs.test_slurm import ROOT, SLURM, slurm, wait_until  # noqa: F401 # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_two_tasks_of_slurm_train_one_network_and_continue_after_a_requeue(
    slurm,  # noqa: F811 # the fixture
    tmp_path,
):
    run, output = tmp_path / "run", tmp_path / "output.txt"
    slurm.environment.update(
        PYTHONPATH=str(ROOT),
        OMP_NUM_THREADS="1",
        PYTHON=sys.executable,
        SCRIPT=str(tmp_path / "train.py"),
        NUM_SIMULATIONS="300",
        SBI_IGNITE_CHECKPOINT__DIRECTORY=str(run),
    )
    (tmp_path / "train.py").write_text(
        "import os, runpy\n"
        "cut_short = os.environ.get('SLURM_RESTART_COUNT', '0') == '0'\n"
        "os.environ['MAX_EPOCHS'] = '100000' if cut_short else '8'\n"
        "os.environ['SBI_IGNITE_EARLY_STOPPING__PATIENCE'] = '100000'\n"
        f"runpy.run_path({str(SLURM / 'train.py')!r}, run_name='__main__')\n"
    )
    # sbatch keeps a copy of the script elsewhere: it finds job.sh in the folder of submission.
    (tmp_path / "job.sh").write_text((SLURM / "job.sh").read_text())
    options = ["--parsable", "--ntasks=2", f"--output={output}", f"--chdir={tmp_path}"]
    slurm.environment["SLURM_SUBMIT_DIR"] = str(tmp_path)
    job = slurm.ask("sbatch", *options, str(SLURM / "job_many.sh")).strip()
    assert job.isdecimal(), slurm.folder

    def told() -> str:
        return output.read_text() if output.exists() else ""

    metrics = run / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 1, "no training")
    assert load_run(run).manifest["world_size"] == 2
    slurm.ask("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: "goes back into the queue" in told(), "the job was not cut short")
    epochs = len(load_run(run).metrics)
    wait_until(lambda: slurm.state(job) == "COMPLETED", "the job did not end")
    assert load_run(run).summary.resumed_from_epoch == epochs
    assert load_run(run).summary.world_size == 2
    # The first task alone speaks of the training; what a script prints itself, all of them print.
    assert told().count("ended training after") == 1, told()
    assert told().count("stopped by") == 2, told()
