"""FlatOptimizer: the step of a torch optimizer, bit for bit, wherever the parameters lie."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, lr_scheduler

from sbi_ignite import TrainConfig, WeightAveraging, run_training
from sbi_ignite.handlers.averaging import AveragedWeights
from sbi_ignite.optim.flat import FlatOptimizer

SHAPES = [(1,), (7,), (16,), (17, 3), (3, 5, 2), (129,), (), (64, 33), (31,)]


class Odd(nn.Module):
    """Parameters of odd shapes."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.all = nn.ParameterList([torch.randn(shape, dtype=dtype) for shape in SHAPES])


def set_gradients(net, step, without=()):
    """Give gradients of many magnitudes, the same ones in every call."""
    generator = torch.Generator().manual_seed(step)
    for i, parameter in enumerate(net.parameters()):
        scale = 10.0 ** ((i + step) % 9 - 6)
        gradient = scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.grad = None if i in without else gradient


def steps(net, stepping, number=30, begin=0, without=(), before_step=lambda step: None):
    for step in range(begin, begin + number):
        set_gradients(net, step, without)
        before_step(step)
        stepping.step()


def equal(first, second, close=False):
    """Say whether weights, moments and counts of two (net, optimizer) are equal bit for bit."""
    (net_a, a), (net_b, b) = first, second
    same = torch.allclose if close else torch.equal
    pairs = list(zip(net_a.parameters(), net_b.parameters(), strict=True))
    return all(same(p, q) for p, q in pairs) and all(
        a.state[p].keys() == b.state[q].keys()
        and all(same(a.state[p][n], b.state[q][n]) for n in a.state[p])
        for p, q in pairs
    )


def is_flat(net):
    return len({p.untyped_storage().data_ptr() for p in net.parameters()}) == 1


OPTIMIZERS = {
    "adam": lambda p: Adam(p, lr=0.01),
    "foreach": lambda p: Adam(p, lr=0.01, foreach=True),
    "fused": lambda p: Adam(p, lr=0.01, fused=True),
    "decay": lambda p: Adam(p, lr=0.01, weight_decay=0.1),
    "betas": lambda p: Adam(p, lr=0.01, betas=(0.5, 0.9), eps=1e-3),
    "maximize": lambda p: Adam(p, lr=0.01, maximize=True),
    "adamw": lambda p: AdamW(p, lr=0.01),
    "adamw fused": lambda p: AdamW(p, lr=0.01, weight_decay=0.2, fused=True),
}
OTHERS = {
    "sgd": lambda p: SGD(p, lr=0.01, momentum=0.9),
    "amsgrad": lambda p: Adam(p, lr=0.01, amsgrad=True),
    "two groups": lambda p: Adam([{"params": p[:3]}, {"params": p[3:], "lr": 0.1}], lr=0.01),
    "tensor rate": lambda p: Adam(p, lr=torch.tensor(0.01)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*OPTIMIZERS, *OTHERS])
def test_a_step_is_torchs_bit_for_bit(name, dtype):
    """Weights, moments and counts, for sizes that fill vector registers and such that do not.

    The fused kernel rounds the end of a tensor in its own way: there it is up to the last bits.
    """
    close = "fused" in name
    make = {**OPTIMIZERS, **OTHERS}[name]
    plain, net = Odd(dtype), Odd(dtype)
    expected, optimizer = make(list(plain.parameters())), make(list(net.parameters()))
    steps(plain, expected)
    flat = FlatOptimizer(optimizer)
    with flat.lent_memory():
        steps(net, flat)
        assert is_flat(net) == (name in OPTIMIZERS)
        assert equal((plain, expected), (net, optimizer), close)
    assert equal((plain, expected), (net, optimizer), close)


