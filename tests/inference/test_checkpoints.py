"""Run directories behind `.train()`: what is continued, what is refused, what cuts a training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_ignite import (
    NLE,
    NPE,
    CheckpointConfig,
    CheckpointError,
    CheckpointMismatchError,
    EarlyStopping,
    LoggingConfig,
    TrainConfig,
    load_run,
)

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
ROOT = Path(__file__).parents[2]


def simulations(seed: int, rows: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    theta = PRIOR.sample((rows,))
    return theta, theta + 0.2 * torch.randn_like(theta)


def trained(trainer=NPE, seed=0, config=None, **kwargs):
    """Train as a script would that is started anew."""
    inference = trainer(PRIOR, show_progress_bars=False).append_simulations(*simulations(seed))
    inference.train(config or TrainConfig(max_epochs=3, batch_size=50), **kwargs)
    return inference


def same(a, b) -> bool:
    weights = a._neural_net.state_dict(), b._neural_net.state_dict()
    return all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_longer_budget_continues_and_equals_the_uninterrupted_training(tmp_path):
    trained(checkpoint=tmp_path / "run")
    longer = TrainConfig(max_epochs=6, batch_size=50)
    continued = trained(config=longer, checkpoint=tmp_path / "run")
    calm = trained(config=longer)
    assert same(continued, calm)
    assert continued.training_summary.resumed_from_epoch == 3
    assert continued.training_summary.validation_loss == calm.training_summary.validation_loss


def test_a_complete_run_trains_nothing_and_leaves_the_same_random_state(tmp_path):
    first = trained(checkpoint=tmp_path / "run")
    after_first = torch.rand(3)
    second = trained(checkpoint=tmp_path / "run")
    assert torch.equal(after_first, torch.rand(3))
    assert same(first, second)
    assert second.summary["validation_loss"] == first.summary["validation_loss"]
    assert second.training_summary.resumed_from_epoch == 3
    second.build_posterior().sample((2,), x=torch.zeros(1, 2), show_progress_bars=False)


def test_more_patience_goes_on_and_a_users_stop_stays(tmp_path):
    stop = EarlyStopping.when(lambda state: state.epoch >= 2)
    first = trained(checkpoint=tmp_path / "run", early_stopping=stop)
    again = trained(checkpoint=tmp_path / "run", early_stopping=stop)
    assert first.training_summary.stop_reason == again.training_summary.stop_reason == "rule"
    assert again.training_summary.epochs_trained == 2


def test_other_data_are_refused_with_advice(tmp_path):
    trained(seed=0, checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointMismatchError, match=r"data differ.*torch\.manual_seed"):
        trained(seed=1, checkpoint=tmp_path / "run")


def test_another_method_or_rate_is_refused_by_name(tmp_path):
    trained(checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointMismatchError, match=r"NPE_C.*NLE_A"):
        trained(NLE, checkpoint=tmp_path / "run")
    other = TrainConfig(max_epochs=3, batch_size=50, learning_rate=1e-3)
    with pytest.raises(CheckpointMismatchError, match="learning_rate"):
        trained(config=other, checkpoint=tmp_path / "run")


def test_must_needs_something_and_never_begins_anew(tmp_path):
    with pytest.raises(CheckpointError, match="nothing to continue"):
        trained(checkpoint=CheckpointConfig(directory=tmp_path / "run", resume="must"))
    trained(seed=0, checkpoint=tmp_path / "run")
    never = CheckpointConfig(directory=tmp_path / "run", resume="never")
    assert trained(seed=1, checkpoint=never).training_summary.resumed_from_epoch == 0
    assert (tmp_path / "run" / "replaced-1" / "run.json").exists()


def test_rounds_have_directories_of_their_own_and_share_one_axis(tmp_path):
    def script():
        torch.manual_seed(3)
        inference, proposal = NPE(PRIOR, show_progress_bars=False), PRIOR
        for _ in range(2):
            theta = proposal.sample((120,))
            inference.append_simulations(theta, theta + 0.2 * torch.randn_like(theta), proposal)
            inference.train(
                TrainConfig(max_epochs=3, batch_size=50),
                checkpoint=tmp_path / "run",
                logging=LoggingConfig(backend="jsonl", log_dir=tmp_path / "log"),
            )
            proposal = inference.build_posterior().set_default_x(torch.zeros(1, 2))
        return inference

    first, second = script(), script()
    assert same(first, second)
    assert second.training_summary.resumed_from_epoch == 3
    rounds = [load_run(tmp_path / "run"), *load_run(tmp_path / "run").rounds]
    assert [(run.status, len(run.metrics)) for run in rounds] == [("complete", 3)] * 2
    assert [run.manifest["round"] for run in rounds] == [0, 1]
    lines = map(json.loads, (tmp_path / "log" / "metrics.jsonl").read_text().splitlines())
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3, 4, 5, 6]


def test_a_time_limit_cuts_a_training_that_then_ends_as_if_it_had_not(tmp_path, monkeypatch):
    endless = {"max_epochs": 6, "batch_size": 20}

    def slow(state):
        time.sleep(0.15)

    class Slow:
        on_epoch_end = staticmethod(slow)

    cut = trained(
        config=TrainConfig(max_time=0.2, **endless), checkpoint=tmp_path / "run", callbacks=[Slow()]
    )
    assert cut.training_summary.stop_reason == "time_limit"
    assert not cut.training_summary.complete
    assert load_run(tmp_path / "run").status == "interrupted"
    done = trained(config=TrainConfig(**endless), checkpoint=tmp_path / "run")
    assert done.training_summary.complete
    assert same(done, trained(config=TrainConfig(**endless)))


SCRIPT = """
import sys, torch
from pathlib import Path
from sbi.inference import NPE, NLE
from sbi.utils import BoxUniform

