"""Train sbi and the recipe on one cell (task, method, budget, seed), and record both curves.

    python -m benchmarks.training_curves '{"task": "slcp", "method": "npe_maf", ...}'

prints one JSON line. Both trainings run in this process, sbi's own first (the patch is never on),
after a tiny training of each that triggers lazy imports. The clock is stopped while weights are
saved; held-out losses are computed when training is over.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

import sbi.inference
import torch
from torch import Tensor, nn

import sbi_ignite.inference
from benchmarks.tasks import JUDGED, TUNING, Task
from sbi_ignite import TrainConfig
from sbi_ignite.callback import Callback, TrainingState

HELD_OUT = 10_000
HELD_OUT_SEED = 987_654
"""Fresh pairs on which losses are compared: never a training's."""

BETWEEN_SNAPSHOTS = 1.03
"""Weights are put aside when the training has become this much longer: the resolution of times."""

BETWEEN_POINTS = 1.25
"""Of those, the ones that are this much apart make the curve of the figure."""


# --- methods


@dataclass(frozen=True)
class Method:
    """How a trainer is made, and the loss by which its network is judged.

    Attributes:
        make: (module with the trainers' names, keywords) to a trainer with sbi's default network
            of that name.
        loss: (trainer, network, theta, x) to losses of shape (n,) or their mean.
        rows: Rows per call of `loss`.
        contrastive: Whether the recipe has its numbers for ratio estimation.
    """

    make: Callable[..., Any]
    loss: Callable[[Any, Any, Tensor, Tensor], Tensor]
    rows: int = 1000
    contrastive: bool = False


def _npe(model: str) -> Method:
    return Method(
        lambda module, **keywords: module.NPE(density_estimator=model, **keywords),
        lambda trainer, net, theta, x: net.loss(theta, x),
    )


def _flow_matching(trainer: Any, net: Any, theta: Tensor, x: Tensor) -> Tensor:
    """Return the matching loss at sbi's ten validation times."""
    times = net.solve_schedule(10, t_min=net.t_min + 0.05, t_max=net.t_max - 0.05)
    repeated = times.repeat_interleave(len(theta))
    return net.loss(theta.repeat(len(times), 1), x.repeat(len(times), 1), times=repeated)


METHODS = {
    "npe_maf": _npe("maf"),
    "npe_nsf": _npe("nsf"),
    "nle_maf": Method(
        lambda module, **keywords: module.NLE(density_estimator="maf", **keywords),
        lambda trainer, net, theta, x: net.loss(x, theta),
    ),
    "nre_resnet": Method(
        lambda module, **keywords: module.NRE(classifier="resnet", **keywords),
        lambda trainer, net, theta, x: trainer._loss(theta, x, num_atoms=10),
        rows=200,  # contrasting parameters come from the same rows: sbi's batch size
        contrastive=True,
    ),
    "fmpe": Method(lambda module, **keywords: module.FMPE(**keywords), _flow_matching),
}


# --- the clock and the curve


class Stopwatch:
    """Counts seconds of wall and of CPU time, apart from pauses."""

    def __init__(self) -> None:
        self._counted = (0.0, 0.0)
        self.go_on()

    def go_on(self) -> None:
        """Count on."""
        self._since = (time.perf_counter(), time.process_time())

    def pause(self) -> tuple[float, float]:
        """Stop counting and return wall and CPU seconds so far."""
        now = (time.perf_counter(), time.process_time())
        wall, cpu = (a + b - c for a, b, c in zip(self._counted, now, self._since, strict=True))
        self._counted = (wall, cpu)
        return wall, cpu


@dataclass
class Snapshot:
    """The weights that a training would return if it ended at this moment.

    Attributes:
        wall: Seconds on the clock.
        cpu: Seconds of CPU time.
        epoch: Finished epochs.
        weights: The network's state dict.
        loss: Its held-out loss, once somebody asked.
    """

    wall: float
    cpu: float
    epoch: int
    weights: dict[str, Any]
    loss: float | None = None


