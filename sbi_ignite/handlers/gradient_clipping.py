"""Clip gradients to a maximum norm, and measure the norm before clipping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from sbi_ignite.handlers.events import TrainingEvents


class FlatGradients(Protocol):
    """Gradients that lie side by side in memory, whose norm is faster to compute."""

    def flat_gradient(self) -> Tensor | None:
        """Return all gradients as one tensor; None if that is not possible."""
        ...

    def scale_gradients(self, gradients: Sequence[Tensor], factor: float | Tensor) -> None:
        """Multiply all gradients by a number."""
        ...


class GradientClipping:
    """Scale the gradients so that their total 2-norm is at most `max_norm`.

    ignite has no such handler; it works between backward pass and optimizer step. On the CPU its
    arithmetic is that of torch's `clip_grad_norm_`, without its search for common devices.

    Args:
        parameters: The parameters whose gradients count.
        max_norm: Largest total norm that is left alone; None: measure only, do not clip.
        flat: Has the same gradients as one tensor, which rounds their norm differently.

    Example:
        >>> GradientClipping([torch.nn.Parameter(torch.zeros(1))], max_norm=5.0).mean_norm
        nan
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        max_norm: float | None,
        flat: FlatGradients | None = None,
    ) -> None:
        self._parameters = list(parameters)
        self.max_norm = max_norm
        self._flat = flat
        kinds = {(parameter.device.type, parameter.dtype) for parameter in self._parameters}
        self._on_cpu = len(kinds) == 1 and next(iter(kinds))[0] == "cpu"
        self._norms: Tensor | float = 0.0
        self._steps = 0

    def attach(self, engine: Engine) -> None:
        """Clip after every backward pass of `engine`."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(TrainingEvents.BACKWARD_COMPLETED, self._clip)

    @property
    def mean_norm(self) -> float:
        """Mean norm before clipping over the steps of the epoch; NaN before the first."""
        return float(self._norms) / self._steps if self._steps else float("nan")

    def note(self, norm: Tensor) -> None:
        """Count a step whose gradients were clipped elsewhere.

        Args:
            norm: Their norm before, shape ().
        """
        self._norms = self._norms + norm
        self._steps += 1

    def _reset(self) -> None:
        self._norms, self._steps = 0.0, 0

    def _clip(self) -> None:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self.max_norm is None and any(g.layout != torch.strided for g in gradients):
            return  # torch computes no norm of sparse gradients, and no clipping was asked for
        # The sum stays on the device: reading it here would wait for the device in every step.
        if self._on_cpu and gradients:
            self.note(self._clip_on_cpu(gradients, self.max_norm))
        elif self.max_norm is None:
            self.note(get_total_norm(gradients))
        else:
            self.note(clip_grad_norm_(self._parameters, max_norm=self.max_norm))

    @torch.no_grad()
    def _clip_on_cpu(self, gradients: list[Tensor], max_norm: float | None) -> Tensor:
        """Return the total norm; gradients are only touched when it is too large."""
        flat = None if self._flat is None else self._flat.flat_gradient()
        norm = _total_norm(gradients) if flat is None else torch.linalg.vector_norm(flat)
        if max_norm is None:
            return norm
        factor = _factor(norm, max_norm)
        if factor >= 1.0:
            return norm
        if self._flat is None:  # NaN scales too, as in torch
            for gradient in gradients:
                gradient.mul_(factor)
        else:
            self._flat.scale_gradients(gradients, factor)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return the sums inside the epoch."""
        return {"norms": torch.as_tensor(self._norms), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the sums."""
        self._norms, self._steps = state["norms"], state["steps"]


def _factor(norm: Tensor, max_norm: float) -> float | Tensor:
    """Return what torch's `clip_grad_norm_` multiplies gradients by; NaN if the norm is NaN.

    It is computed in the norm's precision, as there: by numpy, whose numbers take a tenth of the
    time of tensors, if numpy has that precision.

    Args:
        norm: On the CPU, shape ().
        max_norm: The largest norm.
    """
    if norm.dtype not in (torch.float32, torch.float64):
        return max_norm / (norm + 1e-6)
    value = norm.numpy()[()]
    number: Any = type(value)
    return float(number(1.0) / (value + number(1e-6)) * number(max_norm))


@torch.no_grad()
def clip_rows(gradients: Tensor, max_norm: float | None, out: Tensor) -> Tensor:
    """Copy rows so that the 2-norm of each is at most `max_norm`.

    Args:
        gradients: Shape (num_rows, num_numbers).
        max_norm: Largest norm that is left alone; None: measure only.
        out: Where to write them, of the same shape.

    Returns:
        Norms before, shape (num_rows,).

    Example:
        >>> clipped = torch.zeros(2, 2)
        >>> clip_rows(torch.tensor([[3.0, 4.0], [0.6, 0.8]]), 2.0, out=clipped)
        tensor([5., 1.])
        >>> clipped
        tensor([[1.2000, 1.6000],
                [0.6000, 0.8000]])
    """
    norms = torch.linalg.vector_norm(gradients, dim=1)
    if max_norm is None:
        out.copy_(gradients)
    else:
        torch.mul(gradients, (max_norm / (norms + 1e-6)).clamp_(max=1.0)[:, None], out=out)
    return norms


def _total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients together, from their individual norms as in torch."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
