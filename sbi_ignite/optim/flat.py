"""Take an optimizer's step on all parameters as one flat tensor.

Small networks have many small tensors, and the cost of an optimizer's step grows with their number:
on a CPU, Adam takes 1.2 ms for a flow of 50 tensors, 0.1 ms for one tensor of the same 31,000
numbers. Its arithmetic is elementwise, so the results are equal bit for bit; with `fused=True`,
whose kernel rounds the end of a tensor differently, they are equal up to the last bits.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from sbi_ignite.optim.memory_layout import ALIGNED, Aligned
from sbi_ignite.optim.private_torch import (
    adam_numbers,
    adam_step,
    copy_each,
    decouples_decay,
    is_watched,
    mark_as_stepped,
    multiply_each,
    slower_steps,
    version_of,
)

_MOMENTS = ("exp_avg", "exp_avg_sq")
_logger = logging.getLogger("sbi_ignite.optim")
_GRADIENT = operator.attrgetter("grad")
_ADDRESS = torch.Tensor.data_ptr
_TORCH = f"{Path(torch.__file__).parent}/"


class FlatTensors(NamedTuple):
    """Where the numbers of an optimizer lie side by side.

    Attributes:
        values: The parameters, shape (num_numbers,).
        gradient: Their gradients, of the same shape.
        first: Adam's first moments, of the same shape.
        second: Its second moments, of the same shape.
        steps: How many steps each parameter has taken, shape (num_parameters,).
    """

    values: Tensor
    gradient: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor


class FlatOptimizer:
    """`zero_grad()` and `step()` of a torch optimizer, faster where that changes nothing.

    Adam and AdamW are faster with one group of parameters on the CPU or on one GPU. From the second
    step to the end of `lent_memory`, parameters and moments lie side by side in flat tensors. They
    stay the same `Parameter` objects and the same optimizer, whose state can be saved and loaded,
    and which torch can step, at any time. What is not elementwise, or cannot lie side by side, is
    left to the optimizer: other kinds and options, hooks, parameters that share memory, and all
    steps from the first one on in which a different set of parameters has gradients.

    Args:
        optimizer: The optimizer to step.

    Attributes:
        slower: What the installed torch lacks for it; "" if it lacks nothing.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> optimizer = FlatOptimizer(torch.optim.Adam(net.parameters()))
        >>> with optimizer.lent_memory():
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         net(torch.ones(4, 2)).mean().backward()
        ...         optimizer.step()
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._memory: _FlatMemory | None = None
        self._possible = False
        self._home: FlatTensors | None = None
        self.slower = ""
        self._note_slower(slower_steps(optimizer))

    @property
    def fused(self) -> bool:
        """Whether the step is torch's fused one, which is not bitwise the default."""
        return all(group.get("fused") is True for group in self.optimizer.param_groups)

    @contextmanager
    def lent_memory(self) -> Iterator[None]:
        """Let parameters lie in flat memory inside the block; at its end they get their own back.

        Both moves keep values, and aliases made before the block see the values at its end.
        """
        self._possible = True
        try:
            yield
        finally:
            self._leave()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        if self._memory is None:
            self.optimizer.zero_grad()
            return
        for parameter in self._memory.group["params"]:
            parameter.grad = None

    def step(self) -> None:
        """Take a step."""
        gradient = self.flat_gradient()
        if gradient is None or self._memory is None:
            self.optimizer.step()
            return
        self._memory.step(gradient)
        # torch's schedulers check whether the optimizer has stepped before them.
        mark_as_stepped(self.optimizer)

    def flat_gradient(self) -> Tensor | None:
        """Return all gradients as one tensor, shape (num_numbers,); None if they cannot be flat.

        Zeros fill the gaps between parameters. It is a copy to read from, made anew in the same
        place when a gradient has been changed or replaced.
        """
        if self._memory is not None and not self._memory.in_use():
            self._memory.give_back()
            self._memory = None
        # Before its first step, a torch optimizer has no state that could be moved.
        if self._memory is None and self._possible and self.optimizer.state:
            self._memory = _FlatMemory.of(self.optimizer, self._home)
            self._possible = self._memory is not None
            if self._memory is None:
                self._note_slower(_unfamiliar(self.optimizer))
            # A CUDA graph knows parameters by their addresses: they move back there.
            self._home = None if self._memory is None else self._memory.tensors
        gradient = None if self._memory is None else self._memory.gather()
        if gradient is None and self._memory is not None:
            self._leave()
        return gradient

    def move_to(self, home: FlatTensors) -> None:
        """Let all numbers lie in these tensors, from the next step on that finds them fitting.

        Args:
            home: Contiguous tensors.
        """
        if self._memory is not None:
            self._memory.give_back()
            self._memory = None
        self._home = home

    def lies_in(self, home: FlatTensors, parameters: Sequence[Tensor]) -> bool:
        """Return whether others may take fused steps on these tensors in place of `step`.

        Args:
            home: What it was told to move to.
            parameters: Those that are to step, in the order of the optimizer; all of them must
                have gradients, in `home`.
        """
        memory = self._memory
        return (
            memory is not None
            and self.fused
            and all(map(operator.is_, memory.tensors, home))
            and memory.is_of(parameters)
            and memory.shows_gradient()
        )

    def hand_over(self, gradient: Tensor, parameters: Sequence[Tensor]) -> bool:
        """Store gradients that lie side by side as `joined` lays tensors; they are copied.

        Args:
            gradient: Shape (num_numbers,).
            parameters: Whose gradients these are, in the order of the optimizer.

        Returns:
            Whether they were stored: not if other parameters lie in flat memory or none, or have
            gradients already.
        """
        return self._memory is not None and self._memory.take(gradient, parameters)

    def flat_values(self, parameters: Sequence[Tensor]) -> Tensor | None:
        """Return the tensor in which these parameters lie, as `joined` lays tensors.

        Args:
            parameters: In the order of the optimizer.

        Returns:
            Shape (num_numbers,); None if they do not lie together, or others lie among them.
        """
        memory = self._memory
        return memory.tensors.values if memory is not None and memory.is_of(parameters) else None

    def joined(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return a copy of tensors, laid out as the parameters of the same shapes are.

        Returns:
            One tensor, shape (num_numbers,), and the parts of it that have the tensors' values.
        """
        places = Aligned(tensors)
        flat = places.joined(tensors)
        return flat, places.parted(flat)

    def scale_gradients(self, gradients: Sequence[Tensor], factor: float | Tensor) -> None:
        """Multiply the parameters' gradients, and the copy that `flat_gradient` made of them.

        Args:
            gradients: All gradients that exist.
            factor: A number, or a tensor of shape ().
        """
        scaled = self._memory is not None and self._memory.scale(gradients, factor)
        if not scaled:
            multiply_each(gradients, factor)

    def _note_slower(self, reason: str) -> None:
        """Say once, if there is a reason, that steps are slower with this torch."""
        if reason and not self.slower:
            self.slower = reason
            _logger.warning("Optimizer steps are slower than they could be: %s.", reason)

    def _leave(self) -> None:
        """Give parameters their own memory back, for good."""
        if self._memory is not None:
            self._memory.give_back()
        self._memory, self._possible, self._home = None, False, None


class _FlatMemory:
    """The parameters of an optimizer that have gradients, and their moments, in flat tensors.

    Args:
        optimizer: Adam or AdamW, with a state.
        parameters: The parameters.
        home: Memory to move into where it fits.

    Attributes:
        group: The optimizer's group of parameters.
        tensors: Where everything lies.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: Sequence[Tensor], home: FlatTensors | None
    ) -> None:
        self._optimizer, self._parameters = optimizer, list(parameters)
        self.group, self._state = optimizer.param_groups[0], optimizer.state
        self._others = [p for p in self.group["params"] if p.grad is None]
        self._patched = vars(optimizer).get("step")
        first = self._parameters[0]
        # On a GPU, torch handles several tensors at a time unless told otherwise.
        foreach = self.group["foreach"] is not False and not self.group["fused"]
        self._several = first.is_cuda and foreach
        self._places = Aligned(self._parameters)
        self._own = [p.data for p in self._parameters]
        self._gathered: tuple[Sequence[Tensor], object] | None = None
        self._known_as: Sequence[Tensor] | None = None
        values = self._places.joined(self._own)
        first_moments, second_moments = (
            self._places.joined([self._state[p][name] for p in self._parameters])
            for name in _MOMENTS
        )
        steps = torch.stack([self._state[p]["step"] for p in self._parameters])
        gradient = torch.zeros_like(values)
        self.tensors = FlatTensors(values, gradient, first_moments, second_moments, steps)
        if home is not None and all(map(_alike, home, self.tensors)):
            for place, tensor in zip(home, self.tensors, strict=True):
                place.copy_(tensor)
            self.tensors = home
        self._slots = self._places.parted(self.tensors.gradient)
        self._move_in()
        self._first = self._parameters[0], self._state[self._parameters[0]]
        self._addresses = [p.data_ptr() for p in self._parameters]

    @classmethod
    def of(cls, optimizer: Optimizer, home: FlatTensors | None = None) -> _FlatMemory | None:
        """Return the memory for an optimizer; None if it cannot step on flat tensors."""
        if not _is_elementwise(optimizer):
            return None
        parameters = [p for p in optimizer.param_groups[0]["params"] if p.grad is not None]
        states = [optimizer.state.get(p, {}) for p in parameters]
        if not (_can_lie_together(parameters) and all({"step", *_MOMENTS} == {*s} for s in states)):
            return None
        one_count = len({float(state["step"]) for state in states}) == 1
        return cls(optimizer, parameters, home) if one_count else None

    def _move_in(self) -> None:
        """Let parameters and their state point into the flat tensors."""
        values, _, first, second, steps = self.tensors
        views = map(self._places.parted, (values, first, second))
        for i, (parameter, value, *moments) in enumerate(
            zip(self._parameters, *views, strict=True)
        ):
            parameter.data = value
            state = self._state[parameter]
            state["step"] = steps[i]
            state.update(zip(_MOMENTS, moments, strict=True))

    def in_use(self) -> bool:
        """Say whether the optimizer, its parameters and its state are still where they were put."""
        optimizer = self._optimizer
        return (
            optimizer.state is self._state
            and self._state.get(self._first[0]) is self._first[1]
            and len(optimizer.param_groups) == 1
            and optimizer.param_groups[0] is self.group
            and vars(optimizer).get("step") is self._patched
            and list(map(_ADDRESS, self._parameters)) == self._addresses
        )

    def is_of(self, parameters: Sequence[Tensor]) -> bool:
        """Say whether it still holds exactly these parameters."""
        same = len(parameters) == len(self._parameters)
        return same and all(map(operator.is_, parameters, self._parameters)) and self.in_use()

    def shows_gradient(self) -> bool:
        """Say whether a plain step would be one on the flat gradient, whatever is in it."""
        gradients = map(_GRADIENT, self._parameters)
        return all(map(operator.is_, gradients, self._slots)) and not self._is_out_of_reach()

    def _is_out_of_reach(self) -> bool:
        """Return whether a plain step would do something else than one on flat tensors."""
        return any(p.grad is not None for p in self._others) or is_watched(self._optimizer)

    def gather(self) -> Tensor | None:
        """Return the gradients as one tensor; None if a plain step would do something else."""
        gradients = list(map(_GRADIENT, self._parameters))
        if self._is_out_of_reach():
            return None
        if self._is_gathered(gradients):
            return self.tensors.gradient
        if any(g is None or g.layout != torch.strided for g in gradients):
            return None
        with torch.no_grad():
            copy_each(self._slots, gradients)
        self._note(gradients)
        return self.tensors.gradient

    def _note(self, gradients: Sequence[Tensor]) -> None:
        """Remember which gradients the flat gradient is a copy of."""
        self._gathered = gradients, self._versions(gradients)

    def _versions(self, gradients: Sequence[Tensor]) -> object:
        """Return what changes whenever one of these is written to."""
        # Parts of one tensor count as it does.
        own = gradients is self._slots
        return version_of(self.tensors.gradient) if own else list(map(version_of, gradients))

    def _is_gathered(self, gradients: Sequence[Tensor | None]) -> bool:
        """Return whether the flat gradient is a copy of these as they are now."""
        if self._gathered is None:
            return False
        seen, versions = self._gathered
        same = len(seen) == len(gradients) and all(map(operator.is_, seen, gradients))
        return same and versions == self._versions(seen)

    @torch.no_grad()
    def take(self, gradient: Tensor, parameters: Sequence[Tensor]) -> bool:
        """Give parameters these gradients, if they are all that lie here and have none yet."""
        if parameters is not self._known_as:
            if not self.is_of(parameters):
                return False
            self._known_as = parameters
        if any(map(operator.is_not, map(_GRADIENT, self._parameters), repeat(None))):
            return False
        self.tensors.gradient.copy_(gradient)
        self._give_parts()
        return True

    @torch.no_grad()
    def scale(self, gradients: Sequence[Tensor], factor: float | Tensor) -> bool:
        """Scale the flat gradient, if it was made from these, and let parameters use its parts."""
        if not self._is_gathered(gradients):
            return False
        self.tensors.gradient.mul_(factor)
        if self._gathered is not None and self._gathered[0] is self._slots:
            self._note(self._slots)
        else:
            self._give_parts()
        return True

    def _give_parts(self) -> None:
        """Let parameters use the parts of the flat gradient."""
        for parameter, slot in zip(self._parameters, self._slots, strict=True):
            parameter.grad = slot
        self._note(self._slots)

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """Take the step of torch's Adam or AdamW."""
        values, _, first, second, steps = self.tensors
        adam_step(
            ([values], [gradient], [first], [second], []),
            steps,
            adam_numbers(self.group),
            decoupled=decouples_decay(self._optimizer),
            fused=bool(self.group["fused"]),
            several=self._several,
        )
        self._gathered = None

    @torch.no_grad()
    def give_back(self) -> None:
        """Give every parameter, with its present value, and every moment its own memory."""
        places = zip(self._parameters, self._own, self._addresses, strict=True)
        for parameter, own, address in places:
            if parameter.data_ptr() == address:
                parameter.data = own.copy_(parameter)
            state = self._state.get(parameter, {})
            state.update({name: value.clone() for name, value in state.items()})


