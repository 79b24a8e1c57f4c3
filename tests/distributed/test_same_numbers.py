"""Several processes compute what one computes with the same global batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import programs
from tests.distributed.ranks import together

EQUAL = {
    "NPE:maf": {},
    "NPE:zuko_nsf": {},
    "NRE_A": {},
    "NRE_B": {},
    "NRE_C": {},
    "BNRE": {},
    "NLE:maf": {},
    "MNLE": {},
    "MarginalTrainer": {},
    # What is clipped is the mean gradient, whose norm no process knows by itself.
    "NPE:maf clipped": {"clip_max_norm": 0.01},
    # 182 training rows in batches of 2 for three processes: some have none.
    "NPE:mdn small-batches": {"batch_size": 2},
    "NRE_B:linear small-batches": {"batch_size": 10},
    "NPE:mdn loaders": {"dataloader_kwargs": {"num_workers": 0}},
}
"""Methods whose noise, if any, all processes draw together."""

WITH_THREE = ("NPE:maf", "NRE_B", "NPE:mdn small-batches")


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    folder: Path = tmp_path_factory.mktemp("computed")
    calls = {1: EQUAL, 2: EQUAL, 3: {name: EQUAL[name] for name in WITH_THREE}}
    return {n: together(programs.first_gradients, n, folder / str(n), calls[n]) for n in calls}


CASES = [*((2, name) for name in EQUAL), *((3, name) for name in WITH_THREE)]


@pytest.mark.parametrize(("size", "name"), CASES)
def test_gradients_and_losses_are_those_of_one_process(computed, size, name):
    alone = computed[1][0][name]
    assert alone["gradients"]
    for found in computed[size]:
        assert found[name]["world_size"] == size
        assert found[name]["gradients"].keys() == alone["gradients"].keys()
        whole = torch.cat([gradient.flatten() for gradient in alone["gradients"].values()]).norm()
        for part, gradient in alone["gradients"].items():
            off = (found[name]["gradients"][part] - gradient).norm() / whole
            assert off <= 1e-6, (part, off)
        for kind in ("training_loss", "validation_loss"):
            assert found[name][kind] == pytest.approx(alone[kind], abs=2e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_all_processes_end_with_the_same_weights_and_random_states(computed, size):
    first, *others = computed[size]
    for other in others:
        for name in first:
            for part, weights in first[name]["weights"].items():
                assert torch.equal(weights, other[name]["weights"][part])
            assert torch.equal(first[name]["next_random"], other[name]["next_random"])
