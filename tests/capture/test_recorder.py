"""Recordings repeat a computation bit for bit, whatever runs them."""

from __future__ import annotations

import itertools
import math
import weakref

import numpy as np
import pytest
import torch
from torch import fx

from sbi_ignite.capture import recorder
from sbi_ignite.capture.guards import NotTraceable, Writable
from sbi_ignite.capture.operations import operation
from sbi_ignite.capture.passes.index_put import without_waiting
from sbi_ignite.capture.passes.one_by_one import prepare_to_run_one_by_one
from sbi_ignite.capture.verification import _same_bits


def test_a_recording_draws_anew_from_the_same_generator(record):
    graph = record(lambda x: [x + torch.randn_like(x)], [torch.zeros(3)])
    torch.manual_seed(7)
    first, second = graph([torch.zeros(3)])[0], graph([torch.zeros(3)])[0]
    torch.manual_seed(7)
    assert torch.equal(first, torch.randn(3))
    assert torch.equal(second, torch.randn(3))


def test_a_recording_holds_no_values_that_the_computation_has_let_go(record):
    alive = []

    def doubled_often(x):
        seen = []
        for _ in range(20):
            x = x + x
            seen.append(weakref.ref(x))
            x = x * x.sigmoid()  # whose address the next results take
        alive.append(sum(value() is not None for value in seen))
        return [x]

    x = torch.randn(3)
    expected = doubled_often(x)
    graph = record(doubled_often, [x.clone()])
    assert alive == [0, 0]
    assert torch.equal(graph([x])[0], expected[0])


def test_memory_that_a_foreign_tensor_took_over_is_not_written_to():
    writable, made = Writable([]), torch.zeros(3)
    add, fill = operation(torch.ops.aten.add.Tensor), operation(torch.ops.aten.fill_.Scalar)
    writable.add(made, add, ())
    writable.check("fill_", fill, (made, 1.0), {})
    writable.discard(made)
    with pytest.raises(NotTraceable, match="not the network's"):
        writable.check("fill_", fill, (made, 1.0), {})


WITH_NUMBERS = {
    "add": lambda x, n: x + n,
    "add from the left": lambda x, n: n + x,
    "add a multiple": lambda x, n: torch.add(x, n, alpha=3),
    "subtract": lambda x, n: x - n,
    "subtract from": lambda x, n: n - x,
    "subtract a multiple from": lambda x, n: torch.rsub(x, n, alpha=-2),
    "multiply": lambda x, n: x * n,
    "divide": lambda x, n: x / n,
    "divide a number": lambda x, n: n / x,
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.bool]


@pytest.mark.parametrize("name", WITH_NUMBERS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 1000)])
def test_numbers_that_became_tensors_give_the_same_bits(record, name, shape):
    """Whatever type the result has: that of the tensor, or a wider one."""
    torch.manual_seed(1)
    for dtype, number in itertools.product(DTYPES, (2, -1, 0.1, 1e-40, 1e300, math.nan)):
        x = (20 * torch.randn(shape)).to(dtype)
        try:
            expected = WITH_NUMBERS[name](x, number)
        except (RuntimeError, TypeError):  # torch subtracts no bools
            continue
        (got,) = record(lambda x, n=number: [WITH_NUMBERS[name](x, n)], [x])([x])
        assert _same_bits(got, expected), (dtype, number)


def test_numbers_become_tensors_of_the_results_type_on_the_host():
    """Where torch would make and convert a tensor whenever the operation runs."""

    def shifted(x):
        return [torch.rsub(x, -1, alpha=-2) * 0.5, x.to(torch.int64) + 1]

    _, graph = recorder.record(shifted, [torch.ones(3)])
    prepare_to_run_one_by_one(graph)
    numbers = [n.meta["value"] for n in graph.nodes if n.op == "get_attr"]
    assert sorted(number.item() for number in numbers) == [-1.0, 0.5]
    assert all(number.dtype is torch.float32 for number in numbers)
    assert any(node.args[1:] == (1,) for node in graph.nodes)  # for an integer result it stays


def test_outputs_of_a_recording_share_no_memory(record):
    """Clipping one gradient in place must not clip another."""

    def twice(x):
        total = x.sum(dim=0)
        return [total, x.sum(dim=0), total.view(-1), x]

    x = torch.ones(2, 3)
    outputs = record(twice, [x])([x])
    assert len({out.untyped_storage().data_ptr() for out in (*outputs, x)}) == 5


def test_what_is_written_in_between_is_computed_again(record):
    """Equal operations on a tensor that changes between them are not merged."""

    def changing(x):
        y = x * 2
        before = y.sum()
        y.add_(1)
        return [before, y.sum()]

    x = torch.ones(3)
    assert [out.item() for out in record(changing, [x])([x])] == [6.0, 9.0]


