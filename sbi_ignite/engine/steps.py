"""Gradients, losses and an optimizer come in; the process functions of ignite's Engines go out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from ignite.engine import Engine
from ignite.utils import convert_tensor
from torch import Tensor, nn

from sbi_ignite.capture.gradients import Gradients
from sbi_ignite.exceptions import NonFiniteLossError
from sbi_ignite.handlers.epoch_mean import StepOutput
from sbi_ignite.handlers.events import TrainingEvents

Step = Callable[[Engine, Any], StepOutput]


class Stepping(Protocol):
    """What a step needs of an optimizer."""

    def zero_grad(self) -> None:
        """Forget the gradients."""
        ...

    def step(self) -> Any:
        """Take a step."""
        ...


@dataclass(frozen=True)
class TrainStep:
    """One optimizer step: forward, backward, clip (a handler), step.

    Attributes:
        gradients: Losses of a batch, shape (batch,), or their mean, and its gradients.
        optimizer: Steps over the network's parameters.
        device: Where batches are moved.
        summed: How the losses of a batch add up, `summed` or `summed_as_sbi`.
        now: Returns current epoch and iteration, for errors.
    """

    gradients: Gradients
    optimizer: Stepping
    device: torch.device
    summed: Callable[[Tensor, Any], StepOutput]
    now: Callable[[], tuple[int, int]]

    def __call__(self, engine: Engine, batch: Any) -> StepOutput:
        """Take one step and return the losses' sum."""
        self.optimizer.zero_grad()
        batch = on_device(batch, self.device)
        with _translated_errors(engine, self.now, batch):
            losses, backward = self.gradients(batch)
        output = checked(self.summed(losses, batch), engine, self.now, batch, losses)
        backward()
        engine.fire_event(TrainingEvents.BACKWARD_COMPLETED)
        self.optimizer.step()
        return output


@dataclass(frozen=True)
class ValidationStep:
    """One batch of validation, without gradients.

    Attributes:
        model: The network.
        loss: Losses of a batch.
        device: Where batches are moved.
        summed: How the losses of a batch add up, `summed` or `summed_as_sbi`.
        now: Returns current epoch and iteration, for errors.
        refuse_non_finite: Raise on NaN and infinity, as sbi does.
        keep_losses: Hand on the losses of the rows, where the loss function returns these.
    """

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    device: torch.device
    summed: Callable[[Tensor, Any], StepOutput]
    now: Callable[[], tuple[int, int]]
    refuse_non_finite: bool = False
    keep_losses: bool = False

    def __call__(self, engine: Engine, batch: Any) -> StepOutput:
        """Return the losses' sum."""
        batch = on_device(batch, self.device)
        with torch.no_grad():
            losses = self.loss(self.model, batch)
        output = self.summed(losses, batch)
        if self.refuse_non_finite:
            output = checked(output, engine, self.now, batch, losses)
        if self.keep_losses and losses.ndim:
            # A copy: a CUDA graph writes the next batch's losses to the same place.
            output = replace(output, losses=losses.reshape(-1).clone())
        return output


def on_device(batch: Any, device: torch.device) -> Any:
    """Return a batch of any structure with its tensors on a device."""
    # What comes from our own loaders is there already, and need not be built anew.
    if type(batch) is tuple and all(isinstance(t, Tensor) and t.device == device for t in batch):
        return batch
    return convert_tensor(batch, device=device)


def summed(losses: Tensor, batch: Any) -> StepOutput:
    """Sum per-row losses; a scalar counts as the mean over the rows of its batch."""
    if losses.ndim:
        return StepOutput(read_if_at_hand(losses.sum()), losses.numel())
    rows = num_rows(batch)
    return StepOutput(read_if_at_hand(losses), rows, times=rows)


def summed_as_sbi(losses: Tensor, batch: Any) -> StepOutput:
    """Sum losses as sbi does, for which a scalar is one loss."""
    return StepOutput(read_if_at_hand(losses.sum()), num_rows(batch))


def read_if_at_hand(loss: Tensor) -> float | Tensor:
    """Return a number; from a GPU a tensor, because reading it would let the GPU run dry."""
    return loss.detach() if reads_later(loss.device) else loss.item()


def reads_later(device: torch.device) -> bool:
    """Return whether losses on a device are read when others have followed them."""
    return device.type == "cuda"


