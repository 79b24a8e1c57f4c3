"""Recordings write over what nobody reads any more, over nothing else, and give the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.capture import recorded as helpers

WRITING = ("'out'", "'grad_input'", "relu_", "masked_fill_")
"""What tells in a recording's words that a result is written over an argument."""


def test_a_result_takes_the_place_of_an_argument_that_nobody_reads_after_it():
    graph = recorded(lambda x: [(x.exp() + 1.0).sigmoid()], torch.randn(4, 3))

    assert writes_over(graph) == 2  # exp is the first to have memory of its own


def test_the_argument_may_be_any_of_several():
    graph = recorded(lambda x: [x + x.exp()], torch.randn(4, 3))

    assert writes_over(graph) == 1


def test_backward_passes_write_over_the_gradients_that_they_receive():
    weight = torch.randn(3, 3, requires_grad=True)

    def gradient(x: Tensor) -> list[Tensor]:
        loss = torch.relu(x @ weight).tanh().mean()
        return list(torch.autograd.grad(loss, [weight]))

    graph = recorded(gradient, torch.randn(4, 3))

    assert "relu_" in graph.code  # the product is read by nobody else
    assert "threshold_backward.grad_input" in graph.code


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: [x + 1.0], id="an input"),
        pytest.param(lambda x: [x.view(12) + 1.0], id="a view of an input"),
        pytest.param(lambda x: twice(x.exp(), lambda a: [a + 1.0, a]), id="an output"),
        pytest.param(lambda x: twice(x.exp(), lambda a: [a.exp(), a.sum()]), id="read later"),
        pytest.param(lambda x: twice(x.exp(), lambda a: [a.exp() @ a.t()]), id="viewed later"),
        pytest.param(lambda x: twice(x.exp(), lambda a: [a.t().exp(), a.sum()]), id="a view"),
        pytest.param(lambda x: twice(x @ x.t(), lambda a: [a + a.t()]), id="read twice at once"),
        pytest.param(lambda x: [x.sum(1, keepdim=True).expand(4, 3) + 1.0], id="repeated"),
        pytest.param(lambda x: [x.sum(0) + x], id="smaller"),
        pytest.param(lambda x: [x.exp() > 1.0], id="of another type"),
        pytest.param(lambda x: [x.exp()[:2] + 1.0], id="a part"),
    ],
)
def test_an_argument_stays_that_is(function: Callable[[Tensor], list[Tensor]]):
    graph = recorded(function, torch.randn(4, 3))

    assert writes_over(graph) == 0


def twice(value: Tensor, function: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
    """Return a function's result for a value that it names more than once."""
    return function(value)


def test_what_others_hold_is_not_written_to():
    held = torch.randn(4, 3)
    before = held.clone()

    graph = recorded(lambda x: [held.sigmoid() * x + held], torch.randn(4, 3))

    assert torch.equal(held, before)
    assert writes_over(graph) == 2


def test_what_an_operation_hands_on_without_saying_so_is_not_written_to():
    library = torch.library.Library("sbi_ignite_tests", "FRAGMENT")
    library.define("handed_on(Tensor x) -> Tensor")
    library.impl("handed_on", lambda x: x, "CPU")

    graph = recorded(lambda x: [torch.ops.sbi_ignite_tests.handed_on(x).exp()], torch.randn(4, 3))

    assert writes_over(graph) == 0


def test_memory_that_a_computation_writes_to_itself_is_left_alone():
    def function(x: Tensor) -> list[Tensor]:
        total = torch.zeros(4, 3)
        part = total[1]
        total += x.exp()
        return [total + 1.0, part.clone()]

    recorded(function, torch.randn(4, 3))


def test_draws_are_not_written_over_their_arguments():
    graph = recorded(lambda x: [torch.bernoulli(x.sigmoid()) + x], torch.randn(4, 3))

    assert "bernoulli" in graph.code


@pytest.mark.parametrize("seed", range(60))
def test_any_computation_gives_the_same_bits(seed: int):
    """Thirty random operations, half of them on recent values, with views and writes among them."""
    generator = torch.Generator().manual_seed(seed)

    def number(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    program = [(number(len(OPERATIONS)), number(2), number(1000), number(1000)) for _ in range(30)]
    returned = [number(1000) for _ in range(3)]
    weight = torch.randn(4, 4, generator=generator)

    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        values = [x, y, weight, x.exp(), y.tanh()]
        for kind, recent, first, second in program:
            least = len(values) - 3 if recent else 0
            a, b = (values[least + n % (len(values) - least)] for n in (first, second))
            values.append(OPERATIONS[kind](a, b))
        return [values[n % len(values)] for n in returned]

    recorded(function, *(torch.randn(4, 4, generator=generator) for _ in range(2)))


def _added_in_place(a: Tensor, b: Tensor) -> Tensor:
    total = a.clone()
    row = total[0]
    total.add_(b)
    return total * row


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda a, b: a + b,
    lambda a, b: a - 0.5 * b,
    lambda a, b: a.sigmoid(),
    lambda a, b: torch.relu(a),
    lambda a, b: a.tanh() * b,
    lambda a, b: a.t(),
    lambda a, b: (a @ b).tanh(),
    lambda a, b: torch.where(a > b, a, b),
    lambda a, b: a.view(16).flip(0).view(4, 4) if a.is_contiguous() else a.contiguous(),
    lambda a, b: torch.cat([a[:2], b[2:]]),
    lambda a, b: a.masked_fill(b > 0, 0.5),
    lambda a, b: a.sum(0, keepdim=True).expand(4, 4),
    lambda a, b: torch.nn.functional.softplus(a),
    lambda a, b: a.chunk(2)[0].repeat(2, 1) + b,
    _added_in_place,
)


def recorded(function: Callable[..., list[Tensor]], *inputs: Tensor) -> helpers.Recorded:
    """Return a recording that gave, three times in every way to run it, what the function gives."""
    before = [tensor.clone() for tensor in inputs]
    for executor in helpers.EXECUTORS:
        graph = helpers.recorded(function, inputs, executor=executor)
        for _ in range(3):
            torch.manual_seed(1)
            expected = function(*inputs)
            torch.manual_seed(1)
            given = graph(inputs)
            assert all(map(_same_bits, expected, given))
    assert all(map(_same_bits, before, inputs))
    return graph


def _same_bits(first: Tensor, second: Tensor) -> bool:
    pair = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)]
    return first.shape == second.shape and torch.equal(*pair)


def writes_over(graph: helpers.Recorded) -> int:
    """Return how many operations of a recording write over an argument."""
    return sum(any(word in line for word in WRITING) for line in graph.code.splitlines())
