"""On a CUDA device, the steps of all members of an ensemble are one CUDA graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_ignite import FMPE, NPE, NRE, TrainConfig, train_ensemble
from sbi_ignite.training import stacked as module

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # of torch, about the card it finds
]

TRAINERS = {
    **{f"NPE {kind}": (NPE, {"density_estimator": kind}) for kind in ("maf", "nsf", "zuko_nsf")},
    "NPE mdn": (NPE, {"density_estimator": "mdn"}),
    "NRE": (NRE, {}),
    "FMPE": (FMPE, {}),
}


def trained(name: str, stacked: Any) -> Any:
    """Return an ensemble of three on the card."""
    kind, arguments = TRAINERS[name]
    torch.manual_seed(0)
    prior = BoxUniform(-torch.ones(2, device="cuda"), torch.ones(2, device="cuda"))
    theta = 2 * torch.rand(500, 2) - 1
    x = theta + 0.1 * torch.randn(500, 2)

    def make() -> Any:
        made = kind(prior, device="cuda", show_progress_bars=False, **arguments)
        return made.append_simulations(theta, x)

    config = TrainConfig(max_epochs=3, batch_size=90)
    return train_ensemble(make, 3, config, seed=1, stacked=stacked)


@pytest.mark.parametrize("name", TRAINERS)
def test_stacked_members_on_a_card_are_those_of_single_training_up_to_rounding(name):
    together, alone = trained(name, True), trained(name, False)
    assert {s.executor for s in together.summary.summaries} == {"stacked"}
    for ours, theirs in zip(together.estimators, alone.estimators, strict=True):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_a_stack_runs_as_one_cuda_graph():
    found = trained("NPE maf", True)
    for summary in found.summary.summaries:
        assert "cuda_graph" in summary.executor_reason


def test_auto_measures_on_the_card(monkeypatch):
    monkeypatch.setattr(module, "READY_AFTER", 3)
    assert " ms stacked and " in trained("NPE maf", "auto").summary.stacked
