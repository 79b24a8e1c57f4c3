"""Trainings of every family leave runs from which their estimators come back."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_ignite import (
    FMPE,
    MNLE,
    MNPE,
    NLE,
    NPE,
    NPE_A,
    NPSE,
    NRE,
    CheckpointConfig,
    MarginalTrainer,
    TrainConfig,
)
from sbi_ignite.bridge.load import load_estimator
from sbi_ignite.runs.load import load_run

PRIOR = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
WORDY = ["ignore:The mixed neural", "ignore:Inferring num_cat", "ignore:Maximum number of epochs"]
pytestmark = [pytest.mark.filterwarnings(words) for words in WORDY]

TRAINERS = {
    "NPE": NPE,
    "NPE_A": NPE_A,
    "NLE": NLE,
    "MNLE": MNLE,
    "MNPE": MNPE,
    "NRE": NRE,
    "FMPE": FMPE,
    "NPSE": NPSE,
    "marginal": MarginalTrainer,
}


def simulations(name):
    """Return 120 rows of theta and x, the last column a whole number where the method asks."""
    generator = torch.Generator().manual_seed(2)
    theta = 4 * torch.rand(120, 2, generator=generator) - 2
    x = 10 * theta + torch.randn(120, 2, generator=generator) - 50
    if name == "MNPE":
        theta[:, 1] = torch.arange(120) % 3 - 1
    if name == "MNLE":
        x[:, 1] = torch.arange(120) % 4
    return theta, x


def train(name, *args, **kwargs):
    """Train an estimator on these simulations; return it, and the trainer."""
    torch.manual_seed(3)
    theta, x = simulations(name)
    if name == "marginal":
        trainer = MarginalTrainer(show_progress_bars=False)
        trainer.append_samples(x)
    else:
        prior = None if name == "MNPE" else PRIOR
        trainer = TRAINERS[name](prior=prior, show_progress_bars=False)
        trainer.append_simulations(theta, x)
    return trainer.train(*args, **kwargs), trainer


def values(estimator, name):
    """Return losses or log probabilities under one random state."""
    theta, x = simulations(name)
    estimator.eval()
    torch.manual_seed(4)
    with torch.no_grad():
        if name == "marginal":
            return estimator.log_prob(x.unsqueeze(0))
        if name == "NRE":
            return estimator(theta, x)
        return estimator.loss(x, theta) if name in ("NLE", "MNLE") else estimator.loss(theta, x)


@pytest.mark.parametrize("form", ["typed", "sbi"])
@pytest.mark.parametrize("name", TRAINERS)
def test_the_trained_estimator_is_loaded_bit_for_bit(name, form, tmp_path):
    """What `load_estimator` returns is what `train` returned."""
    if form == "typed":
        args, kwargs = (TrainConfig(max_epochs=2, batch_size=50),), {}
    else:
        args, kwargs = (), {"max_num_epochs": 1, "training_batch_size": 50}
    estimator, _ = train(name, *args, checkpoint=CheckpointConfig(tmp_path), **kwargs)
    assert torch.equal(values(load_estimator(tmp_path), name), values(estimator, name))


def test_a_complete_run_is_not_trained_again(tmp_path):
    """The second start returns the same weights and the same summary, without an epoch."""
    config = TrainConfig(max_epochs=3, batch_size=50)
    first, trainer = train("NPE", config, checkpoint=str(tmp_path))
    before = load_run(tmp_path)
    second, again = train("NPE", config, checkpoint=str(tmp_path))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert again.training_summary.epochs_trained == 3
    assert again.training_summary.resumed_from_epoch == 3
    assert load_run(tmp_path).metrics == before.metrics
    assert again.training_summary.training_loss == trainer.training_summary.training_loss


@pytest.mark.slow
def test_nothing_of_sbi_is_needed_to_look_at_a_run(tmp_path):
    """`load_run` imports neither sbi nor ignite, so that a look from a login node is quick."""
    train("NPE", TrainConfig(max_epochs=1), checkpoint=str(tmp_path))
    code = """
        import sys
        from sbi_ignite.runs.load import load_run
        print(load_run(sys.argv[1]).status, {"sbi", "ignite"} & set(sys.modules))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "complete set()"