def test_rates_may_change_between_steps():
    plain, net = Odd(), Odd()
    expected, optimizer = Adam(plain.parameters()), Adam(net.parameters())
    one, other = (lr_scheduler.ExponentialLR(o, 0.9) for o in (expected, optimizer))
    flat = FlatOptimizer(optimizer)
    with flat.lent_memory():
        for step in range(9):
            steps(plain, expected, 1, step)
            steps(net, flat, 1, step)
            one.step()
            other.step()
        assert is_flat(net)
    assert equal((plain, expected), (net, optimizer))


def test_parameters_get_their_own_memory_back():
    """Aliases made before see the trained values; nothing shares memory; files stay small."""
    net = Odd()
    before = [(p, p.data_ptr(), p.detach()) for p in net.parameters()]
    flat = FlatOptimizer(Adam(net.parameters()))
    with flat.lent_memory():
        steps(net, flat, 3)
        assert is_flat(net)
        inside = [p.detach().clone() for p in net.parameters()]
    for (parameter, address, alias), value, now in zip(
        before, inside, net.parameters(), strict=True
    ):
        assert parameter is now
        assert now.data_ptr() == address
        assert torch.equal(now, value)
        assert torch.equal(alias, value)
        moments = [t.untyped_storage() for t in flat.optimizer.state[now].values()]
        assert all(s.nbytes() <= max(8, 4 * now.numel()) for s in (*moments, now.untyped_storage()))
    file = io.BytesIO()
    torch.save({"one": net.all[0]}, file)
    assert len(file.getvalue()) < 4000


def test_memory_comes_back_after_an_error_too():
    net = Odd()
    address = net.all[0].data_ptr()
    flat = FlatOptimizer(Adam(net.parameters()))

    def interrupted():
        with flat.lent_memory():
            steps(net, flat, 3)
            assert is_flat(net)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert net.all[0].data_ptr() == address


def interrupted_by(change, make=OPTIMIZERS["adam"]):
    """Return two trainings, by torch and by us, with `change(net, optimizer)` in the middle."""
    results = []
    for wrap in (lambda o: o, FlatOptimizer):
        net = Odd()
        optimizer = make(list(net.parameters()))
        stepping = wrap(optimizer)
        with stepping.lent_memory() if isinstance(stepping, FlatOptimizer) else torch.no_grad():
            steps(net, stepping, 5)
            change(net, optimizer)
            steps(net, stepping, 5, begin=5)
        results.append((net, optimizer))
    return results


