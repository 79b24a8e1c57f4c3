"""Average gradients over several processes, and let them decide together when to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from sbi_ignite.callback import TrainingState
from sbi_ignite.data.source import num_rows
from sbi_ignite.exceptions import ArgumentError, NonFiniteLossError, RankFailedError
from sbi_ignite.handlers.epoch_mean import StepOutput
from sbi_ignite.handlers.events import TrainingEvents
from sbi_ignite.optim.private_torch import copy_each
from sbi_ignite.world import ONE, World

Flag = Callable[[], bool]


class Together:
    """What a single process decides together with nobody; `GradientAveraging` is for several."""

    def decide(self, flag: Flag) -> Flag:
        """Return a function that says whether any process sets a flag.

        Args:
            flag: Says whether this process sets it.
        """
        return flag

    def attach_to_steps(self, engine: Engine) -> None:
        """Act after every backward pass."""

    def attach_to_epochs(self, engine: Engine) -> None:
        """Act after every epoch, once it is validated."""

    def guard_step(self, step: Any) -> Any:
        """Return a step whose errors end all processes."""
        return step


class GradientAveraging(Together):
    """Give every process the mean gradient over the rows of all, and decisions that all share.

    One sum per step carries everything: the gradients, each times the rows of its process; how many
    processes have a gradient for each parameter; and the flags that were set. What is decided takes
    effect after that step in all processes. After an epoch, flags and requests to stop are
    exchanged once more.

    The mean is what one process with all rows computes, for losses of rows that do not depend on
    each other. It works on `p.grad`, after the backward pass, so that recorded steps remain what
    they are.

    Args:
        world: The processes.
        parameters: What the optimizer steps.
        state: Where requests to stop are made.
    """

    def __init__(self, world: World, parameters: Iterable[Tensor], state: TrainingState) -> None:
        self._world, self._state = world, state
        self._parameters = [p for p in parameters if p.requires_grad]
        self._flags: list[Flag] = []
        self._asked: list[bool] = []
        self._engine: Engine | None = None
        self._met = False
        self._slots: list[Tensor] = []

    def decide(self, flag: Flag) -> Flag:
        """Return a function that says whether any process had set a flag when they last met."""
        number = len(self._flags)
        self._flags.append(flag)
        self._asked.append(False)
        return lambda: self._asked[number]

    def attach_to_steps(self, engine: Engine) -> None:
        """Average after every backward pass; attach it before anything that reads gradients."""
        self._engine = engine
        engine.add_event_handler(TrainingEvents.BACKWARD_COMPLETED, self._average)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._share_statistics)

    def attach_to_epochs(self, engine: Engine) -> None:
        """Decide after every epoch; attach it between validation and what ends the engine."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)

    def guard_step(self, step: Any) -> Any:
        """Return a step whose errors end all processes, and which does without rows.

        Args:
            step: A process function with an `optimizer`.
        """

        def guarded(engine: Engine, batch: Any) -> StepOutput:
            self._met = False
            try:
                if num_rows(batch):
                    return step(engine, batch)
                step.optimizer.zero_grad()
                engine.fire_event(TrainingEvents.BACKWARD_COMPLETED)
                step.optimizer.step()
                return StepOutput(0.0, 0)
            except Exception as error:
                if not self._met:  # the others wait for this process's gradients
                    self.exchange(0, [None] * len(self._parameters), failed=True)
                    raise_in_all(self._world, error)
                raise

        return guarded

    def _average(self) -> None:
        engine = self._engine
        rows = num_rows(engine.state.batch) if engine is not None else 0
        gradients = [p.grad for p in self._parameters]
        if any(g is not None and g.layout != torch.strided for g in gradients):
            raise ArgumentError(
                "model: expected dense gradients, which several processes can average, got sparse "
                "ones. Make the embedding with sparse=False."
            )
        self._met = True
        if self.exchange(rows, gradients):
            raise_in_all(self._world, None)

    @torch.no_grad()
    def exchange(self, rows: int, gradients: list[Tensor | None], failed: bool = False) -> bool:
        """Replace gradients by their mean over all rows; return whether a process has failed.

        Args:
            rows: Rows of this process in the batch.
            gradients: One for each parameter, None where it has no part in the loss.
            failed: Whether this process has failed, and has no gradients.
        """
        self._make_room()
        there = [i for i, gradient in enumerate(gradients) if gradient is not None]
        if len(there) < len(gradients):
            self._numbers.zero_()
        if there:
            own = [gradient for gradient in gradients if gradient is not None]
            copy_each([self._slots[i] for i in there], own)
        self._numbers.mul_(rows)
        words = [float(rows), float(failed), *(float(flag()) for flag in self._flags)]
        words += [float(gradient is not None) for gradient in gradients]
        self._words.copy_(torch.tensor(words, dtype=self._words.dtype))
        self._world.add(self._whole)
        total, any_failed, *others = self._words.tolist()
        asked, counts = others[: len(self._flags)], others[len(self._flags) :]
        self._asked = [number > 0 for number in asked]
        if any_failed or not total:
            return bool(any_failed)
        self._numbers.div_(total)
        for parameter, slot, count in zip(self._parameters, self._slots, counts, strict=True):
            parameter.grad = slot.to(parameter.dtype) if count else None
        return False

    def _make_room(self) -> None:
        """Lay out what is exchanged, once it is known which flags there are."""
        if self._slots:
            return
        first = self._parameters[0]
        sizes = [p.numel() for p in self._parameters]
        parts = sum(sizes), 2 + len(self._flags) + len(sizes)
        # Numbers of rows need more digits than a 16-bit type has.
        dtype = torch.promote_types(first.dtype, torch.float32)
        self._whole = torch.zeros(sum(parts), dtype=dtype, device=first.device)
        self._numbers, self._words = self._whole.split(parts)
        pieces = self._numbers.split(sizes)
        self._slots = [x.view(p.shape) for x, p in zip(pieces, self._parameters, strict=True)]

    @torch.no_grad()
    def _share_statistics(self) -> None:
        """Average the statistics that layers such as BatchNorm take from their own rows."""
        buffers = [b for b in self._state.model.buffers() if b.is_floating_point() and b.numel()]
        if not buffers:
            return
        # In double precision, the mean of equal numbers is that number, also of three.
        whole = torch.cat([buffer.reshape(-1).double() for buffer in buffers])
        whole = self._world.add(whole).div_(self._world.size)
        for buffer, part in zip(buffers, whole.split([b.numel() for b in buffers]), strict=True):
            if buffer.dtype != torch.float64:
                buffer.copy_(part.view(buffer.shape))

    def _after_epoch(self, engine: Engine) -> None:
        state, flags = self._state, [flag() for flag in self._flags]
        stops = state.stop_reason is not None
        *asked, num_stops = self._world.sums(*map(float, flags), float(stops))
        self._asked = [number > 0 for number in asked]
        if num_stops:
            told = self._world.gather((state.stop_reason, state.stop_message))
            first = next(words for words in told if words[0] is not None)
            state.stop_reason, state.stop_message = first


