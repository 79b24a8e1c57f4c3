"""What would another package make of the same simulations: how fast, and how good a posterior?

    python -m venv .peers && .peers/bin/pip install -r benchmarks/peers.txt
    OMP_NUM_THREADS=1 python -m benchmarks.peers --python .peers/bin/python [--tasks two_moons slcp]

The peers, each with the defaults of its own documentation and in a process of the environment that
`--python` names: BayesFlow on JAX, LAMPE, flowjax. Beside them sbi, and sbi_ignite's typed form.
Columns: seconds of training, seconds of import and compilation before it where they can be told
apart, mean negative log-probability of fresh pairs (nats; lower is better). A second table times
one step of a masked autoregressive flow of about equal size at batch 200, in turns; `--tasks` with
nothing after it leaves out the first. A peer that is not
installed is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sbi_ignite.inference
from benchmarks.cells import Nowhere
from benchmarks.measuring import FOLDER, Result, Spread, Table, conclude, options_of, parse
from benchmarks.tasks import JUDGED, Task
from sbi_ignite import EarlyStopping, TrainConfig

PEERS = ("flowjax", "lampe", "bayesflow")
STEPS = "step"
"""Name of the timing of single steps among what a peer is asked for."""


def save_pairs(file: Path, pairs: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> None:
    """Write pairs (theta, x) to train on and to judge with, as `peers_own.py` reads them."""
    names = ("theta", "x", "new_theta", "new_x")
    values = (tensor.numpy() for tensor in (*pairs, *held_out))
    np.savez(file, **dict(zip(names, values, strict=True)))


def options_of_peers(parser: argparse.ArgumentParser) -> None:
    """Add what scripts need to know that compare with peers."""
    parser.add_argument("--python", default=sys.executable, help="python that has the peers")
    parser.add_argument("--max-seconds", type=float, default=600.0, help="budget of a training")


def peer(options: Any, name: str, what: str, data: Path) -> dict[str, Any]:
    """Return what `peers_own.py` finds in the peers' environment, or {"missing": reason}."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "OMP_NUM_THREADS": str(options.threads),
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
        "JAX_PLATFORMS": "cuda" if options.device.startswith("cuda") else "cpu",
    }
    environment.pop("PYTHONPATH", None)
    command = [options.python, str(FOLDER / "peers_own.py"), name, what, str(data)]
    command += [str(options.max_seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"missing": (done.stderr.strip().splitlines() or ["no reason given"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def ours(
    trainer: Any, train: Callable[[Any], Any], held_out: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """Return seconds and held-out loss of a trainer of sbi or of sbi_ignite."""
    began = time.perf_counter()
    train(trainer)
    seconds = time.perf_counter() - began
    theta, x = held_out
    with torch.no_grad():
        log_prob = trainer._neural_net.log_prob(theta[None], condition=x)
    return {"seconds": seconds, "set-up": 0.0, "nats": -float(log_prob.mean())}


def sbi_and_ours(
    task: Task, pairs: tuple[Tensor, Tensor], held_out: Any, options: Any
) -> dict[str, Any]:
    """Return what sbi and sbi_ignite make of the simulations, with a maf."""
    import sbi.inference

    ways: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "sbi": (sbi.inference, lambda trainer: trainer.train()),
        "sbi_ignite, typed form": (
            sbi_ignite.inference,
            lambda trainer: trainer.train(TrainConfig(max_time=options.max_seconds)),
        ),
        "sbi_ignite, fast recipe": (
            sbi_ignite.inference,
            lambda trainer: trainer.train(TrainConfig.fast(max_time=options.max_seconds)),
        ),
    }
    found = {}
    for name, (inference, train) in ways.items():
        torch.manual_seed(options.seed)
        trainer = inference.NPE(task.prior, "maf", show_progress_bars=False, tracker=Nowhere())
        trainer.append_simulations(*pairs)
        found[name] = ours(trainer, train, held_out)
    return found


def steps_in_turn(options: Any, data: Path) -> dict[str, dict[str, Any]]:
    """Return ms of one step of each package in each round, and numbers of parameters."""
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "sbi_ignite, typed form": our_step,
        "sbi_ignite, typed form, inductor": lambda: our_step("inductor"),
    }
    if "flowjax" in options.peers:
        ways["flowjax"] = lambda: peer(options, "flowjax", STEPS, data)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for turn in range(options.rounds):
        for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(ways[name]())
    return {
        name: rounds[0]
        if any("missing" in step for step in rounds)
        else {**rounds[0], "ms": [step["ms"] for step in rounds]}
        for name, rounds in found.items()
    }


def our_step(compile: str = "auto", epochs: int = 5) -> dict[str, Any]:
    """Return ms of one step, the median over epochs, of the typed form at batch 200.

    Its 100 steps an epoch are divided into the whole epoch, with a validation of 400 rows.
    """
    torch.manual_seed(0)
    prior = torch.distributions.MultivariateNormal(torch.zeros(5), torch.eye(5))
    theta = prior.sample((20_400,))
    trainer = sbi_ignite.inference.NPE(prior, "maf", show_progress_bars=False, tracker=Nowhere())
    trainer.append_simulations(theta, theta + 0.3 * torch.randn_like(theta))
    config = TrainConfig(
        max_epochs=8 + epochs, batch_size=200, validation_fraction=400 / 20_400, compile=compile
    )
    trainer.train(config, early_stopping=EarlyStopping.never())
    spans = trainer.training_summary.epoch_durations_sec[8:]
    steps = -(-len(trainer.train_indices) // 200)
    numbers = sum(p.numel() for p in trainer._neural_net.parameters())
    return {"ms": 1e3 * Spread.of(spans).median / steps, "parameters": numbers}


def main(arguments: Sequence[str] | None = None) -> Result:
    """Measure and show."""
    parser = options_of(__doc__)
    options_of_peers(parser)
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--tasks", nargs="*", default=["two_moons", "slcp"])
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parse(parser, arguments)
    numbers: dict[str, Any] = {"trainings": {}, "steps": {}}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.npz"
        for task_name in options.tasks:
            task = JUDGED[task_name]
            pairs = task.pairs(options.simulations, options.seed)
            held_out = task.pairs(10_000, options.seed + 1)
            save_pairs(data, pairs, held_out)
            found = sbi_and_ours(task, pairs, held_out, options)
            found |= {name: peer(options, name, "train", data) for name in options.peers}
            numbers["trainings"][task_name] = found
        numbers["steps"] = steps_in_turn(options, data)
    result = Result(
        "peers", (__doc__ or "").splitlines()[0], _tables(numbers), _missing(numbers), numbers
    )
    conclude(result, options)
    return result


def _tables(numbers: dict[str, Any]) -> list[Table]:
    trainings = [
        [task, name, f"{f['seconds']:.1f}", f"{f['set-up']:.1f}", f"{f['nats']:.3f}"]
        for task, found in numbers["trainings"].items()
        for name, f in found.items()
        if "missing" not in f
    ]
    timed = {name: found for name, found in numbers["steps"].items() if "missing" not in found}
    base = timed.get("flowjax", {}).get("ms")
    steps = [
        [
            name,
            f"{Spread.of(found['ms']):.2f}",
            f"{Spread.of(a / b for a, b in zip(found['ms'], base, strict=True)):.2f}"
            if base
            else "",
            f"{found['parameters']:,}",
        ]
        for name, found in timed.items()
    ]
    return [
        Table(["task", "package", "training, s", "set-up, s", "nats"], trainings, "Trainings"),
        Table(
            ["package", "ms per step", "of flowjax's time", "parameters"],
            steps,
            "A step, batch 200, theta and x (5,)",
            "The packages take turns; ratios are those within a round.",
        ),
    ]


def _missing(numbers: dict[str, Any]) -> list[str]:
    """Return a sentence for every peer that did not run."""
    everything = {**numbers["steps"]}
    for found in numbers["trainings"].values():
        everything |= found
    return [
        f"{name} did not run here: {found['missing']}"
        for name, found in everything.items()
        if "missing" in found
    ]


if __name__ == "__main__":
    main()
