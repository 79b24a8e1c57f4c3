"""Two ways to look into a training: a callback in plain words, and any handler of ignite.

It prints a line per epoch and the seconds per step, and shows a progress bar.

    python examples/callbacks_and_ignite.py --max-epochs 20
"""

from __future__ import annotations

import argparse

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Timer
from ignite.handlers.tqdm_logger import ProgressBar
from sbi.utils import BoxUniform

from sbi_ignite import NPE, Callback, TrainConfig, TrainingState, TrainingSummary

options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
options.add_argument("--max-epochs", type=int, default=20)
options.add_argument("--num-simulations", type=int, default=1000)
options.add_argument("--picture", help="save the loss curves here")
choice = options.parse_args()


class StopWhenGoodEnough(Callback):
    """Print a line per epoch and stop at a validation loss that suffices."""

    def __init__(self, good_enough: float) -> None:
        self.good_enough = good_enough

    def on_epoch_end(self, state: TrainingState) -> None:
        """Look at the epoch that has just ended."""
        print(f"epoch {state.epoch:3d}  validation loss {state.validation_loss:.3f}")
        if state.validation_loss < self.good_enough:
            state.stop(f"the loss is below {self.good_enough}")

    def on_train_end(self, summary: TrainingSummary) -> None:
        """Say how it ended."""
        print(f"stopped by {summary.stop_reason} after {summary.epochs_trained} epochs")


class StepTimer(Timer):
    """ignite's Timer, told which part of a step to measure."""

    def attach(self, engine: Engine) -> StepTimer:  # type: ignore[override] # all events chosen
        """Measure from the start of every iteration to its end."""
        super().attach(
            engine,
            start=Events.STARTED,
            resume=Events.ITERATION_STARTED,
            pause=Events.ITERATION_COMPLETED,
            step=Events.ITERATION_COMPLETED,
        )
        return self


torch.manual_seed(0)
prior = BoxUniform(-torch.ones(2), torch.ones(2))
theta = prior.sample((choice.num_simulations,))
inference = NPE(prior, show_progress_bars=False)
inference.append_simulations(theta, theta + 0.1 * torch.randn_like(theta))

timer = StepTimer(average=True)
inference.train(
    TrainConfig(max_epochs=choice.max_epochs, batch_size=100),
    callbacks=[StopWhenGoodEnough(-2.0), ProgressBar(desc="training"), timer],
)
print(f"{timer.step_count:.0f} steps of {1000 * timer.value():.1f} ms")
if choice.picture and inference.training_summary:
    inference.training_summary.plot().savefig(choice.picture)
