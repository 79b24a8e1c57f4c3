"""Record scenarios on one side, in a process of its own, and write the records to a file.

Run as `python -m tests.parity.record DOOR OUT FOLDER NAME...`, where DOOR is `sbi` (sbi alone),
`renamed` (the trainers of `sbi_ignite.inference`), `patched` (sbi's own, under `patch_sbi()`),
`traced` (renamed, with steps traced from the second on), `generated` (traced, without TorchScript)
or `disturbed` (traced, and then wrong in the last bit of one gradient).
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .observe import observe
from .scenarios import CONTROLS, SCENARIOS

DOORS = ("sbi", "renamed", "patched", "traced", "generated", "disturbed")
FOREIGN = ("sbi_ignite", "ignite")
"""Packages that the process of plain sbi must never load."""


def open_door(door: str) -> ModuleType:
    """Return the module whose trainers this side uses."""
    if door == "sbi":
        return importlib.import_module("sbi.inference")
    if door == "generated":
        without_torchscript()
    if door in ("traced", "generated", "disturbed"):
        trace_early()
    if door in ("renamed", "traced", "generated", "disturbed"):
        return importlib.import_module("sbi_ignite.inference")
    sbi_inference = importlib.import_module("sbi.inference")
    importlib.import_module("sbi_ignite").patch_sbi()
    return sbi_inference


def count_engine_runs() -> list[int]:
    """Count the runs of ignite's engine from now on, in the one entry of the returned list."""
    engine = importlib.import_module("ignite.engine").Engine
    original, count = engine.run, [0]

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return original(self, *args, **kwargs)

    engine.run = run
    return count


def without_torchscript() -> None:
    """Take from torch what its interpreter needs, as a later torch might."""
    del torch._C._create_function_from_graph
    # What the package then says about it is no number of sbi's.
    logging.getLogger("sbi_ignite.capture").setLevel(logging.ERROR)


def trace_early() -> None:
    """Let the shortest trainings be traced: one eager step, one that proves the recording."""
    compiler = importlib.import_module("sbi_ignite.capture.compiler")
    original = compiler.TracingRules

    def rules(**fields: Any) -> Any:
        # The first replay of a recording takes longer than those that follow.
        return original(**{**fields, "proofs": 1, "must_pay": False})

    compiler.STEPS_BEFORE_TRACING, compiler.TracingRules = 1, rules


def count_replays(disturb: bool) -> list[int]:
    """Count the batches that are computed by recordings from now on.

    Args:
        disturb: Change the last bit of the gradients of the first parameter.
    """
    tracing = importlib.import_module("sbi_ignite.capture.verification").Tracing
    original, count = tracing.replay, [0]

    def replay(self: Any, *args: Any) -> Any:
        outputs = original(self, *args)
        count[0] += outputs is not None
        if disturb and outputs and len(outputs) > 1:
            outputs[1] = outputs[1].nextafter(torch.tensor(float("inf")))
        return outputs

    tracing.replay = replay
    return count


def main() -> None:
    """Run the scenarios named on the command line and save their records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("door", choices=DOORS)
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    # Counting before the door opens also sees an engine that was imported by name.
    runs = [0] if chosen.door == "sbi" else count_engine_runs()
    inference = open_door(chosen.door)
    replays = [0] if chosen.door == "sbi" else count_replays(chosen.door == "disturbed")
    records = {}
    for name in chosen.names:
        before, start = (runs[0], replays[0]), time.perf_counter()
        program = SCENARIOS.get(name) or CONTROLS[name]
        record = observe(program, inference, chosen.folder / name)
        records[name] = {
            "door": chosen.door,
            "record": record,
            "engine runs": runs[0] - before[0],
            "replays": replays[0] - before[1],
            "seconds": time.perf_counter() - start,
        }
    loaded = [package for package in FOREIGN if package in sys.modules]
    if chosen.door == "sbi" and loaded:
        raise SystemExit(f"the process of plain sbi has loaded {loaded}")
    torch.save(records, chosen.out)


if __name__ == "__main__":
    main()