def test_tensors_made_from_numbers_are_known_as_constants(record):
    """They lie on the host, and go to a GPU with the recording, where others might change them."""
    held = torch.tensor([2.0, 3.0])

    def weighted(x):
        y = x[:, torch.tensor([0, 1])] * held * torch.tensor(2.0) + x[:, np.array([1, 0])]
        y[torch.tensor([0, 1])] = 5.0
        return [y]

    x = torch.randn(4, 2)
    graph = record(weighted, [x])
    assert torch.equal(graph([x])[0], weighted(x)[0])
    about = graph.about
    constants = [tensor.tolist() for i, tensor in enumerate(about.captured) if i in about.constants]
    assert constants[:3] == [[0, 1], [1, 0], [0, 1]]  # not the factor, which kernels are given
    assert constants[3:] in ([5.0], [])  # torch 2.15 fills by the number itself
    assert any(tensor is held for tensor in about.captured)
    assert "lift_fresh" not in graph.about.code


@pytest.mark.parametrize("indices", [[0, 2, 0], [1, 1, 1]])
def test_gradients_are_added_up_by_index_as_autograd_does(record, indices):
    """In place, and without a look at the range of the indices, for which a GPU would wait."""
    at = torch.tensor(indices)

    def gathered(x):
        x = x.detach().requires_grad_()
        return list(torch.autograd.grad((x[:, at] ** 2).sum(), x))

    x = torch.randn(4, 3)
    graph = record(gathered, [x])
    assert torch.equal(graph([x])[0], gathered(x)[0])
    assert torch.equal(graph([2 * x])[0], gathered(2 * x)[0])
    assert "_index_put_impl_" in graph.about.code
    assert "index_put.default" not in graph.about.code


def test_sums_by_index_that_are_no_gradients_look_at_their_indices(record):
    def summed(x, at):
        return [x.new_zeros(3).index_put((at,), x, accumulate=True)]

    x = torch.randn(4)
    graph = record(summed, [x, torch.tensor([0, 2, 0, 1])])
    assert torch.equal(
        graph([x, torch.tensor([1, 1, 2, 2])])[0], summed(x, torch.tensor([1, 1, 2, 2]))[0]
    )
    with pytest.raises((RuntimeError, IndexError), match=r"out of (range|bounds)"):
        graph([x, torch.tensor([0, 1, 2, 3])])


@pytest.mark.parametrize("has_another_part", [False, True])
def test_zeros_are_made_where_they_are_put(has_another_part):
    """The backward pass of a number on the host that was put on a GPU makes a zero on the host."""
    graph, gpu = fx.Graph(), torch.device("cuda", 0)
    into, at = graph.placeholder("into"), graph.placeholder("at")
    into.meta["device"] = gpu
    zero = graph.call_function(torch.ops.aten.zeros.default, ([],), {"device": torch.device("cpu")})
    put = graph.call_function(torch.ops.aten.index_put.default, (into, [at], zero))
    put.meta["device"] = gpu
    more = [graph.call_function(torch.ops.aten.neg.default, (zero,))] if has_another_part else []
    graph.output([put, *more])
    without_waiting(graph)
    assert zero.kwargs["device"] == (torch.device("cpu") if has_another_part else gpu)


def test_reads_become_guards(record):
    def decides(x):
        return [x * int(x[:2].sum()) if x.sum() > 2 else x]

    graph = record(decides, [torch.ones(3)])
    assert graph.about.guarded
    outputs, held = graph([torch.tensor([1.5, 0.5, 4.0])])
    assert held
    assert outputs.tolist() == [3.0, 1.0, 8.0]
    assert not graph([torch.tensor([3.0, 0.5, 4.0])])[1]  # another factor
    assert not graph([torch.tensor([1.5, 0.5, -4.0])])[1]  # another way
    assert not record(lambda x: [2 * x], [torch.ones(3)]).about.guarded


def test_writes_to_tensors_of_others_are_refused_before_they_happen(record):
    foreign = torch.zeros(3)
    with pytest.raises(NotTraceable, match="writes"):
        record(lambda: [foreign.add_(1)], [])
    assert not foreign.any()
    assert record(lambda: [foreign.add_(1)], [], own=[foreign]).about.writes


def test_equal_products_are_not_merged_across_a_write_to_a_view(record):
    x, w = torch.randn(4, 3, 2) * 100, torch.randn(2, 1)

    def both(x):
        return [(x @ w).clamp_(-1, 1) + x @ w]

    assert torch.equal(record(both, [x])([x])[0], both(x)[0])
