"""Take the steps of several trainings at once, given their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sbi_ignite.capture.stacking import Computed
from sbi_ignite.data.source import num_rows
from sbi_ignite.handlers.epoch_mean import StepOutput
from sbi_ignite.handlers.gradient_clipping import clip_rows
from sbi_ignite.optim.flat_rows import FlatRows
from sbi_ignite.training.steps import checked, summed_each
from sbi_ignite.training.training import Training


class JointUpdate:
    """Clips the gradients of all members of a stack, and steps their optimizers.

    It does what `TrainStep` does once gradients are there. Whatever is special is left to that: the
    first steps of a member, optimizers other than fused Adam and AdamW, losses that are not finite.

    Args:
        trainings: The members.
        parameters: For each, its parameters that have gradients.
        values: Where parameters are to lie, shape (num_members, num_numbers).
    """

    def __init__(
        self, trainings: Sequence[Training], parameters: Sequence[Sequence[Tensor]], values: Tensor
    ) -> None:
        self._trainings = list(trainings)
        self._trained = [set(map(id, each)) for each in parameters]
        self._rows = FlatRows([t.stepping for t in trainings], parameters, values)
        self._max_norms = {training.clipping.max_norm for training in trainings}
        self._epochs: list[int] = []
        self._ready = False

    def take(self, batches: Sequence[Any], computed: Computed) -> Sequence[StepOutput | None]:
        """Take the step of every member, or of none.

        Args:
            batches: Their batches.
            computed: Losses and gradients.

        Returns:
            What came of each step; None for all if they are left to the members.
        """
        outputs = summed_each(computed.losses, num_rows(batches[0]))
        are_read = not isinstance(outputs[0].loss, Tensor)
        are_finite = not are_read or all(math.isfinite(output.loss_sum) for output in outputs)
        if computed.missed or not are_finite or not self._is_ready():
            return [None] * len(batches)
        (max_norm,) = self._max_norms
        norms = clip_rows(computed.gradients, max_norm, out=self._rows.gradients)
        self._rows.step()
        for training, norm in zip(self._trainings, norms.unbind(0), strict=True):
            training.clipping.note(norm)
        if are_read:
            return outputs
        each = zip(outputs, self._trainings, batches, computed.losses.unbind(0), strict=True)
        return [
            checked(output, training.engine, training.epochs.now, batch, losses)
            for output, training, batch, losses in each
        ]

    def _is_ready(self) -> bool:
        """Return whether all steps are alike; between epochs, anything may have changed."""
        epochs = [training.state.epoch for training in self._trainings]
        if not self._ready or epochs != self._epochs:
            self._epochs = epochs
            self._ready = (
                len(self._max_norms) == 1
                and self._rows.are_ready()
                and all(map(_counts_only, self._trainings, self._trained))
            )
        return self._ready


def _counts_only(training: Training, trained: set[int]) -> bool:
    """Return whether only these parameters have gradients that count when they are clipped."""
    with_gradients = {id(p) for p in training.model.parameters() if p.grad is not None}
    return with_gradients == trained
