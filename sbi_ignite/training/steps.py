"""The process functions of ignite's engines: one step of training, one batch of validation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor, nn

from sbi_ignite.capture.gradients import Gradients
from sbi_ignite.capture.loss_values import check_losses
from sbi_ignite.data.source import Batches, num_rows
from sbi_ignite.exceptions import DataError, NonFiniteLossError
from sbi_ignite.explain import PLAIN_ERRORS, explain
from sbi_ignite.handlers.epoch_mean import StepOutput
from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.training.first_batch import check_batch, check_shape, warn_if_uncounted

Step = Callable[[Engine, Any], StepOutput]


class Stepping(Protocol):
    """What a step needs from an optimizer."""

    def zero_grad(self) -> None:
        """Forget the gradients."""
        ...

    def step(self) -> Any:
        """Take a step."""
        ...


@dataclass
class TrainStep:
    """One optimizer step: forward, backward, clip (a handler), step.

    The first batch is checked thoroughly.

    Attributes:
        gradients: Losses of a batch, shape (batch,), or their mean, and its gradients.
        optimizer: Steps over the network's parameters.
        device: Where batches are moved.
        summed: How the losses of a batch add up, `summed` or `summed_as_sbi`.
        now: Returns current epoch and iteration, for errors.
        check_gradients: Called after the first backward pass.
        taken: Asked before every step what came of it, if others have taken it already.
    """

    gradients: Gradients
    optimizer: Stepping
    device: torch.device
    summed: Callable[[Tensor, Any], StepOutput]
    now: Callable[[], tuple[int, int]]
    check_gradients: Callable[[], None] | None = None
    taken: Callable[[], StepOutput | None] = lambda: None
    _first: bool = field(default=True, init=False, repr=False)

    def __call__(self, engine: Engine, batch: Any) -> StepOutput:
        """Take one step and return the sum of the losses."""
        taken = self.taken()
        if taken is not None:
            return taken
        self.optimizer.zero_grad()
        batch = on_device(batch, self.device)
        if self._first:
            check_batch(batch, _batches(engine).name)
        with _translated_errors(engine, self.now, batch):
            losses, backward = self.gradients(batch)
        if self._first and self.summed is summed:
            check_shape(losses, batch)
            warn_if_uncounted(losses, batch)
        output = self.summed(losses, batch)
        if not output.rows:
            raise _empty_batch(engine, f"iteration {self.now()[1]}", self.now()[0])
        output = checked(output, engine, self.now, batch, losses)
        backward()
        if self._first and self.check_gradients is not None:
            self.check_gradients()
        self._first = False
        engine.fire_event(TrainingEvents.BACKWARD_COMPLETED)
        try:
            self.optimizer.step()
        except PLAIN_ERRORS as error:
            epoch, iteration = self.now()
            name = type(getattr(self.optimizer, "optimizer", self.optimizer)).__name__
            what = (
                "optimizer: expected one that steps on the gradients of loss.backward() on "
                f"{self.device}, {name}.step() failed in epoch {epoch}, iteration {iteration}"
            )
            advice = "It fails likewise in a plain torch loop; make it with other arguments, or "
            explain(error, what, advice + "take Adam, AdamW or SGD.")
        return output


@dataclass
class ValidationStep:
    """One batch of validation, without gradients.

    The first batch is checked thoroughly.

    Attributes:
        model: The network.
        loss: Losses of a batch.
        device: Where batches are moved.
        summed: How the losses of a batch add up, `summed` or `summed_as_sbi`.
        now: Returns current epoch and iteration, for errors.
        refuse_non_finite: Raise on NaN and infinity.
        keep_losses: Also pass on the losses of the rows, if the loss function returns them.
    """

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    device: torch.device
    summed: Callable[[Tensor, Any], StepOutput]
    now: Callable[[], tuple[int, int]]
    refuse_non_finite: bool = True
    keep_losses: bool = False
    _first: bool = field(default=True, init=False, repr=False)

    def __call__(self, engine: Engine, batch: Any) -> StepOutput:
        """Return the sum of the losses."""
        batch = on_device(batch, self.device)
        with torch.no_grad(), _translated_errors(engine, self.now, batch, validation=True):
            losses = self.loss(self.model, batch)
        if self._first:
            check_losses(losses)
            if self.summed is summed:
                check_shape(losses, batch)
            self._first = False
        output = self.summed(losses, batch)
        if not output.rows:
            raise _empty_batch(engine, f"after iteration {self.now()[1]}", self.now()[0])
        if self.refuse_non_finite:
            output = checked(output, engine, self.now, batch, losses, validation=True)
        if self.keep_losses and losses.ndim:
            # A copy: a CUDA graph writes the next batch's losses to the same place.
            output = replace(output, losses=losses.reshape(-1).clone())
        return output


def on_device(batch: Any, device: torch.device) -> Any:
    """Return a batch of any structure with its tensors on a device; what cannot move stays."""
    # Batches from our own loaders are already there and need not be rebuilt.
    if type(batch) is tuple and all(isinstance(t, Tensor) and t.device == device for t in batch):
        return batch
    return mapped(batch, "to", device)


def mapped(value: Any, method: str, *args: Any) -> Any:
    """Call a method of all tensors, and other objects that have it, in a batch of any structure.

    Args:
        value: The batch: containers nested to any depth. What has no such method stays.
        method: Name of the method.
        *args: Its arguments.

    Example:
        >>> mapped({"x": torch.ones(1), "name": "a"}, "mul", 2)
        {'x': tensor([2.]), 'name': 'a'}
    """
    if callable(getattr(value, method, None)):
        return getattr(value, method)(*args)
    if isinstance(value, Mapping):
        return type(value)({name: mapped(item, method, *args) for name, item in value.items()})  # type: ignore[call-arg] # as all mappings do
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, method, *args) for item in value))
    if isinstance(value, list | tuple):
        return type(value)([mapped(item, method, *args) for item in value])
    return value


def summed(losses: Tensor, batch: Any) -> StepOutput:
    """Sum per-row losses; a scalar counts as the mean over the rows of its batch."""
    if losses.ndim:
        return StepOutput(read_if_at_hand(losses.sum()), losses.numel())
    rows = num_rows(batch)
    return StepOutput(read_if_at_hand(losses), rows, times=rows)


def summed_each(losses: Tensor, rows: int) -> list[StepOutput]:
    """Sum the losses of several batches as `summed` does those of one.

    Args:
        losses: Those of each batch in turn, shape (num_batches, batch), or their means, shape
            (num_batches,).
        rows: Rows of a batch.
    """
    sums = losses.sum(dim=1) if losses.ndim > 1 else losses.detach()
    each: Iterable[float | Tensor] = sums.unbind(0) if reads_later(sums.device) else sums.tolist()
    if losses.ndim > 1:
        return [StepOutput(loss, losses.shape[1]) for loss in each]
    return [StepOutput(loss, rows, times=rows) for loss in each]


def summed_as_sbi(
    losses: Tensor, batch: Any, mean_over: Callable[[Any], int] | None = None
) -> StepOutput:
    """Sum losses as sbi does, for which a scalar is one loss.

    Args:
        losses: Those of rows, shape (batch,), or a scalar.
        batch: The batch.
        mean_over: Gives the rows of a batch in all processes, if losses of rows stand for their
            mean, which sbi sums; None if sbi sums them.
    """
    total = losses.sum()
    if mean_over is not None and losses.ndim:
        total = total / mean_over(batch)
    return StepOutput(read_if_at_hand(total), num_rows(batch))


def read_if_at_hand(loss: Tensor) -> float | Tensor:
    """Return a number; from a GPU a tensor, because reading it would leave the GPU idle."""
    return loss.detach() if reads_later(loss.device) else loss.item()


def reads_later(device: torch.device) -> bool:
    """Return whether losses on a device are read only after later ones have been computed."""
    return device.type == "cuda"


def checked(
    output: StepOutput,
    engine: Engine,
    now: Callable[[], tuple[int, int]],
    batch: Any,
    losses: Tensor,
    validation: bool = False,
) -> StepOutput:
    """Refuse a loss that is not finite, or arrange for it to be refused once it is read.

    Args:
        output: Sum of the losses.
        engine: The engine that takes the step.
        now: Returns current epoch and iteration.
        batch: The batch.
        losses: Its losses.
        validation: Whether these are validation losses.

    Raises:
        NonFiniteLossError: If the loss is known and NaN or infinite.
    """
    if isinstance(output.loss, Tensor):
        batches, losses = _batches(engine), losses.detach()
        step, rows = now(), batches.rows
        # Not the batch itself: a hundred batches may not fit into the memory of a GPU.
        size = num_rows(batch)

        def refused() -> NonFiniteLossError:
            batch_again = () if rows is None else batches.rows_at(rows)
            return _non_finite_loss(step, rows, size, losses, batch_again, validation)

        return replace(output, refused=refused)
    if not math.isfinite(output.loss):
        raise non_finite_loss(engine, now(), batch, losses, validation)
    return output


def non_finite_loss(
    engine: Engine, now: tuple[int, int], batch: Any, losses: Tensor | None, validation: bool
) -> NonFiniteLossError:
    """Build the error that tells when and for which rows a loss was NaN or infinite."""
    rows = _batches(engine).rows
    return _non_finite_loss(now, rows, num_rows(batch), losses, batch, validation)


def _non_finite_loss(
    now: tuple[int, int],
    numbers: Any,
    size: int,
    losses: Tensor | None,
    batch: Any,
    validation: bool,
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
    where = (
        f"for {len(listed)} of {size} rows of the batch "
        f"({'row numbers' if known else 'positions in the batch'} {shown})"
    )
    if validation:
        message = (
            f"The validation loss is NaN or infinite in epoch {epoch}, after iteration "
            f"{iteration}, {where}. Look at these simulations (where a density is zero, its loss "
            "is infinite), leave them out, or lower learning_rate; the best weights so far are "
            "kept."
        )
    else:
        message = (
            f"The loss became NaN or infinite in epoch {epoch}, iteration {iteration}, {where}. "
            "Look at these simulations, lower learning_rate or clip_max_norm; the best weights so "
            "far are kept."
        )
    return NonFiniteLossError(
        message, epoch=epoch, iteration=iteration, rows=listed, validation=validation
    )


def _empty_batch(engine: Engine, moment: str, epoch: int) -> DataError:
    return DataError(
        f"{_batches(engine).name}: expected batches of at least one row, got a batch without rows "
        f"in epoch {epoch}, {moment}. Leave empty batches out of the loader and of its len()."
    )


def _batches(engine: Engine) -> Batches:
    """Return what the engine iterates over."""
    return engine.state.dataloader  # type: ignore[return-value] # run_training passes Batches only


def _non_finite_inputs(batch: Any, size: int) -> Tensor:
    """Return positions of rows with NaN or infinity; all rows if the inputs are all finite."""
    tensors = [t for t in batch if isinstance(t, Tensor)] if isinstance(batch, list | tuple) else []
    bad = torch.zeros(size, dtype=torch.bool)
    for tensor in tensors:
        if tensor.ndim and len(tensor) == size:
            bad |= ~torch.isfinite(tensor.reshape(size, -1)).all(dim=1).cpu()
    return bad.nonzero().reshape(-1) if bad.any() else torch.arange(size)


@contextmanager
def _translated_errors(
    engine: Engine, now: Callable[[], tuple[int, int]], batch: Any, validation: bool = False
) -> Iterator[None]:
    """Turn the error with which sbi's own losses report NaN into ours, which says where."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, NonFiniteLossError) or not str(error).startswith("NaN/Inf present"):
            raise
        raise non_finite_loss(engine, now(), batch, None, validation) from error


@contextmanager
def fixed_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block under one fixed random state and restore the states that were there before.

    Args:
        seed: Seed of torch's, numpy's and python's generators inside the block.
        device: Device whose generator is fixed too, if it has one of its own.
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