torch.manual_seed(7)
torch.set_num_threads(1)
prior = BoxUniform(-torch.ones(2), torch.ones(2))
theta = prior.sample((200,))
x = theta + 0.2 * torch.randn_like(theta)
for trainer in (NPE, NLE):
    inference = trainer(prior).append_simulations(theta, x)
    budget = dict(stop_after_epochs=3, max_num_epochs=int(sys.argv[1]))
    net = inference.train(training_batch_size=20, **budget)
torch.save(net.state_dict(), sys.argv[2])
"""


def run_script(tmp_path, epochs, out, directory, **popen):
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env |= {"SBI_IGNITE_CHECKPOINT__DIRECTORY": str(directory)}
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "sbi_ignite",
        "script.py",
        str(epochs),
        str(out),
    ]
    return subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, **popen)


@pytest.mark.slow
def test_an_unchanged_script_becomes_resumable_by_a_variable_alone(tmp_path):
    """SIGTERM ends it with the shell's code; the same command goes on; a third trains nothing."""
    calm = run_script(tmp_path, 8, tmp_path / "calm.pt", tmp_path / "calm")
    assert calm.wait(120) == 0

    directory = tmp_path / "cut"
    first = run_script(tmp_path, 8, tmp_path / "cut.pt", directory)
    for _ in range(6000):
        if (directory / "metrics.jsonl").exists() and (directory / "metrics.jsonl").read_text():
            break
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    code = first.wait(120)
    if code != 0:  # on a fast machine it may have been through already
        assert code == 128 + signal.SIGTERM
        assert load_run(directory).status == "interrupted"
    assert run_script(tmp_path, 8, tmp_path / "cut.pt", directory).wait(120) == 0
    trees = [torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("calm", "cut")]
    assert all(torch.equal(trees[0][name], trees[1][name]) for name in trees[0])

    before = {p: p.read_bytes() for p in directory.rglob("metrics.jsonl")}
    assert run_script(tmp_path, 8, tmp_path / "third.pt", directory).wait(120) == 0
    assert {p: p.read_bytes() for p in directory.rglob("metrics.jsonl")} == before
    assert load_run(directory).manifest["method"] == "NPE_C"
    assert load_run(directory / "trainer-1").manifest["method"] == "NLE_A"