def checked(
    output: StepOutput,
    engine: Engine,
    now: Callable[[], tuple[int, int]],
    batch: Any,
    losses: Tensor,
) -> StepOutput:
    """Refuse a loss that is not finite, or see to it that it is refused once it is read.

    Args:
        output: Sum of the losses.
        engine: The engine whose step it is.
        now: Returns current epoch and iteration.
        batch: The batch.
        losses: Its losses.

    Raises:
        NonFiniteLossError: If the loss is known and NaN or infinite.
    """
    if isinstance(output.loss, Tensor):
        step, rows, losses = now(), _row_numbers(engine), losses.detach()
        # Not the batch itself: a hundred of them may not fit into the memory of a GPU.
        size = num_rows(batch)

        def refused() -> NonFiniteLossError:
            return _non_finite_loss(step, rows, size, losses, _batch_of(engine, rows))

        return replace(output, refused=refused)
    if not math.isfinite(output.loss):
        raise non_finite_loss(engine, now(), batch, losses)
    return output


def num_rows(batch: Any) -> int:
    """Return the length of the first tensor in a batch of any structure; 1 without one."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    values = batch.values() if isinstance(batch, dict) else batch
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        return 1
    return next((num_rows(value) for value in values if not isinstance(value, str)), 1)


def non_finite_loss(
    engine: Engine, now: tuple[int, int], batch: Any, losses: Tensor | None
) -> NonFiniteLossError:
    """Build the error that says when and for which rows a loss was NaN or infinite."""
    return _non_finite_loss(now, _row_numbers(engine), num_rows(batch), losses, batch)


def _non_finite_loss(
    now: tuple[int, int], numbers: Any, size: int, losses: Tensor | None, batch: Any
) -> NonFiniteLossError:
    epoch, iteration = now
    if losses is not None and losses.ndim:
        bad = (~torch.isfinite(losses.detach().reshape(-1))).nonzero().reshape(-1) % size
        positions = bad.unique().cpu()
    else:
        positions = _non_finite_inputs(batch, size)
    known = isinstance(numbers, Tensor) and len(numbers) == size
    rows = numbers.cpu()[positions] if known else positions
    listed = rows.tolist()
    shown = ", ".join(map(str, listed[:10])) + (", ..." if len(listed) > 10 else "")
    return NonFiniteLossError(
        f"The loss became NaN or infinite in epoch {epoch}, iteration "
        f"{iteration}, for {len(listed)} of {size} rows of the batch "
        f"({'row numbers' if known else 'positions in the batch'} {shown}). Look at these "
        "simulations, lower learning_rate or clip_max_norm; the best weights so far are kept.",
        epoch=epoch,
        iteration=iteration,
        rows=listed,
    )


def _row_numbers(engine: Engine) -> Any:
    """Return the numbers of the rows in the batch that the engine is at, if its loader has them."""
    return getattr(engine.state.dataloader, "rows", None)


def _batch_of(engine: Engine, numbers: Any) -> Any:
    """Return a batch that is no longer at hand by its rows' numbers; nothing where it cannot."""
    tensors = getattr(engine.state.dataloader, "tensors", ())
    if not isinstance(numbers, Tensor):
        return ()
    return tuple(tensor[numbers.to(tensor.device)] for tensor in tensors)


def _non_finite_inputs(batch: Any, size: int) -> Tensor:
    """Return positions of rows with NaN or infinity; all rows where the inputs are innocent."""
    tensors = [t for t in batch if isinstance(t, Tensor)] if isinstance(batch, list | tuple) else []
    bad = torch.zeros(size, dtype=torch.bool)
    for tensor in tensors:
        if tensor.ndim and len(tensor) == size:
            bad |= ~torch.isfinite(tensor.reshape(size, -1)).all(dim=1).cpu()
    return bad.nonzero().reshape(-1) if bad.any() else torch.arange(size)


@contextmanager
def _translated_errors(
    engine: Engine, now: Callable[[], tuple[int, int]], batch: Any
) -> Iterator[None]:
    """Turn the error by which sbi's own losses report NaN into ours, which says where."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, NonFiniteLossError) or not str(error).startswith("NaN/Inf present"):
            raise
        raise non_finite_loss(engine, now(), batch, None) from error


@contextmanager
def fixed_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block under one fixed random state and restore the states that were there before.

    Args:
        seed: Seed of torch's, numpy's and python's generators inside the block.
        device: Device whose generator is fixed too, when it has one of its own.
    """
    python_state, numpy_state, torch_state = (
        random.getstate(),
        np.random.get_state(),
        torch.get_rng_state(),
    )
    cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if cuda_state is not None:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, device)
