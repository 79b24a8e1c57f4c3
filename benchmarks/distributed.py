"""What do two processes bring, and what does it cost to agree?

One process with one thread against two with one thread each, both training on the same simulations
with the same global batch: NPE with a convolutional embedding of images of 64 x 64 pixels, and NPE
with a maf. They take turns; compared are seconds per epoch, without the first. Beside it: one
process that a launcher has started; two that train apart, each on its half of the rows with half of
the batch, which is what this machine allows without agreeing; and what one exchange of gradients
takes, by the size of the network.

    python -m benchmarks.distributed [--rounds 3] [--epochs 4] [--rows ROWS]

On a machine with fewer processors than processes, or with other work on it, the ratio says nothing
about the program.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measuring import (
    FOLDER,
    Result,
    Spread,
    Table,
    Timing,
    alternate,
    conclude,
    options_of,
    parse,
    ratios,
)

TASKS = ("cnn", "maf")
BATCHES = {"cnn": 1_024, "maf": 4_096}
ROWS = {"cnn": 8_192, "maf": 65_536}
"""Simulations: enough for several steps in an epoch."""
WANTED = {"cnn": 1.8, "maf": 1.7}
SIZES = (10_000, 100_000, 1_000_000)
ALONE, LAUNCHED, TOGETHER, APART = "1 process", "1, launched", "together", "apart"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison and print it."""
    parser = options_of(__doc__, rounds=3)
    parser.add_argument("--epochs", type=int, default=4, help="of a training")
    parser.add_argument("--rows", type=int, help="simulations, in place of those of each task")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    options = parse(parser, arguments)
    rows: list[list[str]] = []
    numbers: dict[str, Any] = {}
    for task in options.tasks:
        num_rows = options.rows or ROWS[task]

        def epoch(way: str, task: str = task, num_rows: int = num_rows) -> Timing:
            seconds = train_in(way, options.processes, task, options.epochs, num_rows)
            return Timing(seconds, seconds)

        ways = {way: partial(epoch, way) for way in (ALONE, LAUNCHED, TOGETHER, APART)}
        found = alternate(ways, options.rounds)
        numbers[task] = {way: [timing.wall for timing in timings] for way, timings in found.items()}
        for way, timings in found.items():
            rows.append(
                [
                    task,
                    f"{num_rows:,}",
                    f"{BATCHES[task]:,}",
                    way if way in (ALONE, LAUNCHED) else f"{options.processes}, {way}",
                    f"{Spread.of(timing.wall for timing in timings):.3f}",
                    f"{ratios(found[ALONE], timings):.2f}",
                    {TOGETHER: f"{WANTED[task]}", LAUNCHED: "0.99"}.get(way, ""),
                ]
            )
    exchanges = exchange_in(options.processes)
    numbers["exchange_microseconds"] = exchanges
    heads = ["task", "rows", "batch", "processes", "s per epoch", "times as fast", "bound"]
    exchanged = [[f"{int(size):,}", f"{value:.0f}"] for size, value in exchanges.items()]
    result = Result(
        script="distributed",
        question="What do two processes bring, and what does it cost to agree?",
        tables=[
            Table(
                heads,
                rows,
                "Seconds per epoch, one thread each",
                "Apart: each on its part of the rows with its part of the batch, without agreeing.",
            ),
            Table(
                ["numbers in the network", "microseconds"],
                exchanged,
                "One exchange of gradients and decisions, once a step",
            ),
        ],
        numbers=numbers,
    )
    conclude(result, options)


def train_in(way: str, processes: int, task: str, epochs: int, rows: int) -> float:
    """Return the median seconds of an epoch, one thread each."""
    number = processes if way in (TOGETHER, APART) else 1
    parts = processes if way == APART else 1
    arguments = ("train", task, str(epochs), str(rows // parts), str(BATCHES[task] // parts))
    told = launched(number, *arguments, launch=way in (LAUNCHED, TOGETHER))
    return float(statistics.median(json.loads(told)[1:]))


def exchange_in(processes: int) -> dict[str, float]:
    """Return the microseconds of one exchange, by the size of the network."""
    return dict(json.loads(launched(processes, "exchange", launch=True)))


def launched(processes: int, *arguments: str, launch: bool) -> str:
    """Run this script's worker in several processes, and return what the first one tells.

    Args:
        processes: How many.
        *arguments: What the worker shall do.
        launch: Tell them of each other, as a launcher does.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        workers = []
        for rank in range(processes):
            known = {"OMP_NUM_THREADS": "1"} | ({"ANSWER": str(answer)} if rank == 0 else {})
            if launch:
                known |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                known |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            command = [sys.executable, "-m", "benchmarks.distributed", "--worker", *arguments]
            environment = {**os.environ, **known}
            workers.append(subprocess.Popen(command, env=environment, cwd=FOLDER.parent))
        codes = [worker.wait() for worker in workers]
        if any(codes):
            raise RuntimeError(f"worker processes ended with {codes}")
        return answer.read_text()


def work(arguments: Sequence[str]) -> None:
    """Do what one of the processes is there for."""
    what, *rest = arguments
    answer = measured_exchange() if what == "exchange" else measured_epochs(*rest)
    if "ANSWER" in os.environ:
        Path(os.environ["ANSWER"]).write_text(json.dumps(answer))


def measured_epochs(task: str, epochs: str, rows: str, batch_size: str) -> list[float]:
    """Train, and return the seconds of every epoch."""
    import torch
    from sbi.neural_nets import posterior_nn
    from sbi.neural_nets.embedding_nets import CNNEmbedding
    from sbi.utils import BoxUniform

    from sbi_ignite import NPE, TrainConfig

    torch.set_num_threads(1)
    torch.manual_seed(0)
    prior, number = BoxUniform(-torch.ones(4), torch.ones(4)), int(rows)
    theta = prior.sample((number,))
    if task == "cnn":
        x = theta.sum(1)[:, None, None] + torch.randn(number, 64, 64)
        embedding = CNNEmbedding((64, 64), num_conv_layers=2, out_channels_per_layer=[6, 12])
        network = posterior_nn("maf", embedding_net=embedding)
    else:
        x = theta.repeat(1, 3) + 0.1 * torch.randn(number, 12)
        network = posterior_nn("maf")
    trainer = NPE(prior, density_estimator=network, show_progress_bars=False)
    trainer.append_simulations(theta, x)
    trainer.train(TrainConfig(batch_size=int(batch_size), max_epochs=int(epochs) + 1, seed=1))
    summary = trainer.training_summary
    assert summary is not None
    return list(summary.epoch_durations_sec)


def measured_exchange(repeats: int = 100) -> list[tuple[str, float]]:
    """Return the microseconds in which gradients of several sizes are averaged."""
    import torch
    from torch import nn

    from sbi_ignite.callback import TrainingState
    from sbi_ignite.handlers.gradient_averaging import GradientAveraging
    from sbi_ignite.world import join_world

    world, found = join_world(), []
    for size in SIZES:
        parameter = nn.Parameter(torch.zeros(size))
        averaging = GradientAveraging(world, [parameter], TrainingState(model=nn.Identity()))
        averaging.decide(lambda: False)
        gradient, times = torch.ones(size), []
        for _ in range(repeats):
            began = time.perf_counter()
            averaging.exchange(1, [gradient])
            times.append(time.perf_counter() - began)
        found.append((str(size), statistics.median(times) * 1e6))
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2:])
    else:
        main()
