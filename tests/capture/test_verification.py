"""Traced steps: equal to eager ones bit for bit, or left alone, with a word about why."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import time
import warnings
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sbi_ignite import SbiIgniteWarning, TrainConfig, run_training
from sbi_ignite.capture import compiler, verification
from sbi_ignite.capture.python_state import Fingerprint
from sbi_ignite.capture.verification import TracedLosses, Tracing, TracingRules
from tests.small import SBI_WARNS, ready, same, train, weights

X = torch.linspace(-1, 1, 64).reshape(32, 2)
Y = X.sum(dim=1, keepdim=True) + 0.5
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 32, 8)]


def sbi_warns(test):
    """Let sbi warn about what a test does not look at."""
    for mark in SBI_WARNS:
        test = mark(test)
    return test


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(dim=1)


@pytest.fixture
def replays(monkeypatch):
    """Count the batches that recordings compute."""
    counted = []
    original = Tracing.replay

    def replay(self, *args):
        outputs = original(self, *args)
        counted.extend([1] if outputs is not None else [])
        return outputs

    monkeypatch.setattr(Tracing, "replay", replay)
    return counted


@pytest.fixture
def early(monkeypatch):
    """Let trainings of a few steps be traced by `compile='auto'`, faster or not."""
    monkeypatch.setattr(compiler, "STEPS_BEFORE_TRACING", 2)
    monkeypatch.setattr(verification._Shape, "is_slower", False)


def trained(make, compile, loss=squared, epochs=4, batches=BATCHES, val=BATCHES, **kwargs):
    """Return all that a training leaves behind."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    config = TrainConfig(compile=compile, max_epochs=epochs)
    model, summary = run_training(config, make(), loss, batches, val, **kwargs)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    return model, summary, states


def check_equal(first, second):
    assert same(first[0], second[0])
    assert first[1].training_loss == second[1].training_loss
    assert first[1].validation_loss == second[1].validation_loss
    assert first[1].gradient_norm == second[1].gradient_norm
    assert torch.equal(first[2][0], second[2][0])
    assert first[2][1:] == second[2][1:]


def mlp(*inner):
    return lambda: nn.Sequential(nn.Linear(2, 8), *(make() for make in inner), nn.Linear(8, 1))


class TwoBranches(nn.Module):
    """Both biases have the same gradient; one layer takes no part."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.idle = nn.Linear(2, 4), nn.Linear(2, 4), nn.Linear(2, 4)
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        return self.out((self.a(x) + self.b(x)).tanh())


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 3, 2), nn.Linear(12, 1)

    def forward(self, x):
        return self.out(self.conv(x.repeat(1, 5)[:, :9].reshape(-1, 1, 3, 3)).flatten(1))


class Checks(nn.Linear):
    """Looks at values, as sbi's own networks do, and goes on."""

    def forward(self, x):
        if not torch.isfinite(x).all():
            raise ValueError("not finite")
        return super().forward(x)


class PastAutograd(nn.Linear):
    def forward(self, x):
        return super().forward(x) + self.weight.data.sum()


SAFE = {
    "plain": mlp(nn.Tanh),
    "dropout": mlp(lambda: nn.Dropout(0.3)),
    "batch normalisation": mlp(lambda: nn.BatchNorm1d(8)),
    "layer normalisation": mlp(lambda: nn.LayerNorm(8), nn.GELU),
    "shared gradients": TwoBranches,
    "convolution": Pictures,
    "checked values": lambda: nn.Sequential(Checks(2, 8), nn.Tanh(), nn.Linear(8, 1)),
    "weights past autograd": lambda: nn.Sequential(PastAutograd(2, 8), nn.Linear(8, 1)),
    "spectral normalisation": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(2, 8)), nn.Linear(8, 1)
    ),
}