CHANGES = {
    "weights are loaded": lambda net, o: net.load_state_dict(Odd().state_dict()),
    "weights are assigned": lambda net, o: net.load_state_dict(Odd().state_dict(), assign=True),
    "memory is replaced": lambda net, o: setattr(net.all[3], "data", torch.ones(17, 3)),
    "the state is saved and loaded": lambda net, o: o.load_state_dict(
        copy.deepcopy(o.state_dict())
    ),
    "the state is emptied": lambda net, o: o.state.clear(),
    "torch steps itself": lambda net, o: (set_gradients(net, 77), o.step()),
    "a group is added": lambda net, o: o.add_param_group({"params": [nn.Parameter(torch.ones(2))]}),
    "an option appears": lambda net, o: o.param_groups[0].update(weight_decay=0.3),
    "the rate becomes a tensor": lambda net, o: o.param_groups[0].update(lr=torch.tensor(0.1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_happens_in_between_results_are_torchs(name):
    (plain, _), (ours, _) = interrupted_by(CHANGES[name])
    assert all(map(torch.equal, plain.parameters(), ours.parameters()))


def test_hooks_and_patched_steps_are_called():
    called = []

    def change(net, optimizer):
        optimizer.register_step_pre_hook(lambda *args: called.append("hook"))
        original = optimizer.step
        optimizer.step = lambda: (called.append("patched"), original())

    plain, ours = interrupted_by(change)
    assert called == ["patched", "hook"] * 10
    assert equal(plain, ours)


@pytest.mark.parametrize("without", [(0,), (2, 5)])
def test_parameters_without_gradients_are_left_alone(without):
    """Those that never have one, as for torch, get no state; a change of who has one is heeded."""
    plain, net = Odd(), Odd()
    expected, optimizer = (Adam(n.parameters(), weight_decay=0.1) for n in (plain, net))
    flat = FlatOptimizer(optimizer)
    with flat.lent_memory():
        for begin, missing in ((0, without), (5, (1,)), (10, ()), (15, without)):
            steps(plain, expected, 5, begin, missing)
            steps(net, flat, 5, begin, missing)
            assert equal((plain, expected), (net, optimizer))


def test_parameters_that_share_memory_are_left_where_they_are():
    weights = torch.randn(10)
    net = nn.ParameterList([weights[:5], weights[5:]])
    addresses = [p.data_ptr() for p in net]
    flat = FlatOptimizer(Adam(net.parameters()))
    with flat.lent_memory():
        for _ in range(3):
            for parameter in net:
                parameter.grad = torch.ones(5)
            flat.step()
        assert [p.data_ptr() for p in net] == addresses


def test_the_optimizer_and_the_net_can_be_copied_and_pickled_inside():
    net = Odd()
    flat = FlatOptimizer(Adam(net.parameters()))
    with flat.lent_memory():
        steps(net, flat, 4)
        copied = copy.deepcopy((net, flat.optimizer))
        pickled = pickle.loads(pickle.dumps((net, flat.optimizer)))
        plain, expected = Odd(), None
        expected = Adam(plain.parameters())
        steps(plain, expected, 4)
        for other_net, other in (copied, pickled):
            assert type(other) is Adam
            steps(other_net, other, 3, begin=4)
        steps(net, flat, 3, begin=4)
    steps(plain, expected, 3, begin=4)
    for result in (copied, pickled, (net, flat.optimizer)):
        assert equal((plain, expected), result)


def test_gradients_changed_by_others_are_the_ones_that_count():
    """In place or by replacement, after the flat copy was made."""
    plain, net = Odd(), Odd()
    expected, flat = Adam(plain.parameters()), FlatOptimizer(Adam(net.parameters()))

    def meddle(target):
        def before_step(step):
            if target is net:
                flat.flat_gradient()
            first, second = list(target.parameters())[:2]
            first.grad.mul_(3.0)
            second.grad = second.grad + 1.0

        return before_step

    steps(plain, expected, 6, before_step=meddle(plain))
    with flat.lent_memory():
        steps(net, flat, 6, before_step=meddle(net))
        assert is_flat(net)
    assert equal((plain, expected), (net, flat.optimizer))


@pytest.mark.parametrize("between", ["nothing", "a change", "another gradient"])
def test_scaled_gradients_are_scaled_once_and_everywhere(between):
    """Where the flat copy is still of these gradients, and where it is not any more."""
    net = Odd()
    flat = FlatOptimizer(Adam(net.parameters()))
    with flat.lent_memory():
        steps(net, flat, 3)
        set_gradients(net, step=3)
        assert flat.flat_gradient() is not None
        parameters = list(net.parameters())
        if between == "a change":
            parameters[0].grad.add_(1.0)
        if between == "another gradient":
            parameters[0].grad = torch.ones_like(parameters[0])
        expected = [p.grad * 0.5 for p in parameters]
        flat.scale_gradients([p.grad for p in parameters], torch.tensor(0.5))
        for parameter, value in zip(parameters, expected, strict=True):
            assert torch.equal(parameter.grad, value)
        anew = flat.flat_gradient()
        assert torch.allclose(anew.norm(), torch.cat([e.reshape(-1) for e in expected]).norm())


def test_a_training_lends_memory_and_gives_it_back():
    """Inside the network is flat; afterwards it is the network that went in."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    addresses, flat = [p.data_ptr() for p in net.parameters()], []
    batches = [torch.randn(8, 3) for _ in range(4)]

    class Look:
        def on_epoch_end(self, state):
            flat.append(is_flat(state.model))

    run_training(
        TrainConfig(max_epochs=2),
        net,
        lambda model, x: model(x).square().mean(dim=1),
        batches,
        callbacks=[Look()],
    )
    assert flat == [True, True]
    assert [p.data_ptr() for p in net.parameters()] == addresses


def test_parameters_move_back_to_where_they_lay():
    """A CUDA graph knows them by their addresses; a stage that resets the optimizer moves them."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1))
    optimizer = torch.optim.Adam(net.parameters())
    flat, places = FlatOptimizer(optimizer), []
    with flat.lent_memory():
        for step in range(6):
            flat.zero_grad()
            net(torch.ones(4, 3)).mean().backward()
            if step == 3:
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": {}, "param_groups": groups})
            flat.step()
            places.append([parameter.data_ptr() for parameter in net.parameters()])
    assert places[1] == places[2] == places[4] == places[5]
    assert places[1] != places[3]


@pytest.mark.parametrize("fused", [False, True])
def test_values_that_lie_together_are_shown_as_one_tensor(fused):
    net = Odd()
    stepping = FlatOptimizer(Adam(net.parameters(), lr=0.01, fused=fused))
    parameters = list(net.parameters())
    with stepping.lent_memory():
        steps(net, stepping, 1)
        assert stepping.flat_values(parameters) is None  # torch takes the first step
        steps(net, stepping, 1, begin=1)
        values = stepping.flat_values(parameters)
        assert values is not None
        joined, parts = stepping.joined(parameters)
        assert torch.equal(values, joined)
        assert all(map(torch.equal, parts, parameters))
        assert stepping.flat_values(parameters[1:]) is None
        assert stepping.flat_values(parameters[::-1]) is None
        parameters[2].data = parameters[2].data.clone()
        assert stepping.flat_values(parameters) is None
    assert stepping.flat_values(parameters) is None


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_averages_of_flat_parameters_are_the_same_bit_for_bit(factor):
    """From the step on with which they lie together, one operation does for all."""
    averages = {}
    for flat in (False, True):
        net = Odd()
        stepping = FlatOptimizer(Adam(net.parameters(), lr=0.01))
        share = WeightAveraging("power", factor=factor).share
        averages[flat] = AveragedWeights(net, share, stepping if flat else None)
        with stepping.lent_memory():
            for step in range(30):
                steps(net, stepping, 1, begin=step)
                averages[flat].update()
    plain, together = (averages[flat].state_dict()["average"] for flat in (False, True))
    assert len({part.untyped_storage().data_ptr() for part in together}) == 1
    assert all(map(torch.equal, plain, together))


@pytest.mark.parametrize("left", [None, "while shown", "before it is shown"])
def test_averages_of_flat_parameters_come_and_go_bit_for_bit(left):
    """Shown, hidden and restarted from; also where the parameters move out in between."""
    seen = {}
    for flat in (False, True):
        net = Odd()
        stepping = FlatOptimizer(Adam(net.parameters(), lr=0.01))
        share = WeightAveraging("power", factor=3.0).share
        averages = AveragedWeights(net, share, stepping if flat else None)
        seen[flat] = []
        with stepping.lent_memory():
            for epoch in range(5):
                for step in range(3 * epoch, 3 * epoch + 3):
                    steps(net, stepping, 1, begin=step)
                    averages.update()
                if epoch == 2 and left == "before it is shown":
                    net.all[0].data = net.all[0].data.clone()
                averages.show()
                averages.show()  # a second time changes nothing
                seen[flat] += [p.detach().clone() for p in net.parameters()]
                seen[flat] += [value.clone() for value in averages.trained().values()]
                if epoch == 1:
                    averages.restart()
                if epoch == 2 and left == "while shown":
                    net.all[0].data = net.all[0].data.clone()
                averages.hide()
                seen[flat] += [p.detach().clone() for p in net.parameters()]
    assert len(seen[False]) == len(seen[True]) == 15 * len(list(Odd().parameters()))
    assert all(map(torch.equal, seen[False], seen[True]))
