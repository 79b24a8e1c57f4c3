"""Record a finished scenario as plain data, and describe the differences of two records.

Everything that an sbi user can see after `.train()` is recorded: weights and buffers, optimizer
state, summary lists, split, counters, random state, printed text, warnings and the line they are
attributed to, tracker calls, files, and what was left behind in the process. The only things left
out are durations, which differ between any two runs.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import random
import signal
import sys
import traceback
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

CALLS = "tracked"
"""Key of tracker calls: sbi's must all be among those of the other side, which may make more."""

Record = dict[str, Any]


class Recorder:
    """A tracker that keeps what it is told, in the order in which it is told."""

    log_dir = None

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []

    def log_metric(self, name: str, value: float, step: int | None = None) -> None:
        """Keep one number."""
        # A duration is the one number that no two runs share.
        kept = 0.0 if name == "epoch_durations_sec" else float(value)
        self.calls.append([name, kept, step])

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep several numbers."""
        for name, value in metrics.items():
            self.log_metric(name, value, step)

    def log_params(self, params: dict[str, Any]) -> None:
        """Take parameters, which sbi never sends."""

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        """Take a figure, which sbi never sends."""

    def flush(self) -> None:
        """Take the flush."""


def snapshot(trainer: Any) -> Record:
    """Return what can be read from a trainer after `.train()`, as plain data."""
    net = trainer._neural_net
    optimizer = trainer.optimizer
    summary = {k: list(v) for k, v in trainer._summary.items() if k != "epoch_durations_sec"}
    return {
        "class": type(trainer).__name__,
        "weights": _plain(net.state_dict()),
        "training_flags": {name: module.training for name, module in net.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in net.named_parameters()},
        "gradients_freed": all(p.grad is None for p in net.parameters()),
        "best_weights": _plain(trainer._best_model_state_dict),
        "optimizer_class": type(optimizer).__name__,
        "optimizer_state": _plain(optimizer.state_dict()["state"]),
        "learning_rates": [float(group["lr"]) for group in optimizer.param_groups],
        "optimizer_owns_the_weights": _owns(optimizer, net),
        "summary": _plain(summary),
        "durations_recorded": len(trainer._summary["epoch_durations_sec"]),
        "epoch": trainer.epoch,
        "round": trainer._round,
        "val_loss": trainer._val_loss,
        "best_val_loss": trainer._best_val_loss,
        "epochs_since_last_improvement": trainer._epochs_since_last_improvement,
        "train_indices": _plain(trainer.train_indices),
        "val_indices": _plain(trainer.val_indices),
        CALLS: list(getattr(trainer._tracker, "calls", [])),
    }


def _owns(optimizer: torch.optim.Optimizer, net: torch.nn.Module) -> bool:
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return [id(p) for p in held] == [id(p) for p in net.parameters()]


def _plain(value: Any) -> Any:
    """Return a copy of `value` that the trainer cannot change any more, of plain types only."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.int64, copy=True))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def random_state() -> Record:
    """Return the state of the three global random generators as plain data."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state().clone(),
        "numpy": [kind, _plain(keys), position, has_gauss, cached],
        "python": [version, torch.tensor(internal), gauss],
    }


def process_state() -> Record:
    """Return settings of the process that training has no business changing."""
    return {
        "handler of SIGINT": repr(signal.getsignal(signal.SIGINT)),
        "handler of SIGTERM": repr(signal.getsignal(signal.SIGTERM)),
        "gradients on": torch.is_grad_enabled(),
        "default dtype": str(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads of torch": torch.get_num_threads(),
        "validate distributions": torch.distributions.Distribution._validate_args,
        "excepthook": sys.excepthook is sys.__excepthook__,
    }


def _files(folder: Path) -> list[str]:
    """List what a scenario left on disk; TensorBoard's dated names are cut to their folder."""
    found = [path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file()]
    return sorted("/".join(p[:2] if p[0] == "sbi-logs" else p) for p in found)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    folder.mkdir(parents=True)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def seed_everything(name: str) -> None:
    """Seed torch, numpy and python with a number that belongs to the scenario's name."""
    seed = zlib.crc32(name.encode()) % 2**31
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def observe(scenario: Any, inference: ModuleType, folder: Path) -> Record:
    """Run one scenario in a folder of its own and return its record.

    Args:
        scenario: a `Scenario`.
        inference: the module whose trainers it is to use.
        folder: where it runs; must not exist yet.

    Returns:
        Plain data; an exception out of the scenario becomes the field `error`.
    """
    out, err, notes = io.StringIO(), io.StringIO(), {}
    record: Record = {"error": None, "trainers": []}
    seed_everything(scenario.seeded_as)
    with (
        _inside(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        try:
            trainers = scenario.run(inference, notes)
        except BaseException:  # an interrupt that escapes is a finding, not the end of the suite
            record["error"] = traceback.format_exc()
        else:
            record["random_state"] = random_state()
            record["trainers"] = [snapshot(trainer) for trainer in trainers]
    record["files"] = _files(folder)
    record["notes"] = _plain(notes)
    record["stdout"] = out.getvalue()
    record["stderr"] = _without_progress_bars(err.getvalue())
    record["warnings"] = [_warning(w) for w in caught]
    record["process"] = process_state()
    return record


def _without_progress_bars(text: str) -> str:
    """Drop tqdm's lines, which show times."""
    lines = text.replace("\r", "\n").splitlines()
    return "\n".join(line for line in lines if line and "%|" not in line and "it/s" not in line)


def _warning(caught: warnings.WarningMessage) -> list[Any]:
    """Describe a warning; the line counts where it is attributed to the user's code."""
    to_the_user = Path(caught.filename).name == "scenarios.py"
    place = f"scenarios.py, line {caught.lineno}" if to_the_user else "inside the library"
    return [caught.category.__name__, str(caught.message), place]


def differences(expected: Any, actual: Any, at: str = "") -> list[str]:
    """Return one sentence for each place where two records differ; empty if none.

    Args:
        expected: the record of plain sbi.
        actual: the record of the other side.
        at: the path to this value, for the sentences.

    Returns:
        The differences; tensors are compared by dtype, shape and `torch.equal`.
    """
    if isinstance(expected, Tensor) and isinstance(actual, Tensor):
        return _tensor_difference(expected, actual, at)
    if isinstance(expected, dict) and isinstance(actual, dict):
        return _dict_differences(expected, actual, at)
    if isinstance(expected, list) and isinstance(actual, list):
        return _list_differences(expected, actual, at)
    if type(expected) is not type(actual):
        return [f"{at}: {_short(expected)} in sbi, {_short(actual)} here"]
    if isinstance(expected, float) and math.isnan(expected) and math.isnan(actual):
        return []
    return [] if expected == actual else [f"{at}: {_short(expected)} in sbi, {_short(actual)} here"]


def _tensor_difference(expected: Tensor, actual: Tensor, at: str) -> list[str]:
    if expected.dtype != actual.dtype or expected.shape != actual.shape:
        kinds = [f"{t.dtype} of shape {tuple(t.shape)}" for t in (expected, actual)]
        return [f"{at}: {kinds[0]} in sbi, {kinds[1]} here"]
    if torch.equal(expected, actual):
        return []
    gap = (expected.double() - actual.double()).abs()
    places = int((gap != 0).sum())
    return [f"{at}: {places} of {gap.numel()} entries differ, by up to {gap.max().item():.3g}"]


def _dict_differences(expected: Record, actual: Record, at: str) -> list[str]:
    found = [f"{at}/{key}: only in sbi" for key in expected if key not in actual]
    found += [f"{at}/{key}: only here" for key in actual if key not in expected]
    for key in expected:
        if key in actual and key == CALLS:
            found += _missing_calls(expected[key], actual[key], f"{at}/{key}")
        elif key in actual:
            found += differences(expected[key], actual[key], f"{at}/{key}")
    return found


def _list_differences(expected: list[Any], actual: list[Any], at: str) -> list[str]:
    found = []
    if len(expected) != len(actual):
        ends = f"; {_short(expected)} and {_short(actual)}"
        found = [f"{at}: {len(expected)} entries in sbi, {len(actual)} here{ends}"]
    for index, (one, other) in enumerate(zip(expected, actual, strict=False)):
        found += differences(one, other, f"{at}[{index}]")
    return found


def _missing_calls(expected: list[Any], actual: list[Any], at: str) -> list[str]:
    # As text, because NaN, which may be logged, is not equal to itself.
    left, missing = [repr(call) for call in actual], []
    for call in map(repr, expected):
        if call in left:
            left.remove(call)
        else:
            missing.append(call)
    return [f"{at}: {len(missing)} of sbi's calls missing: {_short(missing)}"] if missing else []


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:300]} … {text[-90:]}"
