"""Controls: one small thing is different, and the comparison must notice."""

from __future__ import annotations

from types import ModuleType

import torch

from .problem import SHORT, small_flow_matching, small_marginal, small_npe, small_ratio
from .registry import Notes, control


@control(of="npe_c_maf")
def npe_with_one_more_draw(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    torch.rand(1)
    trainer.train(**SHORT)
    return trainer


@control(of="npe_c_maf")
def npe_with_another_rate(inference: ModuleType, notes: Notes):
    trainer = small_npe(inference)
    trainer.train(**SHORT, learning_rate=5e-4 * (1 + 1e-4))
    return trainer


@control(of="nre_NRE_B")
def nre_with_one_more_draw(inference: ModuleType, notes: Notes):
    trainer = small_ratio(inference, "NRE_B")
    torch.rand(1)
    trainer.train(**SHORT)
    return trainer


@control(of="fmpe")
def fmpe_with_another_rate(inference: ModuleType, notes: Notes):
    trainer = small_flow_matching(inference)
    trainer.train(**SHORT, learning_rate=5e-4 * (1 + 1e-4))
    return trainer


@control(of="marginal")
def marginal_with_one_more_draw(inference: ModuleType, notes: Notes):
    trainer = small_marginal(inference)
    torch.rand(1)
    trainer.train(**SHORT)
    return trainer