def raise_in_all(world: World, error: Exception | None) -> NoReturn:
    """Raise the error of the first process that has one, in all processes.

    Args:
        world: The processes.
        error: The error of this process; None if it has none.

    Raises:
        NonFiniteLossError: If that is the error.
        RankFailedError: For other errors, in processes that do not have it themselves.
    """
    mine = None if error is None else _described(error)
    found = [(rank, told) for rank, told in enumerate(world.gather(mine)) if told is not None]
    rank, (words, details) = found[0]
    if error is not None and (rank == world.rank or details is None):
        raise error
    if details is not None:
        raise NonFiniteLossError(f"{words} (in process {rank})", **details)
    raise RankFailedError(f"Rank {rank} of {world.size} ended with {words}", ranks=(rank,))


@contextmanager
def errors_in_all(world: World) -> Iterator[None]:
    """Raise an error that ends the block in one process in all of them."""
    if world is ONE:
        yield
        return
    found: Exception | None = None
    try:
        yield
    except RankFailedError:
        raise
    except Exception as error:
        found = error
    if world.any(found is not None):
        raise_in_all(world, found)


def without_empty(step: Any) -> Any:
    """Return a validation step that skips the batches of which this process has no rows."""

    def skipping(engine: Engine, batch: Any) -> StepOutput:
        return step(engine, batch) if num_rows(batch) else StepOutput(0.0, 0)

    return skipping


def _described(error: Exception) -> tuple[str, dict[str, Any] | None]:
    """Return an error as plain data, with its details if all processes raise the same."""
    if not isinstance(error, NonFiniteLossError):
        return f"{type(error).__name__}: {error}", None
    return str(error), {
        "epoch": error.epoch,
        "iteration": error.iteration,
        "rows": list(error.rows),
        "validation": error.validation,
    }


def together_in(world: World, parameters: Iterable[Tensor], state: TrainingState) -> Together:
    """Return what lets the processes of a training act together.

    Args:
        world: The processes.
        parameters: What the optimizer steps.
        state: The training's numbers.
    """
    return Together() if world is ONE else GradientAveraging(world, parameters, state)