@dataclass
class Curve:
    """Snapshots of one training, and the clock that they stop."""

    watch: Stopwatch = field(default_factory=Stopwatch)
    snapshots: list[Snapshot] = field(default_factory=list)
    _newest: Any = None

    def note(self, epoch: int, net: nn.Module, is_best: bool) -> None:
        """Look at the end of an epoch, whose weights may be the best so far."""
        wall, cpu = self.watch.pause()
        if is_best:
            self._newest = deepcopy(net.state_dict())
        last = self.snapshots[-1].cpu if self.snapshots else 0.0
        if self._newest is not None and cpu >= BETWEEN_SNAPSHOTS * last:
            self.snapshots.append(Snapshot(wall, cpu, epoch, self._newest))
            self._newest = None
        self.watch.go_on()

    def end(self, epoch: int, net: nn.Module) -> Snapshot:
        """Note what has been returned."""
        self.snapshots.append(Snapshot(*self.watch.pause(), epoch, deepcopy(net.state_dict())))
        return self.snapshots[-1]

    def evaluate(self, held_out: Callable[[dict[str, Any]], float]) -> list[Snapshot]:
        """Compute the losses of snapshots at growing distances and return these."""
        points: list[Snapshot] = []
        for snapshot in (*self.snapshots[:-1], self.snapshots[-1]):
            is_last = snapshot is self.snapshots[-1]
            if is_last or not points or snapshot.cpu >= BETWEEN_POINTS * points[-1].cpu:
                snapshot.loss = held_out(snapshot.weights)
                points.append(snapshot)
        return points

    def first_at_most(
        self, target: float, held_out: Callable[[dict[str, Any]], float]
    ) -> Snapshot | None:
        """Return the first snapshot with a loss of at most `target`; None: there is none.

        Found among the points of `evaluate`, and between two of them by bisection.
        """
        good = next((s for s in self.snapshots if s.loss is not None and s.loss <= target), None)
        if good is None:
            return None
        high = self.snapshots.index(good)
        low = max((i for i in range(high) if self.snapshots[i].loss is not None), default=-1)
        while high - low > 1:
            middle = self.snapshots[(low + high) // 2]
            middle.loss = held_out(middle.weights)
            low, high = (
                (low, (low + high) // 2)
                if middle.loss <= target
                else (
                    (low + high) // 2,
                    high,
                )
            )
        return self.snapshots[high]


# --- one cell


@dataclass(frozen=True)
class Cell:
    """What is trained on.

    Attributes:
        task: Name of a task, see `benchmarks.tasks`.
        method: Name of a method, see `METHODS`.
        budget: Number of simulations; a tenth of them validates.
        seed: Seed of the simulations and of both trainings.
        observations: Observations for which samples are compared with the true posterior.
    """

    task: str
    method: str
    budget: int
    seed: int
    observations: int = 0


class Silent:
    """sbi's tracker, without files."""

    log_dir = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Do nothing, whatever is logged."""
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train both sides and return plain data: seconds, epochs, losses, curves."""
    task = {**JUDGED, **TUNING}[cell.task]
    warm_up(task, cell.method)
    theta, x = task.pairs(cell.budget, cell.seed)
    sides: dict[str, Any] = {}
    target = None
    for side, train in (("sbi", train_with_sbi), ("fast", train_fast)):
        trainer, curve, more = train(task, cell.method, theta, x, cell.seed)
        held_out = held_out_loss(task, METHODS[cell.method], trainer)
        points = curve.evaluate(held_out)
        end = points[-1]
        target = end.loss if target is None else target
        reached = curve.first_at_most(target, held_out) if side == "fast" else end
        sides[side] = {
            "wall": end.wall,
            "cpu": end.cpu,
            "epochs": end.epoch,
            "loss": end.loss,
            "reached": None if reached is None else {"wall": reached.wall, "cpu": reached.cpu},
            "curve": [[p.wall, p.cpu, p.epoch, p.loss] for p in points],
            "c2st": compare_samples(task, cell, trainer, end.weights),
            **more,
        }
    return {**asdict(cell), **sides}


def warm_up(task: Task, method: str) -> None:
    """Train a little on both sides: what is loaded on first use is nobody's training time."""
    theta, x = task.pairs(100, seed=1)
    quiet = {"prior": task.prior, "show_progress_bars": False, "tracker": Silent()}
    make = METHODS[method].make
    make(sbi.inference, **quiet).append_simulations(theta, x).train(max_num_epochs=1)
    for compile_ in ("off", "trace"):
        config = TrainConfig.fast(max_epochs=2, compile=compile_)
        make(sbi_ignite.inference, **quiet).append_simulations(theta, x).train(config)


def train_with_sbi(
    task: Task, method: str, theta: Tensor, x: Tensor, seed: int
) -> tuple[Any, Curve, dict[str, Any]]:
    """Run sbi's own `.train()` with its defaults."""
    trainer = METHODS[method].make(
        sbi.inference, prior=task.prior, show_progress_bars=False, tracker=Silent()
    )
    trainer.append_simulations(theta, x)
    curve = Curve()

    def note(_: bool, epoch: int) -> None:
        # sbi compares with its best loss at the beginning of the next epoch.
        is_best = epoch == 1 or trainer._val_loss < trainer._best_val_loss
        curve.note(epoch, trainer._neural_net, is_best)

    trainer._maybe_show_progress = note
    torch.manual_seed(seed)
    curve.watch = Stopwatch()
    net = trainer.train()
    curve.end(trainer.summary["epochs_trained"][-1], net)
    return trainer, curve, {}


def train_fast(
    task: Task,
    method: str,
    theta: Tensor,
    x: Tensor,
    seed: int,
    config: TrainConfig | None = None,
) -> tuple[Any, Curve, dict[str, Any]]:
    """Run `.train(TrainConfig.fast())`, or another config; what it sets up is part of its time."""
    trainer = METHODS[method].make(
        sbi_ignite.inference, prior=task.prior, show_progress_bars=False, tracker=Silent()
    )
    trainer.append_simulations(theta, x)
    curve = Curve()

    class Note(Callback):
        def on_epoch_end(self, state: TrainingState) -> None:
            curve.note(state.epoch, state.model, state.best_epoch == state.epoch)

    torch.manual_seed(seed)
    curve.watch = Stopwatch()
    net = trainer.train(config or TrainConfig.fast(), callbacks=[Note()])
    summary = trainer.training_summary
    curve.end(summary.epochs_trained, net)
    return trainer, curve, {"stop_reason": summary.stop_reason}


def held_out_loss(task: Task, method: Method, trainer: Any) -> Callable[[dict[str, Any]], float]:
    """Return what computes the mean loss of weights on fresh pairs, under a fixed random state."""
    theta, x = task.pairs(HELD_OUT, HELD_OUT_SEED)
    net = trainer._neural_net

    def loss(weights: dict[str, Any]) -> float:
        net.load_state_dict(weights)
        net.eval()
        total = 0.0
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(HELD_OUT_SEED)
            for rows in torch.arange(HELD_OUT).split(method.rows):
                total += method.loss(trainer, net, theta[rows], x[rows]).mean().item() * len(rows)
        return total / HELD_OUT

    return loss


def compare_samples(
    task: Task, cell: Cell, trainer: Any, weights: dict[str, Any]
) -> list[float] | None:
    """Return sbi's C2ST of 1,000 samples per observation against the true posterior's.

    0.5: a classifier cannot tell them apart; 1: it always can. None where the posterior is not
    known in closed form, or sampling from it takes MCMC.
    """
    if not cell.observations or task.posterior is None or cell.method[:4] not in ("npe_", "fmpe"):
        return None
    from sbi.utils.metrics import c2st

    trainer._neural_net.load_state_dict(weights)
    _, observed = task.pairs(cell.observations, HELD_OUT_SEED + 1)
    found = []
    for number, x in enumerate(observed):
        torch.manual_seed(number)
        posterior = trainer.build_posterior(deepcopy(trainer._neural_net))
        samples = posterior.sample((1000,), x=x, show_progress_bars=False)
        found.append(float(c2st(samples, task.reference_samples(x, 1000, number), seed=number)))
    return found


def main(arguments: Sequence[str]) -> None:
    """Run the cell that the first argument describes and print its record."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    record = run_cell(Cell(**json.loads(arguments[0])))
    # sbi leaves a line that it has not ended
    print("\n" + json.dumps(record), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
