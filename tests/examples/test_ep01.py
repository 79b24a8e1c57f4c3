"""EP-01's pipeline runs, with our imports and with the proposal's own under the patch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import forking
from tests.small import ROOT

EXAMPLE = ROOT / "examples" / "ep01_pipeline.py"
BUDGET = ("--num-simulations", "200", "--max-epochs", "2")


def proposal_imports() -> str:
    """Return the example with the imports as EP-01 has them."""
    text = EXAMPLE.read_text(encoding="utf-8")
    ours = (
        "from sbi_ignite import EarlyStopping, LoggingConfig, LossArgsNPE, TrainConfig\n"
        "from sbi_ignite.inference import NPE, simulate_for_sbi\n"
    )
    assert ours in text
    return text.replace(
        ours,
        "from sbi.inference import NPE, simulate_for_sbi\n"
        "from sbi.training import TrainConfig, LossArgsNPE, LoggingConfig, EarlyStopping\n",
    )


def check(output: str) -> None:
    assert "NPE_C" in output
    assert "max_epochs" in output
    assert "posterior given x = (0, 0)" in output


def test_the_pipeline_runs_with_our_imports():
    done = forking.run(str(EXAMPLE), *BUDGET, "--picture", "posterior.png")
    assert done.returncode == 0, done.stderr[-2000:]
    check(done.stdout)
    assert os.path.getsize("posterior.png") > 1000


def test_the_pipeline_runs_with_the_proposals_imports_under_the_patch(tmp_path: Path):
    script = tmp_path / "proposal.py"
    script.write_text(proposal_imports(), encoding="utf-8")
    done = forking.run("-m", "sbi_ignite", str(script), *BUDGET)
    assert done.returncode == 0, done.stderr[-2000:]
    check(done.stdout)


def test_the_proposals_imports_need_the_patch(tmp_path: Path):
    """Without it there is no sbi.training; the test above is not idle."""
    script = tmp_path / "proposal.py"
    script.write_text(proposal_imports(), encoding="utf-8")
    done = forking.run(str(script), *BUDGET)
    assert "No module named 'sbi.training'" in done.stderr


def test_the_calls_are_those_of_the_proposal():
    """Only imports, budget and backend differ from its text."""
    text = EXAMPLE.read_text(encoding="utf-8")
    for line in (
        "prior = utils.BoxUniform(low=-2 * torch.ones(2), high=2 * torch.ones(2))",
        "early_stop = EarlyStopping.validation_loss(patience=20)",
        "inference = NPE(prior=prior)",
        "inference.append_simulations(theta, x)",
        "    LossArgsNPE(exclude_invalid_x=True),",
        "    logging=logging,",
        "    early_stopping=early_stop,",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "standalone_runner.py",
            ["--max-epochs", "3", "--picture", "small.png"],
            "root mean squared",
        ),
        (
            "callbacks_and_ignite.py",
            ["--max-epochs", "2", "--num-simulations", "200", "--picture", "small.png"],
            "stopped by max_epochs after 2 epochs",
        ),
    ],
)
def test_the_small_examples_run(name, options, words):
    done = forking.run(str(ROOT / "examples" / name), *options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert words in done.stdout
    assert os.path.getsize("small.png") > 1000
