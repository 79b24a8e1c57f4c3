"""Trainings whose run directories are kept as an earlier build of sbi_ignite wrote them.

To keep those of another build, run this with that build: `python -m tests.runs.earlier_builds DIR`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform

from sbi_ignite import NPE, CheckpointConfig, TrainConfig

KILLED_AT = 33
"""The iteration at which a training is killed, in the middle of an epoch of 5 iterations."""

FORMS: dict[str, dict[str, Any]] = {
    "sbi": {"training_batch_size": 36, "max_num_epochs": 11},
    "typed": {
        "config": TrainConfig(batch_size=36, max_epochs=12, lr_schedule="cosine", ema_decay=0.9)
    },
}
"""Arguments of `train` by the form of the call."""


class Kill:
    """An ignite handler that kills this process."""

    def attach(self, engine: Engine) -> None:
        """Wait for the iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=KILLED_AT), self._kill)

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def train(form: str, directory: Path, killed: bool = False) -> Any:
    """Train in a run directory, or continue there, and return the trainer.

    Args:
        form: "sbi" or "typed".
        directory: The run directory.
        killed: Whether the process is to be killed during training.
    """
    # Only what every processor rounds alike, since a run refuses to continue on other data.
    numbers = torch.arange(400)
    theta = (numbers * 37 % 401 / 201 - 1).reshape(200, 2)
    x = theta * 0.75 + (numbers * 91 % 173 / 173 - 0.5).reshape(200, 2) * 0.25
    torch.manual_seed(0)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    builder = posterior_nn("maf", hidden_features=8, num_transforms=2)
    trainer = NPE(prior, density_estimator=builder, show_progress_bars=False)
    trainer.append_simulations(theta, x)
    arguments = dict(FORMS[form])
    configs = [arguments.pop("config")] if "config" in arguments else []
    checkpoint = CheckpointConfig(directory=directory, every_seconds=0.001, keep_last=1)
    callbacks = [Kill()] if killed else []
    trainer.train(*configs, checkpoint=checkpoint, callbacks=callbacks, **arguments)
    return trainer


def result(trainer: Any) -> dict[str, Any]:
    """Return what a training ends with, as plain data."""
    summary = trainer.training_summary
    return {
        "training_loss": list(summary.training_loss),
        "validation_loss": list(summary.validation_loss),
        "best_epoch": summary.best_epoch,
        "stop_reason": summary.stop_reason,
        "weights": {name: value.tolist() for name, value in weights(trainer).items()},
    }


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    """Return the state of the trained network."""
    return trainer._neural_net.state_dict()


def conditions() -> str:
    """Return a digest of what must be equal for results to be equal bit for bit."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = sorted({line for line in lines if line.startswith(("model name", "flags"))})
    capability = torch.backends.cpu.get_cpu_capability()
    found = [torch.__version__, platform.machine(), platform.processor(), capability, models]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def keep(place: Path) -> None:
    """Write run directories of this build, and what those that were killed go on to.

    Args:
        place: An empty folder. It gets, for each form, a run directory of a complete training, that
            of one that was killed, and "expected.json".
    """
    expected: dict[str, Any] = {"conditions": conditions()}
    for form in FORMS:
        train(form, place / f"{form}-complete")
        killed = place / f"{form}-killed"
        command = [sys.executable, "-m", __spec__.name, str(killed), form]
        code = subprocess.run(command, check=False).returncode
        if code != -signal.SIGKILL:
            raise RuntimeError(f"the training was to be killed, but ended with {code}")
        continued = place / "continued"
        shutil.copytree(killed, continued)
        expected[form] = result(train(form, continued))
        shutil.rmtree(continued)
    for lock in place.glob("*/.lock"):  # it names the machine and the process
        lock.unlink()
    shutil.rmtree(place / "sbi-logs")  # of sbi's own tracker
    (place / "expected.json").write_text(json.dumps(expected) + "\n")


def main() -> None:
    """Keep run directories, or be the process that is killed."""
    torch.set_num_threads(1)
    place, *form = sys.argv[1:]
    if form:
        train(form[0], Path(place), killed=True)
    else:
        # Relative, because a run records where it is.
        os.chdir(place)
        keep(Path())


if __name__ == "__main__":
    main()
