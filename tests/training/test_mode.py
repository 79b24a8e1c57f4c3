"""A network is trained in training mode, apart from frozen parts in evaluation mode."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sbi_ignite import CheckpointConfig, TrainConfig, run_training
from sbi_ignite.training.mode import FrozenParts, set_training


class AlwaysEvaluating(nn.Sequential):
    """A frozen part, as pretrained embeddings are."""

    def train(self, mode=True):
        return super().train(False)


class Counting(nn.Linear):
    """A part that notes every change of its attributes."""

    def __setattr__(self, name, value):
        if name == "training":
            self.__dict__.setdefault("seen", []).append(value)
        super().__setattr__(name, value)


def networks():
    frozen = AlwaysEvaluating(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    shared = nn.Dropout()
    instance = nn.Linear(2, 2)
    instance.train = lambda mode=True: None  # a method of this object alone
    without = nn.Module()
    without.register_module("nothing", None)
    return {
        "plain": nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())),
        "frozen part": nn.Sequential(nn.Linear(2, 2), frozen, nn.Dropout()),
        "shared part": nn.Sequential(shared, nn.ModuleList([shared, nn.Linear(1, 1)])),
        "its own attributes": nn.Sequential(Counting(2, 2), nn.Dropout()),
        "a method of one object": nn.Sequential(instance, nn.Dropout()),
        "no part": nn.Sequential(without),
        "TorchScript": nn.Sequential(torch.jit.script(nn.Dropout()), nn.Dropout()),
    }


def modes(net):
    return {name: part.training for name, part in net.named_modules()}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "frozen part",
        "shared part",
        "its own attributes",
        "a method of one object",
        "no part",
        "TorchScript",
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_every_part_is_as_torch_would_have_it(name, training):
    net = networks()[name]
    net.train(not training)
    torchs = copy.deepcopy(net)
    torchs.train(training)
    set_training(net, training)
    assert modes(net) == modes(torchs)
    assert {p.__dict__.get("seen", [None])[-1] for p in net.modules()} == {
        p.__dict__.get("seen", [None])[-1] for p in torchs.modules()
    }


# --- frozen parts


def pretrained(*, frozen=True, evaluating=True, affine=True):
    """Return an embedding that has seen other data, as users have them."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4, affine=affine)
    embedding = nn.Sequential(nn.Linear(2, 4), norm, nn.Dropout(0.5), nn.Linear(4, 2))
    embedding(3 * torch.randn(32, 2))
    return embedding.requires_grad_(not frozen).train(not evaluating)


def with_head(embedding):
    torch.manual_seed(1)
    return nn.Sequential(embedding, nn.Dropout(0.5), nn.BatchNorm1d(2), nn.Linear(2, 1))


X = torch.randn(40, 2, generator=torch.Generator().manual_seed(2))
BATCHES = [X[i : i + 10] for i in range(0, 40, 10)]


def loss(model, batch):
    return (model(batch)[:, 0] - batch[:, 0]).square()


