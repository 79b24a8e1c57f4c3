"""`compile=` and `precision=`: what each setting does, and what it does where it cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sbi_ignite import SettingsError, TrainConfig, run_training
from sbi_ignite.capture import compiler
from tests.capture.test_verification import BATCHES, mlp, squared, trained
from tests.small import ready, same, train


def test_cuda_graphs_on_a_cpu_are_refused_before_training():
    model = mlp()()
    before = model[0].weight.clone()
    with pytest.raises(SettingsError, match="needs a CUDA device"):
        run_training(TrainConfig(compile="cuda_graph"), model, squared, BATCHES)
    assert torch.equal(model[0].weight, before)


def test_mixed_precision_computes_in_bf16_and_keeps_weights_in_32_bit():
    """Training runs in bfloat16, validation in full precision."""
    seen = []

    class Looks(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            seen.append((self.training, y.dtype))
            return y

    model = nn.Sequential(Looks(2, 8), nn.Tanh(), nn.Linear(8, 1))
    config = TrainConfig(precision="bf16-mixed", max_epochs=2)
    model, summary = run_training(config, model, squared, BATCHES, BATCHES)
    assert set(seen) == {(True, torch.bfloat16), (False, torch.float32)}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert summary.validation_loss[-1] < summary.validation_loss[0]


@pytest.mark.parametrize("name", ["NPE_C", "NRE_B", "FMPE"])
def test_mixed_precision_trains_sbis_networks_and_traces_them_exactly(name, monkeypatch):
    monkeypatch.setattr(compiler, "STEPS_BEFORE_TRACING", 2)

    def run(compile):
        config = TrainConfig(
            precision="bf16-mixed", compile=compile, max_epochs=5, batch_size=30, clip_max_norm=5.0
        )
        return train(ready(name), config)

    traced, eager = run("auto"), run("off")
    assert same(traced, eager)
    assert traced.training_summary.training_loss == eager.training_summary.training_loss
    full = train(ready(name), TrainConfig(max_epochs=5, batch_size=30))
    assert not same(full, eager)
    first, second = (t.training_summary.validation_loss[-1] for t in (full, eager))
    assert first == pytest.approx(second, abs=0.1)


def test_errors_of_a_loss_are_not_taken_for_errors_of_the_compiler():
    def broken(model, batch):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        trained(mlp(), "inductor", broken)


def test_a_network_that_cannot_be_computed_in_bf16_says_so(tmp_path, monkeypatch):
    """Mixture density networks of sbi write numbers of one type into tensors of another."""
    import sbi_ignite.inference

    monkeypatch.chdir(tmp_path)
    theta = torch.randn(60, 2)
    trainer = sbi_ignite.inference.NPE(density_estimator="mdn", show_progress_bars=False)
    trainer.append_simulations(theta, theta)
    with pytest.raises(SettingsError, match=r"bf16-mixed.*does not take bfloat16"):
        trainer.train(TrainConfig(precision="bf16-mixed", max_epochs=1))