@pytest.mark.parametrize("name", SAFE)
def test_traced_networks_give_the_same_training(name, replays):
    """Weights, buffers, losses, gradient norms and random states are equal bit for bit."""
    traced = trained(SAFE[name], "trace")
    assert len(replays) > 10
    check_equal(trained(SAFE[name], "off"), traced)


class Counts(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + self.calls % 2)


class Branches(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y.tanh() if y.mean() > y.median() else y.relu()


class Masks(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        y = y.clone()
        y[y > 0] = y[y > 0] * 2
        return y


class Reads(nn.Linear):
    def forward(self, x):
        return super().forward(x) * float(x.std().item())


class Leaves(nn.Linear):
    def forward(self, x):
        return super().forward(x) * float(x.detach().numpy().std())


class NumpyNoise(nn.Linear):
    def forward(self, x):
        return super().forward(x) + np.random.rand()


class PythonNoise(nn.Linear):
    def forward(self, x):
        return super().forward(x) + random.random()


class OwnGenerator(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.noise = np.random.default_rng(0)

    def forward(self, x):
        return super().forward(x) + self.noise.random()


class Reseeds(nn.Linear):
    def forward(self, x):
        torch.manual_seed(int(torch.randint(1000, ()).numpy()))
        return super().forward(x) + torch.rand(1)


class Alias(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.alias = self.weight.detach()

    def forward(self, x):
        return super().forward(x) + self.alias.sum()


class Hooked(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.weight.register_hook(lambda grad: grad * 0.5)


class ForwardHooked(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.register_forward_hook(lambda module, args, out: out * 0.5)


class Remembers(nn.Linear):
    last = None

    def forward(self, x):
        y = super().forward(x)
        y = y if self.last is None else y + self.last.mean()
        self.last = y.detach()
        return y


UNSAFE = (
    Counts,
    Branches,
    Masks,
    Reads,
    Leaves,
    NumpyNoise,
    PythonNoise,
    OwnGenerator,
    Reseeds,
    Alias,
    Hooked,
    ForwardHooked,
    Remembers,
)


def around(layer):
    return lambda: nn.Sequential(layer(2, 8), nn.Linear(8, 1))


@pytest.mark.parametrize("layer", UNSAFE)
def test_what_cannot_be_traced_is_left_alone_with_one_warning(layer):
    """The training is the eager one."""
    with pytest.warns(SbiIgniteWarning, match="compile='trace'") as warned:
        traced = trained(around(layer), "trace")
    assert len(warned) == 1
    check_equal(trained(around(layer), "off"), traced)


def test_a_loss_with_a_counter_in_its_closure_is_left_alone():
    def counting():
        calls = [0]

        def loss(model, batch):
            calls[0] += 1
            return squared(model, batch) * calls[0]

        return loss

    with pytest.warns(SbiIgniteWarning, match="Python state"):
        traced = trained(mlp(), "trace", counting())
    check_equal(trained(mlp(), "off", counting()), traced)


def test_a_loss_that_hides_its_counter_is_left_alone():
    """Two recordings are held against each other."""

    def hiding():
        def numbers():
            number = 1.0
            while True:
                yield number
                number += 1.0

        source = numbers()
        return lambda model, batch: squared(model, batch) * next(source)

    with pytest.warns(SbiIgniteWarning, match="compile='trace'"):
        trained(mlp(), "trace", hiding())


LAYERS = [
    nn.Tanh,
    lambda: nn.Dropout(0.4),
    lambda: nn.BatchNorm1d(8),
    lambda: nn.LayerNorm(8),
    lambda: nn.Linear(8, 8),
    lambda: Counts(8, 8),
    lambda: Branches(8, 8),
    lambda: Checks(8, 8),
    lambda: Masks(8, 8),
    lambda: NumpyNoise(8, 8),
    lambda: ForwardHooked(8, 8),
]


@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    layers=st.lists(st.sampled_from(LAYERS), max_size=4),
    compile=st.sampled_from(["trace", "auto"]),
    size=st.integers(3, 8),
)
def test_tracing_never_changes_a_result(layers, compile, size):
    """Whatever a network is made of."""
    batches = [(X[i : i + size], Y[i : i + size]) for i in range(0, 32, size)]
    batches = [batch for batch in batches if len(batch[0]) > 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SbiIgniteWarning)
        traced = trained(mlp(*layers), compile, batches=batches)
    check_equal(trained(mlp(*layers), "off", batches=batches), traced)


class Changes:
    """A user's handler that changes the network while it is trained."""

    def __init__(self, act, event):
        self.act, self.event = act, event

    def attach(self, engine):
        from ignite.engine import Events

        engine.add_event_handler(getattr(Events, self.event), self.on_event)

    def on_event(self, engine):
        if engine.state.iteration == 12:
            self.act(self.model)

    def on_train_start(self, state):
        self.model = state.model


def freeze(model):
    model[0].weight.requires_grad_(False)


def less_dropout(model):
    model[1].p = 0.1


def other_layer(model):
    model[1] = nn.Tanh()


def in_place(model):
    with torch.no_grad():
        model[2].weight.mul_(0.5)


def evaluate_a_part(model):
    model[1].eval()


@pytest.mark.parametrize("event", ["ITERATION_COMPLETED", "EPOCH_COMPLETED"])
@pytest.mark.parametrize("act", [freeze, less_dropout, other_layer, in_place, evaluate_a_part])
def test_changes_of_the_network_during_training_are_honoured(act, event, replays):
    """Frozen parameters, switched attributes, replaced modules and overwritten weights."""
    make = mlp(lambda: nn.Dropout(0.5))
    traced = trained(make, "trace", callbacks=[Changes(act, event)], epochs=6)
    assert len(replays) > 10
    check_equal(trained(make, "off", callbacks=[Changes(act, event)], epochs=6), traced)


@pytest.mark.filterwarnings("ignore:optimizer. 2 of the model's 4:UserWarning")
def test_gradients_are_added_to_those_that_nobody_takes_away(replays):
    """A parameter that the optimizer does not know keeps its gradients from step to step."""

    def half(model):
        return torch.optim.SGD(model[0].parameters(), lr=0.1)

    def run(compile):
        torch.manual_seed(0)
        model = mlp(nn.Tanh)()
        return trained(lambda: model, compile, optimizer=half(model))

    traced = run("trace")
    assert len(replays) > 10
    check_equal(run("off"), traced)


@sbi_warns
@pytest.mark.parametrize("name", ["NPE_C", "NRE_B", "FMPE"])
@pytest.mark.parametrize("typed", [False, True])
def test_auto_traces_what_sbi_builds(name, typed, early, replays):
    """Both forms train the same network with and without."""

    def run(compile):
        trainer = ready(name)
        if typed:
            return train(trainer, TrainConfig(compile=compile, max_epochs=5, batch_size=30))
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("SBI_IGNITE_TRAIN__COMPILE", compile)
            return train(trainer, training_batch_size=30, max_num_epochs=5)

    traced = run("auto")
    assert len(replays) > 5
    eager = run("off")
    assert same(eager, traced)
    assert eager.training_summary.training_loss == traced.training_summary.training_loss
    assert eager.training_summary.validation_loss == traced.training_summary.validation_loss


def test_auto_leaves_foreign_parts_alone(early, replays):
    """A user's embedding network may do anything."""
    from sbi.neural_nets import posterior_nn

    builder = posterior_nn("maf", embedding_net=Counts(2, 2), hidden_features=8, num_transforms=2)
    train(ready("NPE_C", density_estimator=builder), TrainConfig(max_epochs=5, batch_size=30))
    assert not replays


@pytest.mark.parametrize("cut_at", [2, 6])
def test_a_training_cut_before_or_after_tracing_began_continues_exactly(cut_at, early, tmp_path):
    """A resumed training is eager again at first, and ends with the same bits."""
    whole = train(ready(), TrainConfig(max_epochs=9, batch_size=30))
    first = TrainConfig(max_epochs=cut_at, batch_size=30)
    train(ready(), first, checkpoint=str(tmp_path / "run"))
    config = TrainConfig(max_epochs=9, batch_size=30)
    resumed = train(ready(), config, checkpoint=str(tmp_path / "run"))
    assert resumed.training_summary.resumed_from_epoch == cut_at
    assert same(whole, resumed)
    assert whole.training_summary.training_loss == resumed.training_summary.training_loss


@sbi_warns
def test_nothing_is_left_behind(early, replays):
    """The trainer can be pickled and copied, and torch's switches stand as they did."""
    before = torch._C._get_graph_executor_optimize(), torch.is_grad_enabled()
    trainer = train(ready(), TrainConfig(max_epochs=6, batch_size=30))
    assert replays
    assert (torch._C._get_graph_executor_optimize(), torch.is_grad_enabled()) == before
    assert same(trainer, pickle.loads(pickle.dumps(trainer)))
    assert same(trainer, copy.deepcopy(trainer))


@pytest.mark.parametrize("act", [freeze, less_dropout, other_layer, evaluate_a_part])
def test_a_fingerprint_shows_changes_of_a_network(act):
    model = mlp(lambda: nn.Dropout(0.5))()
    before = Fingerprint(model)
    assert Fingerprint(model) == before
    assert before.holds()
    act(model)
    assert Fingerprint(model) != before
    assert not before.holds()


class Holder:
    """An object with attributes of all kinds, and a function that closes over some of them."""

    def __init__(self):
        self.number, self.empty, self.names = 1000.5, {}, {"a": [1, 2], "b": (3, {4})}
        self.array, self.generator = np.zeros(3), np.random.default_rng(0)
        self.weight = torch.zeros(2, requires_grad=True)
        self.cells = closing_over([1], 2000)
        self.inner = nn.Dropout(0.5)


def closing_over(*values):
    def function(default=values[1]):
        return values, default

    return function


REASSIGNED = {
    "a number": lambda held: setattr(held, "number", 1000.25),
    "an empty dict": lambda held: held.empty.update(a=1),
    "a deep list": lambda held: held.names["a"].append(3),
    "a key": lambda held: held.names.update(c=held.names.pop("b")),
    "a set in a tuple": lambda held: held.names["b"][1].add(5),
    "an array": lambda held: held.array.__setitem__(0, 1.0),
    "a generator": lambda held: held.generator.random(),
    "what a tensor is": lambda held: held.weight.requires_grad_(False),
    "what a function closes over": lambda held: held.cells()[0][0].append(2),
    "a default": lambda held: setattr(held.cells, "__defaults__", (3000,)),
    "a new attribute": lambda held: setattr(held, "more", None),
    "all attributes": lambda held: setattr(held, "__dict__", {"number": 1}),
    "a part of a part": lambda held: setattr(held.inner, "p", 0.25),
}


@pytest.mark.parametrize("name", REASSIGNED)
def test_a_fingerprint_holds_until_something_changes(name):
    """The quick look finds what a comparison with a new fingerprint finds."""
    held = Holder()
    before = Fingerprint(held)
    assert before.holds()
    REASSIGNED[name](held)
    assert Fingerprint(held) != before
    assert not before.holds()


def test_a_fingerprint_holds_where_equal_values_took_the_place_of_others():
    """Only identities differ, which the quick look takes for a reason to compare."""
    held = Holder()
    before = Fingerprint(held)
    held.number = float("1000.5")
    assert before.holds()


def test_a_fingerprint_does_not_show_values_of_weights():
    model = mlp()()
    before = Fingerprint(model)
    assert before.holds()
    in_place(nn.Sequential(nn.Identity(), nn.Identity(), model[1]))
    assert Fingerprint(model) == before


def test_a_loss_that_is_not_finite_is_found_in_traced_steps(early, replays):
    from sbi_ignite import NonFiniteLossError

    bad = [*BATCHES * 5, (X[:8] * float("inf"), Y[:8])]
    with pytest.raises(NonFiniteLossError):
        trained(mlp(), "trace", batches=bad, epochs=1)
    assert len(replays) > 10


def test_errors_that_a_network_raises_by_looking_at_values_are_raised_in_traced_steps(replays):
    """The recording stands back for the eager computation."""

    def run(compile):
        bad = [*BATCHES * 5, (X[:8] * float("inf"), Y[:8])]
        with pytest.raises(ValueError, match="not finite"):
            trained(SAFE["checked values"], compile, batches=bad, epochs=1)

    run("trace")
    assert len(replays) > 10
    run("off")


def test_a_tensor_that_is_batch_and_part_of_the_loss_is_not_mixed_up(replays):
    """For as long as both are the same tensor, nothing tells them apart but their roles."""
    anchor = X[:8].clone()

    def loss(model, batch):
        return (model(batch[0]) - batch[1] + anchor[:, :1]).square().mean(dim=1)

    batches = [(anchor, Y[:8])] * 6 + BATCHES
    traced = trained(mlp(nn.Tanh), "trace", loss, batches=batches)
    assert len(replays) > 20
    check_equal(trained(mlp(nn.Tanh), "off", loss, batches=batches), traced)


def test_the_same_tensor_twice_in_a_batch_stays_two(replays):
    def both(model, batch):
        return (model(batch[0]) - model(batch[1])).square().mean(dim=1) + model(batch[0])[:, 0]

    first = X[:8].clone()
    batches = [(first, first) if i < 6 else (X[:8], X[8:16]) for i in range(10)]
    traced = trained(mlp(nn.Tanh), "trace", both, batches=batches, val=batches)
    assert len(replays) > 20
    check_equal(trained(mlp(nn.Tanh), "off", both, batches=batches, val=batches), traced)


def test_a_decision_that_changes_now_and_then_is_taken_anew(replays):
    """Steps in which a decision falls otherwise are eager."""

    class Clips(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y * 0.5 if x.max() > 2 else y

    batches = [*BATCHES * 3, (X[:8] * 3, Y[:8]), *BATCHES]
    traced = trained(around(Clips), "trace", batches=batches)
    assert len(replays) > 30
    check_equal(trained(around(Clips), "off", batches=batches), traced)


def test_a_fingerprint_shows_changes_of_arrays_and_generators():
    held = {"array": np.zeros((3, 2)), "generator": np.random.default_rng(0)}
    before = Fingerprint(held)
    assert Fingerprint(held) == before
    held["array"][1, 1] = 1
    changed = Fingerprint(held)
    assert changed != before
    held["generator"].random()
    assert Fingerprint(held) != changed


def test_weights_of_traced_trainings_are_plain(early):
    """No recording hangs on the network."""
    trainer = train(ready(), TrainConfig(max_epochs=6, batch_size=30))
    assert all(type(value) is torch.Tensor for value in weights(trainer).values())
    assert all(p.grad is None for p in trainer._neural_net.parameters())


@pytest.mark.parametrize("seconds", [2.0, 0.5])
@pytest.mark.parametrize("must_pay", [True, False])
def test_a_recording_that_is_not_faster_is_given_up(seconds, must_pay, monkeypatch):
    """Where it was not asked for; eager batches take a second each, by a made-up clock."""
    replayed = []

    @contextmanager
    def timed(leaves):
        before, found = len(replayed), []
        yield found
        found.append(seconds if len(replayed) > before else 1.0)

    def run(*args):
        replayed.append(1)
        return original(*args)

    original = verification._run
    monkeypatch.setattr(verification, "_run", run)
    monkeypatch.setattr(verification, "_timed", timed)
    reasons, model = [], nn.Linear(2, 1)
    rules = TracingRules(after=0, must_pay=must_pay)
    traced = Tracing(model, (), rules, lambda: 0, reasons.append)
    losses = TracedLosses(squared, traced)
    with torch.no_grad():
        for batch in BATCHES * 2:
            losses(model, batch)
    given_up = must_pay and seconds > 1
    assert reasons == (["its recording is not faster"] if given_up else [])
    assert len(replayed) == (2 * rules.proofs if given_up else len(BATCHES * 2))


def test_seconds_of_other_programs_are_not_counted():
    with verification._timed([torch.zeros(1), "a word"]) as seconds:
        time.sleep(0.2)
    assert 0 <= seconds[0] < 0.1


def test_a_recording_that_was_slow_for_a_moment_is_kept(monkeypatch):
    """The first proofs were, and the next one is not."""
    times = iter([1.0, 2.0] * 3 + [1.0, 0.5] * 10)  # eager and recorded, by turns

    @contextmanager
    def timed(leaves):
        found = []
        yield found
        found.append(next(times))

    monkeypatch.setattr(verification, "_timed", timed)
    reasons, model = [], nn.Linear(2, 1)
    traced = Tracing(model, (), TracingRules(after=0, must_pay=True), lambda: 0, reasons.append)
    losses = TracedLosses(squared, traced)
    with torch.no_grad():
        for batch in BATCHES * 2:
            losses(model, batch)
    assert reasons == []
    # Four proofs, the last of which was fast; after them nothing is timed any more.
    assert len(list(times)) == 26 - 2 * 4


@pytest.mark.parametrize("collects", [True, False])
def test_what_a_recording_leaves_behind_is_freed_at_once(collects):
    """Where Python collects garbage at all."""

    class Node:
        def __init__(self):
            self.itself = self

    (gc.enable if collects else gc.disable)()
    try:
        with verification.freed_at_once():
            node = weakref.ref(Node())
            assert node() is not None
        assert (node() is None) == collects
        assert gc.isenabled() == collects
    finally:
        gc.enable()


def test_no_nodes_of_recordings_wait_for_a_collection(replays):
    """Thousands of them bring about collections of all objects, while others train."""

    def nodes():
        return sum(type(found) is torch.fx.Node for found in gc.get_objects())

    gc.collect()
    before = nodes()
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000_000)  # no collections but those that are asked for
    try:
        trained(mlp(nn.Tanh), "trace")
        after = nodes()
    finally:
        gc.set_threshold(*thresholds)
    assert len(replays) > 0
    assert after == before


class ClampsLater(nn.Module):
    """Writes to a view of a product, of which it needs the same product again untouched."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(2, 1, bias=False)

    def forward(self, x):
        wide = x[:, None, :].expand(-1, 3, -1).contiguous()
        return (self.l(wide).clamp_(-30, 30) + self.l(wide)).mean(dim=1)


def test_a_write_to_a_view_that_does_not_say_so_is_not_merged_away(replays):
    """Products of matrices share memory with what matmul returns; the write acts only later."""
    larger = [(x * 10 ** (4 * (i > 1)), y) for i, (x, y) in enumerate(BATCHES)]
    results = []
    for way in ("off", "trace"):
        results.append(trained(ClampsLater, way, batches=larger, val=larger, epochs=6))
    check_equal(*results)
    assert len(replays) > 0


class CountsInLists(nn.Module):
    """Writes to two buffers at once, and decides by values."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(2, 1)
        self.register_buffer("n", torch.zeros(1))
        self.register_buffer("m", torch.zeros(1))

    def forward(self, x):
        torch._foreach_add_([self.n, self.m], 1.0)
        return self.l(x) if bool(x[0, 0] > 0) else 2 * self.l(x)


def test_a_write_to_a_list_of_tensors_is_seen():
    results = []
    for way in ("off", "trace"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SbiIgniteWarning)
            results.append(trained(CountsInLists, way, epochs=12))
    check_equal(*results)