def _alike(first: Tensor, second: Tensor) -> bool:
    return (first.shape, first.dtype, first.device) == (second.shape, second.dtype, second.device)


def _is_elementwise(optimizer: Optimizer) -> bool:
    """Return whether a step is torch's own Adam or AdamW, with purely elementwise options."""
    if type(optimizer) not in (Adam, AdamW) or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    numbers = (group["lr"], *group["betas"], group["eps"], group["weight_decay"])
    return (
        not any(group[option] for option in ("amsgrad", "capturable", "differentiable"))
        and not any(isinstance(number, Tensor) for number in numbers)
        and _is_torchs_own(optimizer.step)
        and _is_torchs_own(optimizer.zero_grad)
        and not hasattr(optimizer, "grad_scale")
    )


def _unfamiliar(optimizer: Optimizer) -> str:
    """Return why the installed torch's own Adam or AdamW cannot step on flat tensors.

    Returns:
        Words; "" if it can, or if this optimizer differs from a plain one.
    """
    if type(optimizer) not in (Adam, AdamW):
        return ""
    name, plain = type(optimizer).__name__, f"torch {torch.__version__}"
    if not _is_torchs_own(type(optimizer).step):
        return f"{name}.step is not {plain}'s own"
    kept = {key for state in optimizer.state.values() for key in state}
    if _is_elementwise(optimizer) and kept != {"step", *_MOMENTS}:
        return f"{name} of {plain} keeps other numbers ({', '.join(sorted(kept))})"
    return ""


def _is_torchs_own(method: Callable[..., Any] | None) -> bool:
    """Return whether a method is torch's, even if torch's schedulers have wrapped it."""
    while method is not None:
        code = getattr(method, "__code__", None)
        if code is None or not code.co_filename.startswith(_TORCH):
            return False
        method = getattr(method, "__wrapped__", None)
    return True


def _can_lie_together(parameters: Sequence[Tensor]) -> bool:
    """Return whether parameters are dense tensors of one kind, each alone in its memory."""
    if not parameters or parameters[0].dtype not in (torch.float32, torch.float64):
        return False
    return (
        parameters[0].device.type in ALIGNED
        and all(p.device == parameters[0].device for p in parameters)
        and all(p.layout == torch.strided and p.dtype == parameters[0].dtype for p in parameters)
        and all(type(p) is torch.nn.Parameter and p.is_contiguous() for p in parameters)
        and not any(p.device.type == "cpu" and p.is_shared() for p in parameters)
        and all(p.untyped_storage().nbytes() == p.numel() * p.element_size() for p in parameters)
        and len({p.untyped_storage().data_ptr() for p in parameters}) == len(parameters)
    )
