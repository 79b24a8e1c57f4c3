"""With a CUDA device, `sbi-ignite doctor` times both and says which one is faster."""

from __future__ import annotations

import json

import pytest
import torch

from tests.cli.terminal import piped

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_both_devices_are_timed_and_the_faster_one_is_named():
    small = ("--rows", "2000", "--batch-size", "200", "--seconds", "1")
    done = piped("doctor", *small, "--json")
    answer = json.loads(done.stdout)
    assert set(answer["speed"]) == {"faster", "cpu", "cuda"}
    times = {name: answer["speed"][name]["seconds_per_epoch"] for name in ("cpu", "cuda")}
    assert answer["speed"]["faster"] == min(times, key=lambda name: times[name])
    named = {(f["section"], f["name"]): f for f in answer["findings"]}
    assert named["devices", "cuda:0"]["memory_gib"] > 0
    assert named["steps", "cuda"]["executor"] == "cuda_graph"
    assert "times as fast as" in named["speed", "faster device"]["text"]