class Modes:
    """Which parts are in training mode while the network is trained."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, batch):
        self.seen.append({name for name, part in model.named_modules() if part.training})
        return loss(model, batch)

    def validate(self, model, batch):
        assert not any(part.training for part in model.modules())
        return loss(model, batch)


def fit(net, epochs=2, compat=False, **arguments):
    """Train, and return the parts that were in training mode, the same ones in every step."""
    modes = Modes()
    config = TrainConfig(max_epochs=epochs, sbi_compat=compat)
    run_training(config, net, modes, BATCHES, BATCHES[:2], **arguments)
    first = modes.seen[0]
    assert all(seen == first for seen in modes.seen)
    return first


REST = {"", "1", "2", "3"}
EMBEDDING = {"0", "0.0", "0.1", "0.2", "0.3"}


def test_a_frozen_part_in_evaluation_mode_stays_in_it():
    """Its statistics stay, its dropout stays off; the rest trains in training mode."""
    net = with_head(pretrained())
    before = copy.deepcopy(net[0].state_dict())
    assert fit(net) == REST
    assert all(torch.equal(value, before[name]) for name, value in net[0].state_dict().items())
    assert not torch.equal(net[2].running_mean, torch.zeros(2))


@pytest.mark.parametrize(
    "wish", [{"frozen": False}, {"evaluating": False}], ids=["trainable", "in training mode"]
)
def test_a_part_that_is_trainable_or_in_training_mode_is_trained_in_training_mode(wish):
    assert fit(with_head(pretrained(**wish))) == REST | EMBEDDING


def test_in_sbis_form_all_parts_are_put_into_training_mode():
    net = with_head(pretrained())
    before = net[0][1].running_mean.clone()
    assert fit(net, compat=True) == REST | EMBEDDING
    assert not torch.equal(net[0][1].running_mean, before)


@pytest.mark.parametrize("affine", [True, False])
def test_a_second_training_keeps_what_the_first_one_kept_and_no_more(affine):
    """After the first one, everything is in evaluation mode, the dropout of the rest too."""
    net = with_head(pretrained(affine=affine))
    assert fit(net) == REST
    assert not any(part.training for part in net.modules())
    assert fit(net) == REST


def test_a_part_without_parameters_stays_in_evaluation_mode_where_that_was_asked_for():
    net = with_head(pretrained(frozen=False, evaluating=False))
    net[1].eval()
    trained = {"", "2", "3"} | EMBEDDING
    assert fit(net) == trained
    assert fit(net) == trained
    net[1].train()
    assert fit(net) == trained | {"1"}
    assert fit(net) == trained | {"1"}


def test_a_network_that_comes_in_evaluation_mode_is_trained_in_training_mode():
    """As one that was trained elsewhere, and loaded; only what is frozen is left alone."""
    assert fit(with_head(pretrained()).eval()) == REST
    assert fit(with_head(pretrained(frozen=False)).eval()) == REST | EMBEDDING


def test_a_part_that_is_unfrozen_during_training_is_trained_in_training_mode():
    class Unfreezing:
        def on_epoch_end(self, state):
            state.model[0].requires_grad_(state.epoch >= 2)

    net, modes = with_head(pretrained()), Modes()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    run_training(
        TrainConfig(max_epochs=3),
        net,
        modes,
        BATCHES,
        optimizer=optimizer,
        callbacks=[Unfreezing()],
    )
    assert modes.seen[::4] == [REST, REST, REST | EMBEDDING]


def test_a_frozen_block_of_a_part_that_is_partly_unfrozen_stays_in_evaluation_mode():
    class Unfreezing:
        def on_epoch_end(self, state):
            state.model[0][3].requires_grad_(True)

    blocks = pretrained()
    blocks[1] = nn.Sequential(blocks[1], nn.Dropout(0.1)).eval()
    net, modes = with_head(blocks), Modes()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    run_training(
        TrainConfig(max_epochs=2),
        net,
        modes,
        BATCHES,
        optimizer=optimizer,
        callbacks=[Unfreezing()],
    )
    assert modes.seen[::4] == [REST, REST | {"0", "0.2", "0.3"}]


def test_a_resumed_training_goes_on_in_the_modes_it_began_with(tmp_path):
    """Bit for bit, whatever modes the network comes in the second time."""

    def run(directory, epochs, **wish):
        net = with_head(pretrained(**wish))
        torch.manual_seed(5)
        checkpoint = CheckpointConfig(tmp_path / directory)
        trained = fit(net, epochs, checkpoint=checkpoint)
        return trained, net.state_dict()

    _, whole = run("whole", 4)
    run("cut", 2)
    trained, resumed = run("cut", 4, evaluating=False)
    assert trained == REST
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_modes_are_told_by_the_names_of_parts():
    net = with_head(pretrained())
    states = FrozenParts(net).state_dict()
    assert set(states["names"]) == EMBEDDING
    other = with_head(pretrained(evaluating=False))
    frozen = FrozenParts(other)
    assert frozen.state_dict()["names"] == []
    frozen.load_state_dict({"names": [*states["names"], "gone"]})
    frozen.train()
    assert {name for name, part in other.named_modules() if part.training} == REST
