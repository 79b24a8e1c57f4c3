"""sbi 0.26.1: the last epoch of a spent budget is not scored; convergence is asked for twice."""

from __future__ import annotations

from typing import ClassVar

from sbi_ignite.bridge.lines import sbi_0_27

NAME = "0.26"


class Trainer(sbi_0_27.Trainer):
    """A trainer of sbi 0.26.1."""

    scores_last_epoch: ClassVar[bool] = False

    def reset(self) -> None:
        """Set the counters, as sbi does, which leaves the last validation loss as it is."""
        if not self.shares_sbis_loop:
            super().reset()
            return
        self.trainer.epoch, self.trainer.val_loss = 0, float("inf")

    def report_convergence(self, patience: int | None, max_epochs: int) -> None:
        """Ask the trainer, whose own method asks once more whether it has converged."""
        if patience is None:
            self.say_how_it_ended(max_epochs)
        else:
            trainer = self.trainer
            trainer._report_convergence_at_end(trainer.epoch, patience, max_epochs)

    def report_marginal_end(self, max_epochs: int) -> None:
        """Say nothing, as sbi's MarginalTrainer does."""
